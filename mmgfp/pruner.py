"""The pruner: accumulates scores, chooses units and removes them.

The only object of the core with state. Needs torch alone; a training loop of
any kind calls :meth:`GroupFisherPruner.accumulate` after each backward and
:meth:`GroupFisherPruner.prune` every so often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .cost import METRICS, Calls, CostModel, Metric
from .fisher import FisherTaps
from .groups import ChannelGroup, Member, Tap
from .selection import Floor, Selector
from .structure import Structure
from .surgery import Keep, named_tensors, slice_model, slice_optimizer

Normalizer = Literal['acts', 'flops', 'none']


@dataclass(frozen=True)
class Removal:
    """One choice: units of a group that were removed together.

    Attributes:
        group (str): Name of the group.
        channels (int): Channels its first producer lost.
    """

    group: str
    channels: int


class GroupFisherPruner:
    """Group Fisher Pruning of one network (paper, Algorithm 2).

    Args:
        model (nn.Module): The network, bare (not wrapped for DDP).
        groups (Sequence[ChannelGroup]): From
            :func:`mmgfp.finder.find_groups`; frozen ones are left alone.
        calls (Calls): From :func:`mmgfp.cost.record_calls`.
        normalize_by (str): What scores are divided by: 'acts', 'flops' or
            'none'. Defaults to 'acts'.
        floor (Floor, optional): What must stay of each group.
        structure (Structure, optional): What the network has lost before.
            Its tensors, and the cost of the original, are taken from there.

    Raises:
        ValueError: If there is no prunable group.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        calls: Calls,
        normalize_by: Normalizer = 'acts',
        floor: Floor | None = None,
        structure: Structure | None = None,
    ) -> None:
        self.model = model
        self.groups = [group for group in groups if not group.frozen]
        if not self.groups:
            raise ValueError(
                'no channel group can be pruned: ' + _why_frozen(groups)
            )
        self.normalize_by = normalize_by
        self.floor = floor or Floor()
        self._originals = _original_sizes(self.groups, structure)
        self._cost = CostModel(model, self.groups, calls)
        self.cost_before = (
            dict(structure.cost_before) if structure else self._cost.total()
        )
        self._structure = structure or Structure({})
        self._fisher = [np.zeros(group.size) for group in self.groups]
        self._pending: Tensor | None = None
        self._taps: FisherTaps | None = None

    # -- cost -------------------------------------------------------------

    def cost(self) -> dict[str, float]:
        """``flops``, ``params`` and ``acts`` of the network as it is."""
        return self._cost.total()

    def ratio(self, metric: Metric) -> float:
        """Remaining share of a metric, 1 for the original network."""
        return self._cost.total()[metric] / self.cost_before[metric]

    def reachable(self) -> dict[str, float]:
        """Least remaining share of every metric, at the floors."""
        units = np.array(
            [
                max(0, group.size - self.floor.units(original, group.width))
                for group, original in zip(self.groups, self._originals)
            ]
        )
        cost = self._cost.without(units)
        return {m: cost[m] / self.cost_before[m] for m in METRICS}

    # -- scores -----------------------------------------------------------

    def attach(self) -> None:
        """Start observing the network's consumers."""
        if self._taps is None:
            self._taps = FisherTaps(self.model, self.groups)

    def detach(self) -> None:
        """Stop observing; collected scores stay."""
        if self._taps is not None:
            self._taps.detach()
            self._taps = None

    def batch_is_finite(self) -> bool:
        """Whether the mask gradients of this iteration are all finite."""
        buffer = self._taps.buffer if self._taps else None
        return buffer is None or bool(torch.isfinite(buffer).all())

    def accumulate(self, scale: float = 1.0) -> None:
        """Square and add the mask gradients of this iteration.

        Args:
            scale (float): What the loss was multiplied with (mixed
                precision). Defaults to 1.
        """
        gradients = self._taps.take() if self._taps else None
        if gradients is None:
            return
        fisher = (gradients / scale).double().square().sum(0)
        self._pending = (
            fisher if self._pending is None else self._pending + fisher
        )

    def discard(self) -> None:
        """Forget the mask gradients of this iteration."""
        if self._taps is not None:
            self._taps.take()

    def fisher(
        self, reduce: Callable[[Tensor], None] | None = None
    ) -> list[np.ndarray]:
        """Accumulated scores per group, shape (size,) each.

        Args:
            reduce (Callable, optional): Sums a tensor over processes in
                place.
        """
        total = self._flat()
        if reduce is not None:
            reduce(total)
        return self._split(total.cpu().numpy())

    def _flat(self) -> Tensor:
        stored = torch.from_numpy(np.concatenate(self._fisher))
        if self._pending is None:
            device = next(self.model.parameters()).device
            return stored.to(device)
        return self._pending + stored.to(self._pending.device)

    def _split(self, flat: np.ndarray) -> list[np.ndarray]:
        sizes = np.cumsum([group.size for group in self.groups])[:-1]
        return list(np.split(flat, sizes))

    def _reset(self) -> None:
        self._fisher = [np.zeros(group.size) for group in self.groups]
        self._pending = None

    # -- removal ----------------------------------------------------------

    def prune(
        self,
        done: Callable[[int], bool],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
        reduce: Callable[[Tensor], None] | None = None,
    ) -> list[Removal]:
        """Remove the least important units and reset the scores.

        Args:
            done (Callable): Given the number of choices made in this call,
                whether to stop; :meth:`ratio` is up to date when it is asked.
            optimizers (Sequence[Optimizer]): Their state is sliced too.
            copies (Sequence[nn.Module]): Copies of the network (EMA) that
                lose the same channels.
            reduce (Callable, optional): See :meth:`fisher`.

        Returns:
            list[Removal]: In order; empty if nothing can be removed.
        """
        selector = Selector(
            self.fisher(reduce),
            [g.width for g in self.groups],
            self._originals,
            self.floor,
        )
        gone: list[list[np.ndarray]] = [[] for _ in self.groups]
        removals: list[Removal] = []
        while not done(len(removals)):
            choice = selector.next(self._unit_cost())
            if choice is None:
                break
            g, units = choice
            gone[g].append(units)
            removals.append(
                Removal(self.groups[g].name, len(units) * self.groups[g].width)
            )
            self._cost.remove(_one_hot(g, len(self.groups)) * len(units))
        if removals:
            self._remove(
                [np.concatenate(u) if u else np.zeros(0, int) for u in gone],
                optimizers,
                copies,
            )
        self._reset()
        return removals

    def _unit_cost(self) -> np.ndarray:
        """What scores are divided by: one unit's saving, shape (G,)."""
        if self.normalize_by == 'none':
            return np.ones(len(self.groups))
        return self._cost.marginal(self.normalize_by)

    def _remove(
        self,
        gone: Sequence[np.ndarray],
        optimizers: Sequence[torch.optim.Optimizer],
        copies: Sequence[nn.Module],
    ) -> None:
        """Slice the network, its copies and the optimisers' state."""
        tensors = named_tensors(self.model)
        sizes = {
            (m.tensor, m.axis): tensors[m.tensor].shape[m.axis]
            for group in self.groups
            for m in group.members
        }
        keep = _keep(self.groups, gone, sizes)
        for optimizer in optimizers:
            slice_optimizer(optimizer, self.model, keep)
        for copy in copies:
            slice_model(copy, keep)
        slice_model(self.model, keep)
        self._structure = replace(
            self._structure, axes=self._structure.compose(keep, sizes)
        )
        self.groups = [
            _shrink_group(group, units, keep, sizes)
            for group, units in zip(self.groups, gone)
        ]
        if self._taps is not None:
            self.detach()
            self.attach()

    # -- what is kept -----------------------------------------------------

    def structure(
        self, source: str = '', input_shape: Sequence[int] = ()
    ) -> Structure:
        """The structure of the network as it is."""
        return replace(
            self._structure,
            architecture=type(self.model).__name__,
            source=source,
            input_shape=tuple(input_shape),
            cost_before=self.cost_before,
            cost_after=self.cost(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Scores since the last removal, by group; plain types and tensors."""
        flat = self._split(self._flat().cpu().numpy())
        return {
            'fisher': {
                group.name: torch.from_numpy(f.copy())
                for group, f in zip(self.groups, flat)
            }
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
        self._fisher = [
            saved[group.name].double().numpy().copy() for group in self.groups
        ]
        self._pending = None


def _why_frozen(groups: Sequence[ChannelGroup]) -> str:
    reasons = sorted({group.frozen for group in groups})
    if not reasons:
        return 'the network has no layer that feeds another one'
    return '; '.join(reasons[:5])


def _one_hot(index: int, size: int) -> np.ndarray:
    vector = np.zeros(size)
    vector[index] = 1
    return vector


def _original_sizes(
    groups: Sequence[ChannelGroup], structure: Structure | None
) -> list[int]:
    """Units each group had in the original network.

    Every unit takes the same number of slices from a member's axis, so the
    share of the axis that is left tells how many units went - unless several
    groups share the axis; then the smallest axis-wide estimate is used.
    """
    if structure is None:
        return [group.size for group in groups]
    sizes = []
    for group in groups:
        estimate = group.size
        for member in group.members:
            axis = structure.axes.get((member.tensor, member.axis))
            if axis is not None and len(axis.keep) == member.index.size:
                estimate = max(estimate, axis.size // member.width)
        sizes.append(estimate)
    return sizes


def _keep(
    groups: Sequence[ChannelGroup],
    gone: Sequence[np.ndarray],
    sizes: Mapping[tuple[str, int], int],
) -> Keep:
    """Positions that stay of every axis that loses something."""
    lost: dict[tuple[str, int], list[np.ndarray]] = {}
    for group, units in zip(groups, gone):
        if len(units):
            for member in group.members:
                lost.setdefault((member.tensor, member.axis), []).append(
                    member.index[units].ravel()
                )
    return {
        key: np.setdiff1d(np.arange(sizes[key]), np.concatenate(parts))
        for key, parts in lost.items()
    }


def _shrink_group(
    group: ChannelGroup,
    units: np.ndarray,
    keep: Keep,
    sizes: Mapping[tuple[str, int], int],
) -> ChannelGroup:
    """Renumber a group after removal, here and in its neighbours."""
    stay = np.setdiff1d(np.arange(group.size), units)
    new_unit = np.full(group.size + 1, -1)  # the last one maps -1 to -1
    new_unit[stay] = np.arange(len(stay))
    members = tuple(
        _shrink_member(m, stay, keep, sizes) for m in group.members
    )
    taps = tuple(_shrink_tap(tap, new_unit, keep, sizes) for tap in group.taps)
    return replace(group, size=len(stay), members=members, taps=taps)


def _shrink_member(
    member: Member,
    stay: np.ndarray,
    keep: Keep,
    sizes: Mapping[tuple[str, int], int],
) -> Member:
    key = member.tensor, member.axis
    return replace(
        member, index=_renumber(key, keep, sizes)[member.index[stay]]
    )


def _shrink_tap(
    tap: Tap,
    new_unit: np.ndarray,
    keep: Keep,
    sizes: Mapping[tuple[str, int], int],
) -> Tap:
    """Drop the input channels that went, of whatever group they were."""
    position = _renumber((tap.weight, tap.axis), keep, sizes)[tap.position]
    stay = position >= 0
    return replace(tap, position=position[stay], unit=new_unit[tap.unit[stay]])


def _renumber(
    key: tuple[str, int], keep: Keep, sizes: Mapping[tuple[str, int], int]
) -> np.ndarray:
    """New position of every old one along an axis, -1 for removed ones."""
    kept = keep.get(key, np.arange(sizes[key]))
    position = np.full(sizes[key], -1)
    position[kept] = np.arange(len(kept))
    return position
