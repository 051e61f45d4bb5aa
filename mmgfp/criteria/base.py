"""What criteria are, and what the two kinds of them have in common.

A criterion scores units; the least goes first. It knows neither cost nor
training loop. Those that observe mask gradients are :class:`MaskGradients`,
those that look at weights are :class:`Weights`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import ATTRIBUTE, ChannelGroup, UnitSpace
from ..slimming.surgery import named_tensors
from .taps import Taps

AllRanks = Callable[[Tensor], Tensor]
Labels = Literal['true', 'empirical']


class Criterion(Protocol):
    """Scores of the U units of G groups.

    Attributes:
        when (str): 'training' if scores come from the batches that a network
            trains on; 'weights' if they come from its weights at any time;
            'calibration' if they come from batches that it does not learn
            from (:class:`Calibrated`).
    """

    when: ClassVar[Literal['training', 'weights', 'calibration']]

    def attach(self, model: nn.Module, units: UnitSpace) -> None:
        """Start observing a network.

        What was summed before stays if it is of the same units; those of
        another object are others.
        """

    def detach(self) -> None:
        """Stop observing; scores stay."""

    def end_batch(
        self,
        scale: float | Tensor = 1.0,
        valid: Tensor | None = None,
        on_all_ranks: AllRanks | None = None,
    ) -> Tensor:
        """Count the batch that has gone through forward and backward.

        Args:
            scale (float | Tensor): What the mean of the images' losses was
                multiplied with (mixed precision, gradient accumulation); of
                each unit if it has shape (U,). Defaults to 1.
            valid (Tensor, optional): Whether the batch counts, shape (). By
                default it does.
            on_all_ranks (Callable, optional): Turns whether the batch counts
                in this process into whether it does in all of them, which
                have to call it after every batch.

        Returns:
            Tensor: Whether it counts and its scores are finite, shape (). If
            not, nothing of it is kept. The host does not wait for it.
        """

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """Sum over processes what each has summed since the last call.

        All processes have to call it before they ask for scores or state.

        Args:
            reduce (Callable): Sums a tensor over processes, in place.
        """

    def scores(self, there: np.ndarray) -> np.ndarray:
        """Score of every unit, (U,); NaN for groups that have none.

        Args:
            there (np.ndarray): (U,) whether a unit is not masked. Scores of
                masked units mean nothing.
        """

    def reset(self, compared: np.ndarray) -> None:
        """Begin anew after a pruning step.

        Args:
            compared (np.ndarray): (G,) whether the step compared a group;
                others keep what was summed.
        """

    def cut(self, units: UnitSpace, stays: np.ndarray) -> None:
        """Follow a network from which units were cut out.

        Args:
            units (UnitSpace): Those that are left.
            stays (np.ndarray): (U,) whether each of those before is left.
        """

    def state_dict(self, stays: np.ndarray) -> dict[str, Any]:
        """What resuming needs, of the units that stay, (U,)."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: If it is of other groups.
        """


class ElementCriterion(Criterion, Protocol):
    """Criteria that score single weights, too.

    Attached with no groups, they are to score weights alone.
    """

    def elements(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Scores of the elements of these weights; the least goes first.

        Scores of weights that are pruned mean nothing.

        Args:
            names (Sequence[str]): Of parameters of the network.

        Returns:
            dict[str, Tensor]: By name, of the parameter's shape.

        Raises:
            ValueError: If there are no scores of one of them.
        """


class Calibrated(Criterion, Protocol):
    """Criteria that need a calibration pass before each pruning step.

    The network is in evaluation mode in it, and its weights stay.

    Attributes:
        batches (int): Of the pass, in each process.
        fisher (str, optional): Whose gradients are observed: 'true' for
            labels drawn from what the network predicts, 'empirical' for those
            of the data set; None for 'true' where it predicts class scores.
    """

    batches: int
    fisher: Labels | None

    def observing(self) -> AbstractContextManager[None]:
        """Context of the pass, in which alone the network is observed."""

    def unmeasured(self) -> list[str]:
        """Names of layers that count, but that the pass has not measured."""


