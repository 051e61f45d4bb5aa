"""The pruner: accumulates scores, chooses units and removes them.

The only object of the core with state. Needs torch alone; a training loop of
any kind calls :meth:`GroupFisherPruner.accumulate` after each backward and
:meth:`GroupFisherPruner.prune` every so often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..cost.latency import LatencyTable
from ..cost.model import Calls, CostModel, Metric
from ..criteria.taps import FisherTaps
from ..groups import ChannelGroup
from ..slimming.history import STAYS, Scores, no_scores
from ..slimming.masks import GradientMask
from ..slimming.positions import (
    axis_sizes,
    kept_positions,
    lost_units,
    shrink_groups,
)
from ..slimming.structure import Structure
from ..slimming.surgery import Keep, slice_model, slice_optimizer
from .selection import Floor, Selector

Normalizer = Literal['acts', 'flops', 'latency', 'none']


@dataclass(frozen=True)
class Removal:
    """One choice: units of a group that were removed together.

    Attributes:
        group (str): Name of the group.
        channels (int): Channels its first producer lost.
    """

    group: str
    channels: int

    def __str__(self) -> str:
        return f'{self.group} ({self.channels})'


class GroupFisherPruner:
    """Group Fisher Pruning of one network (paper, Algorithm 2).

    Args:
        model (nn.Module): The network, bare (not wrapped for DDP).
        groups (Sequence[ChannelGroup]): From
            :func:`mmgfp.tracing.finder.find_groups` on the original network,
            also if this one is slim; frozen ones are left alone.
        calls (Calls): From :func:`mmgfp.cost.model.record_calls`.
        normalize_by (str): What scores are divided by: 'acts', 'flops',
            'latency' or 'none'. Defaults to 'acts'.
        floor (Floor, optional): What must stay of each group.
        structure (Structure, optional): What the network has lost before.
        cut_to (int): Removed channels are masked until the rest of a group
            is a multiple of this; then they are cut out. 0 for never, until
            :meth:`cut` is called. Defaults to 1: cut at once.
        latency (LatencyTable, optional): Of the original network; makes
            latency a metric.

    Attributes:
        uses_gradients (bool): Whether scores come of mask gradients. Nothing
            is observed without, and every group has scores at any time.
        kept_share (float): Share of the scores that outlives a pruning step.

    Raises:
        ValueError: If there is no prunable group, or the structure does not
            fit the groups.
    """

    uses_gradients: bool = True
    kept_share: float = 0.0

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        calls: Calls,
        normalize_by: Normalizer = 'acts',
        floor: Floor | None = None,
        structure: Structure | None = None,
        cut_to: int = 1,
        latency: LatencyTable | None = None,
    ) -> None:
        self.model = model
        self.cut_to = cut_to
        self.cuts = 0  # how often channels were cut out
        # told what stays of the network, before that is cut
        self.on_cut: list[Callable[[Keep], None]] = []
        self.groups = [group for group in groups if not group.frozen]
        if not self.groups:
            raise ValueError(
                'no channel group can be pruned: ' + _why_frozen(groups)
            )
        self.normalize_by = normalize_by
        self.floor = floor or Floor()
        self._originals = [group.size for group in self.groups]
        # numbers that the units have in the original network
        self._units = [np.arange(size) for size in self._originals]
        if structure is not None:
            self.groups = self._left_by(structure)
        known = dict(structure.cost_before) if structure else {}
        self._cost = CostModel(
            model, self.groups, calls, latency, known.get('acts')
        )
        before = known or self._cost.total()
        if latency is not None:
            before['latency'] = latency.full
        # what cannot be counted any more, as latency without its table, is
        # not followed further
        self.cost_before = {metric: before[metric] for metric in self.cost()}
        self._structure = structure or Structure({})
        self._scores = self._known_scores()
        # see _split: of this process, and of all together
        self._sums = self._no_sums()
        self._shared = self._no_sums()
        # what was removed and is still there, masked: (size,) per group
        self._masked: list[np.ndarray] = [
            np.zeros(group.size, bool) for group in self.groups
        ]
        self._mask = GradientMask(model)
        self._taps: FisherTaps | None = None

    def _left_by(self, structure: Structure) -> list[ChannelGroup]:
        """The groups as they are in the slim network.

        They come from those of the original, not from the slim network
        itself, so that names and order stay the same whatever went.
        """
        sizes = {
            **axis_sizes(self.model, self.groups),
            **{key: axis.size for key, axis in structure.axes.items()},
        }
        lost = lost_units(self.groups, structure)
        self._units = _without(self._units, lost)
        return shrink_groups(self.groups, lost, structure.keep, sizes)

    def _known_scores(self) -> Scores:
        """The record so far; of groups that are not in it nothing is known."""
        scores = self._structure.scores or Scores(self.normalize_by, {})
        groups = {}
        for group, units, size in zip(
            self.groups, self._units, self._originals
        ):
            there = np.isin(np.arange(size), units)
            known = scores.groups.get(group.name)
            if known is None or not ((known.removed == STAYS) == there).all():
                known = no_scores(group.producers, there)
            groups[group.name] = known
        return replace(scores, normalize_by=self.normalize_by, groups=groups)

    # -- cost -------------------------------------------------------------

    def cost(self) -> dict[str, float]:
        """``flops``, ``params`` and ``acts`` of the network as it is."""
        return self._cost.total()

    def ratio(self, metric: Metric) -> float:
        """Remaining share of a metric, 1 for the original network."""
        return self.ratios()[metric]

    def ratios(self) -> dict[str, float]:
        """Remaining share of every metric."""
        return self._shares(self._cost.total())

    def _shares(self, cost: Mapping[str, float]) -> dict[str, float]:
        return {m: cost[m] / self.cost_before[m] for m in cost}

    def reachable(self, without: Sequence[str] = ()) -> dict[str, float]:
        """Least remaining share of every metric, at the floors.

        Args:
            without (Sequence[str]): Groups that lose nothing.
        """
        units = np.array(
            [
                0
                if group.name in without
                else max(0, (~masked).sum() - self.floor.units(n, group.width))
                for group, masked, n in zip(
                    self.groups, self._masked, self._originals
                )
            ]
        )
        return self._shares(self._cost.without(units))

    # -- scores -----------------------------------------------------------

    def attach(self) -> None:
        """Start observing the network's consumers, if need be."""
        if self._taps is None and self.uses_gradients:
            self._taps = FisherTaps(self.model, self.groups)

    def detach(self) -> None:
        """Stop observing; collected scores stay."""
        if self._taps is not None:
            self._taps.detach()
            self._taps = None

    def of_batch(self, gradients: Tensor) -> Tensor:
        """What a batch adds to the scores: where criteria differ.

        Args:
            gradients (Tensor): (N, U) mask gradients, each of the loss of its
                image alone; loss scales are divided out.

        Returns:
            Tensor: (U,).
        """
        return gradients.square().sum(0)

    def accumulate(
        self,
        scale: float | Tensor = 1.0,
        valid: Tensor | None = None,
        everywhere: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Add the scores of this iteration's images; the host never waits.

        The loss is taken to be a mean over the images, as losses are; it is
        multiplied by their number, so that batches of unequal size count
        every image alike.

        Args:
            scale (float | Tensor): What the loss was multiplied with besides
                (mixed precision, gradient accumulation); of each unit if it
                has shape (U,). Defaults to 1.
            valid (Tensor, optional): Whether the iteration counts, shape ().
                By default it does.
            everywhere (Callable, optional): Turns whether the iteration
                counts in this process into whether it does in all of them,
                which have to call it in every iteration.

        Returns:
            Tensor: Whether it counts and its scores are finite, shape (); if
            not, none is added.
        """
        fine = torch.ones((), dtype=torch.bool, device=self._sums.device)
        if valid is not None:
            fine = fine & valid
        new = self._no_sums()
        if self._taps is not None:
            fine = fine & self._add_batch(self._taps, scale, new)
        if everywhere is not None:
            fine = everywhere(fine)
        self._sums = self._sums + torch.where(fine, new, 0.0)
        return fine

    def _add_batch(
        self, taps: FisherTaps, scale: float | Tensor, sums: Tensor
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

    def share(self, reduce: Callable[[Tensor], None]) -> None:
        """Sum over processes what each has accumulated since the last call.

        All processes have to call it: before choosing (:meth:`prune` does if
        it is given ``reduce``), and before one of them saves the state.

        Args:
            reduce (Callable): Sums a tensor over processes, in place.
        """
        reduce(self._sums)
        self._shared = self._shared + self._sums
        self._sums = self._no_sums()

    def discard(self) -> None:
        """Forget the mask gradients of this iteration."""
        if self._taps is not None:
            self._taps.take()
            self._taps.take_unreached()

    def fisher(self) -> list[np.ndarray]:
        """Accumulated scores per group, shape (size,) each."""
        sizes = np.cumsum([group.size for group in self.groups])[:-1]
        total, *_ = self._split(self._shared + self._sums)
        return list(np.split(total.cpu().numpy(), sizes))

    def images(self) -> dict[str, int]:
        """Images since the last step that gave a gradient, by group.

        With several processes, ask after :meth:`share`.
        """
        _, images, _ = self._split(self._shared + self._sums)
        names = [group.name for group in self.groups]
        return dict(zip(names, map(int, images.tolist())))

    def unscored(self) -> list[str]:
        """Groups of which the time since the last step tells no scores.

        No consumer had a gradient, or all had zeros only; or the input of one
        was out of reach of gradients, as where a hook froze what is before
        it. With several processes, ask after :meth:`share`.
        """
        if not self.uses_gradients:
            return []
        _, images, unreached = self._split(self._shared + self._sums)
        lacks = ((images == 0) | (unreached > 0)).tolist()
        return [group.name for group, no in zip(self.groups, lacks) if no]

    def _split(self, sums: Tensor) -> Sequence[Tensor]:
        """What was summed since the last step, as views of one flat vector.

        Returns:
            Sequence[Tensor]: Scores of the units of all groups, (U,); of each
            group, (G,), images with a mask gradient, and iterations in which
            one of its consumers was out of reach of gradients.
        """
        groups = len(self.groups)
        return sums.split([len(sums) - 2 * groups, groups, groups])

    def _no_sums(self) -> Tensor:
        device = next(self.model.parameters()).device
        size = sum(group.size + 2 for group in self.groups)
        return torch.zeros(size, dtype=torch.float64, device=device)

    # -- removal ----------------------------------------------------------

    def prune(
        self,
        done: Callable[[int], bool],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
        reduce: Callable[[Tensor], None] | None = None,
        agree: Callable[[bytes], None] | None = None,
        iteration: int = 0,
    ) -> list[Removal]:
        """Remove the least important units and reset the scores.

        They are masked at once, and cut out as far as ``cut_to`` has it.
        Groups without scores (:meth:`unscored`) lose nothing and keep what
        they have accumulated.

        Args:
            done (Callable): Given the number of choices made in this call,
                whether to stop; :meth:`ratio` is up to date when it is asked.
            optimizers (Sequence[Optimizer]): Their state is sliced too.
            copies (Sequence[nn.Module]): Copies of the network (EMA) that
                lose the same channels.
            reduce (Callable, optional): See :meth:`share`.
            agree (Callable, optional): Given the choices in bytes, raises if
                other processes have chosen otherwise.
            iteration (int): Training iterations so far, for the record.

        Returns:
            list[Removal]: In order; empty if nothing can be removed.
        """
        if reduce is not None:
            self.share(reduce)
        there = [np.flatnonzero(~masked) for masked in self._masked]
        fisher = [f[units] for f, units in zip(self.fisher(), there)]
        unscored = self.unscored()
        compared = np.array([g.name not in unscored for g in self.groups])
        saving = self._unit_cost()
        selector = Selector(
            fisher,
            [g.width for g in self.groups],
            self._originals,
            self.floor,
            compared,
        )
        taken: list[list[np.ndarray]] = [[] for _ in self.groups]
        removals: list[Removal] = []
        while not done(len(removals)):
            choice = selector.next(self._unit_cost())
            if choice is None:
                break
            g, units = choice
            taken[g].append(units)
            removals.append(
                Removal(self.groups[g].name, len(units) * self.groups[g].width)
            )
            self._cost.remove(_one_hot(g, len(self.groups)) * len(units))
        among = [np.concatenate(u) if u else np.zeros(0, int) for u in taken]
        chosen = [units[u] for units, u in zip(there, among)]
        self._scores = self._scores.after(
            [original[units] for original, units in zip(self._units, there)],
            fisher,
            saving,
            [original[units] for original, units in zip(self._units, chosen)],
            compared,
            iteration,
        )
        if agree is not None:
            agree(b'|'.join(units.tobytes() for units in chosen))
        if removals:
            for masked, units in zip(self._masked, chosen):
                masked[units] = True
            self._cut(self._due(), optimizers, copies)
        self._reset(compared)
        return removals

    def _reset(self, compared: np.ndarray) -> None:
        """Begin anew after a step that has compared these groups, (G,)."""
        total = self._shared + self._sums
        scores, *counts = self._split(total)
        kept = np.where(compared, self.kept_share, 1.0)
        sizes = [group.size for group in self.groups]
        scores *= torch.from_numpy(np.repeat(kept, sizes)).to(scores.device)
        for count in counts:
            count.zero_()
        self._sums, self._shared = self._no_sums(), total

    def cut(
        self,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
    ) -> bool:
        """Cut out all that is masked, as before saving the network.

        Args:
            optimizers (Sequence[Optimizer]): See :meth:`prune`.
            copies (Sequence[nn.Module]): See :meth:`prune`.

        Returns:
            bool: Whether there was anything.
        """
        return self._cut(self._units_masked(), optimizers, copies)

    def _unit_cost(self) -> np.ndarray:
        """What scores are divided by: one unit's saving, shape (G,)."""
        if self.normalize_by == 'none':
            return np.ones(len(self.groups))
        return self._cost.marginal(self.normalize_by)

    def _due(self) -> list[np.ndarray]:
        """Masked units without which the rest is as wide as it may be."""
        due: list[np.ndarray] = []
        for group, units in zip(self.groups, self._units_masked()):
            if self.cut_to == 0:
                due.append(units[:0])
                continue
            step = self.cut_to // gcd(self.cut_to, group.width)
            left = group.size - len(units)
            padding = -left % step
            due.append(units[: max(0, len(units) - padding)])
        return due

    def _cut(
        self,
        gone: Sequence[np.ndarray],
        optimizers: Sequence[torch.optim.Optimizer],
        copies: Sequence[nn.Module],
    ) -> bool:
        """Slice the network, its copies and the optimisers' state."""
        self._mask.lift()
        cut = any(len(units) for units in gone)
        if cut:
            sizes = axis_sizes(self.model, self.groups)
            keep = kept_positions(self.groups, gone, sizes)
            for optimizer in optimizers:
                slice_optimizer(optimizer, self.model, keep)
            for copy in copies:
                slice_model(copy, keep)
            for follow in self.on_cut:
                follow(keep)
            slice_model(self.model, keep)
            self._structure = replace(
                self._structure, axes=self._structure.compose(keep, sizes)
            )
            self._shared, self._sums = self._sums_without(gone)
            self.groups = shrink_groups(self.groups, gone, keep, sizes)
            self._masked = _without(self._masked, gone)
            self._units = _without(self._units, gone)
            self.cuts += 1
            if self._taps is not None:
                self.detach()
                self.attach()
        self._mask.put(self.groups, self._units_masked(), optimizers, copies)
        return cut

    def _sums_without(
        self, gone: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        """Both vectors of sums, without some units of each group."""
        stays = [
            np.isin(np.arange(group.size), units, invert=True)
            for group, units in zip(self.groups, gone)
        ]
        counts = np.ones(2 * len(self.groups), bool)
        index = torch.from_numpy(np.concatenate([*stays, counts]))
        index = index.to(self._sums.device)
        return self._shared[index], self._sums[index]

    # -- what is kept -----------------------------------------------------

    def structure(
        self, source: str = '', input_shape: Sequence[int] = ()
    ) -> Structure:
        """The structure of the network without what is masked."""
        sizes = axis_sizes(self.model, self.groups)
        return replace(
            self._structure,
            axes=self._structure.compose(self.unmasked(), sizes),
            architecture=type(self.model).__name__,
            source=source,
            input_shape=tuple(input_shape),
            cost_before=self.cost_before,
            cost_after=self.cost(),
            scores=self._scores if self._scores.step else None,
        )

    @property
    def masked(self) -> bool:
        """Whether removed channels are still there: see :meth:`cut`."""
        return any(masked.any() for masked in self._masked)

    def unmasked(self) -> Keep:
        """Positions that stay of each axis without what is masked."""
        sizes = axis_sizes(self.model, self.groups)
        return kept_positions(self.groups, self._units_masked(), sizes)

    def _units_masked(self) -> list[np.ndarray]:
        return [np.flatnonzero(masked) for masked in self._masked]

    def state_dict(self) -> dict[str, Any]:
        """Scores since the last removal, by group; plain types and tensors.

        They are those of the network without what is masked.
        """
        scores, *counts = self._split((self._shared + self._sums).cpu())
        names = [group.name for group in self.groups]
        by_group = scores.split([group.size for group in self.groups])
        images, unreached = (map(int, count.tolist()) for count in counts)
        return {
            'fisher': {
                name: part[torch.from_numpy(~masked)]
                for name, part, masked in zip(names, by_group, self._masked)
            },
            'images': dict(zip(names, images)),
            'unreached': dict(zip(names, unreached)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` on the same slim network.

        Raises:
            ValueError: If the groups are not the ones it was saved for.
        """
        saved = state['fisher']
        for group in self.groups:
            found = saved.get(group.name)
            if found is None or len(found) != group.size:
                raise ValueError(
                    f'the checkpoint holds scores of '
                    f'{"no" if found is None else len(found)} units for the '
                    f'channel group {group.name}, expected {group.size}: '
                    'resume with the config that was interrupted'
                )
        names = [group.name for group in self.groups]
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
        self._sums = self._no_sums()


def _why_frozen(groups: Sequence[ChannelGroup]) -> str:
    reasons = sorted({group.frozen for group in groups})
    if not reasons:
        return 'the network has no layer that feeds another one'
    return '; '.join(reasons[:5])


def _without(
    arrays: Sequence[np.ndarray], gone: Sequence[np.ndarray]
) -> list[np.ndarray]:
    return [np.delete(array, units) for array, units in zip(arrays, gone)]


def _one_hot(index: int, size: int) -> np.ndarray:
    vector = np.zeros(size)
    vector[index] = 1
    return vector