class MaskGradients(Criterion):
    """Criteria that sum something of each batch's mask gradients.

    Args:
        decay (float): Share of the sums that outlives a pruning step.
            Defaults to 0: the paper begins anew.

    Raises:
        ValueError: If the share is not in [0, 1).
    """

    when = 'training'

    def __init__(self, decay: float = 0.0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f'decay={decay!r}: expected the share of the scores that '
                'outlives a pruning step, at least 0 and less than 1'
            )
        self.decay = decay
        self._taps: Taps | None = None
        self._model: nn.Module
        self._units: UnitSpace = UnitSpace([])

    @abstractmethod
    def of_batch(self, gradients: Tensor) -> Tensor:
        """What a batch adds to the sums: where criteria differ.

        Args:
            gradients (Tensor): (N, U) mask gradients, each of the loss of its
                image alone; loss scales are divided out.

        Returns:
            Tensor: (U,).
        """

    def attach(self, model: nn.Module, units: UnitSpace) -> None:
        """See :meth:`Criterion.attach`."""
        if self._units is not units:
            self.detach()
            self._model, self._units = model, units
            # see _split: of this process, and of all together
            self._sums, self._shared = self._zeros(), self._zeros()
        if self._taps is None:
            self._taps = Taps(model, units)

    def detach(self) -> None:
        """See :meth:`Criterion.detach`."""
        if self._taps is not None:
            self._taps.detach()
            self._taps = None

    def end_batch(
        self,
        scale: float | Tensor = 1.0,
        valid: Tensor | None = None,
        on_all_ranks: AllRanks | None = None,
    ) -> Tensor:
        """See :meth:`Criterion.end_batch`.

        The loss is taken to be a mean over the images, as losses are; it is
        multiplied by their number, so that batches of unequal size count
        every image alike.
        """
        finite = torch.ones((), dtype=torch.bool, device=self._sums.device)
        if valid is not None:
            finite = finite & valid
        new = self._zeros()
        if self._taps is not None:
            finite = finite & self._add_batch(self._taps, scale, new)
        if on_all_ranks is not None:
            finite = on_all_ranks(finite)
        self._sums = self._sums + torch.where(finite, new, 0.0)
        return finite

    def _add_batch(
        self, taps: Taps, scale: float | Tensor, sums: Tensor
    ) -> Tensor:
        """Add what the taps have seen; whether all of it is finite, ()."""
        scores, images, unreached = self._split(sums)
        for group in taps.take_unreached():
            unreached[group] += 1
        gradients = taps.take()
        if gradients is None:  # other processes may have some
            return torch.ones((), dtype=torch.bool, device=sums.device)
        if isinstance(scale, Tensor):
            scale = scale.double().to(gradients.device)
        gradients = gradients.double() * (len(gradients) / scale)
        scores += self.of_batch(gradients)
        images += taps.images_per_group(gradients)
        return gradients.isfinite().all() & scores.isfinite().all()

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """See :meth:`Criterion.all_reduce`."""
        reduce(self._sums)
        self._shared = self._shared + self._sums
        self._sums = self._zeros()

    def scores(self, there: np.ndarray) -> np.ndarray:
        """See :meth:`Criterion.scores`.

        A group has none since the last step if no consumer had a gradient, or
        all had zeros only, or the input of one was out of reach of gradients,
        as where a hook froze what is before it.
        """
        scores, images, unreached = self._split(self._shared + self._sums)
        lacks = ((images == 0) | (unreached > 0)).cpu().numpy()
        found = scores.cpu().numpy().copy()
        found[lacks[self._units.group_of]] = np.nan
        return found

    def reset(self, compared: np.ndarray) -> None:
        """See :meth:`Criterion.reset`."""
        total = self._shared + self._sums
        scores, *counts = self._split(total)
        kept = np.where(compared, self.decay, 1.0)[self._units.group_of]
        scores *= torch.from_numpy(kept).to(scores.device)
        for count in counts:
            count.zero_()
        self._sums, self._shared = self._zeros(), total

    def cut(self, units: UnitSpace, stays: np.ndarray) -> None:
        """See :meth:`Criterion.cut`."""
        counts = np.ones(2 * len(units.groups), bool)
        index = torch.from_numpy(np.concatenate([stays, counts]))
        index = index.to(self._sums.device)
        self._sums, self._shared = self._sums[index], self._shared[index]
        self._units = units
        if self._taps is not None:
            self.detach()
            self.attach(self._model, units)

    def state_dict(self, stays: np.ndarray) -> dict[str, Any]:
        """See :meth:`Criterion.state_dict`.

        Returns:
            dict: By name of the group, ``sums`` of its units, ``images`` with
            a mask gradient, and iterations in which a consumer was
            ``unreached`` by gradients.
        """
        total = (self._shared + self._sums).cpu()
        scores, images, unreached = (
            part.numpy() for part in self._split(total)
        )
        names = [group.name for group in self._units.groups]
        split = self._units.split
        return {
            'sums': {
                name: torch.from_numpy(part[kept])
                for name, part, kept in zip(names, split(scores), split(stays))
            },
            'images': dict(zip(names, map(int, images))),
            'unreached': dict(zip(names, map(int, unreached))),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Criterion.load_state_dict`."""
        # earlier versions knew one criterion
        saved = state.get('sums', state.get('fisher', {}))
        for group in self._units.groups:
            found = saved.get(group.name)
            if found is None or len(found) != group.size:
                raise ValueError(
                    f'the checkpoint holds scores of '
                    f'{"no" if found is None else len(found)} units for the '
                    f'channel group {group.name}, expected {group.size}: '
                    'resume with the config that was interrupted'
                )
        names = [group.name for group in self._units.groups]
        images, unreached = state.get('images'), state.get('unreached')
        if images is None or unreached is None:  # earlier versions had none
            images = {name: int(saved[name].any()) for name in names}
            unreached = dict.fromkeys(names, 0)
        counts = [float(c[n]) for c in (images, unreached) for n in names]
        # a runner may have put the checkpoint on another device
        device = self._sums.device
        self._shared = torch.cat(
            [
                *(saved[name].double().to(device) for name in names),
                torch.tensor(counts, dtype=torch.float64, device=device),
            ]
        )
        self._sums = self._zeros()

    def _split(self, sums: Tensor) -> Sequence[Tensor]:
        """What was summed since the last step, as views of one flat vector.

        Returns:
            Sequence[Tensor]: Sums of the units, (U,); of each group, (G,),
            images with a mask gradient, and iterations in which one of its
            consumers was out of reach of gradients.
        """
        groups = len(self._units.groups)
        return sums.split([len(self._units), groups, groups])

    def _zeros(self) -> Tensor:
        size = len(self._units) + 2 * len(self._units.groups)
        device = next(self._model.parameters()).device
        return torch.zeros(size, dtype=torch.float64, device=device)


class Weights(Criterion):
    """Criteria that look at the weights alone: no data, no training."""

    when = 'weights'

    @abstractmethod
    def of_group(
        self,
        group: ChannelGroup,
        tensors: Mapping[str, Tensor],
        numbers: np.ndarray,
    ) -> np.ndarray | None:
        """Scores of a group's units, (size,); None if it has none.

        Args:
            group (ChannelGroup): Without the units that are masked.
            tensors (Mapping[str, Tensor]): Parameters and buffers by name,
                zeros where other units are masked.
            numbers (np.ndarray): (size,) the units' numbers in the unpruned
                network.
        """

    def attach(self, model: nn.Module, units: UnitSpace) -> None:
        """See :meth:`Criterion.attach`."""
        self._model, self._units = model, units

    def end_batch(
        self,
        scale: float | Tensor = 1.0,
        valid: Tensor | None = None,
        on_all_ranks: AllRanks | None = None,
    ) -> Tensor:
        """See :meth:`Criterion.end_batch`; nothing is summed."""
        device = next(self._model.parameters()).device
        finite = torch.ones((), dtype=torch.bool, device=device)
        if valid is not None:
            finite = finite & valid
        return finite if on_all_ranks is None else on_all_ranks(finite)

    def scores(self, there: np.ndarray) -> np.ndarray:
        """See :meth:`Criterion.scores`."""
        tensors = self._tensors(there)
        found = np.full(len(self._units), np.nan)
        for group, numbers, left, part in zip(
            self._units.groups,
            self._units.numbers,
            self._units.split(there),
            self._units.split(found),
        ):
            if left.any():
                scores = self.of_group(
                    group.restrict(left), tensors, numbers[left]
                )
                part[left] = np.nan if scores is None else scores
        return found

    def _tensors(self, there: np.ndarray) -> dict[str, Tensor]:
        """Parameters and buffers, with zeros where masked units are."""
        tensors = {
            name: tensor.detach().cpu()
            for name, tensor in named_tensors(self._model).items()
        }
        for group, left in zip(self._units.groups, self._units.split(there)):
            for member in group.members if not left.all() else ():
                if member.axis != ATTRIBUTE:
                    gone = torch.from_numpy(member.index[~left].ravel())
                    tensors[member.tensor] = tensors[member.tensor].index_fill(
                        member.axis, gone, 0
                    )
        return tensors

    def cut(self, units: UnitSpace, stays: np.ndarray) -> None:
        """See :meth:`Criterion.cut`."""
        self._units = units

    def state_dict(self, stays: np.ndarray) -> dict[str, Any]:
        """See :meth:`Criterion.state_dict`; the weights are all there is."""
        return {}
