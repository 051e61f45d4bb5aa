"""Bookkeeping of removal: which positions stay, and the groups afterwards.

Names and integers only; :mod:`mmgfp.slimming.surgery` cuts the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from ..groups import ATTRIBUTE, ChannelGroup, Member, Tap
from .structure import Structure
from .surgery import Keep, length_of, named_tensors, read_width

Sizes = Mapping[tuple[str, int], int]


def axis_sizes(model: nn.Module, groups: Sequence[ChannelGroup]) -> Sizes:
    """Current size of every axis and attribute that shrinks with groups."""
    tensors = named_tensors(model)
    keys = {(m.tensor, m.axis) for g in groups for m in g.members}
    keys |= {(t.weight, t.axis) for g in groups for t in g.taps}
    return {
        (name, axis): read_width(model, name) or 0
        if axis == ATTRIBUTE
        else tensors[name].shape[axis]
        for name, axis in keys
    }


def kept_positions(
    groups: Sequence[ChannelGroup], gone: Sequence[np.ndarray], sizes: Sizes
) -> Keep:
    """Positions that stay of every axis that loses something.

    Args:
        groups (Sequence[ChannelGroup]): All groups.
        gone (Sequence[np.ndarray]): Per group the units that go.
        sizes (Mapping): See :func:`axis_sizes`.
    """
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


def consumed_positions(
    groups: Sequence[ChannelGroup], gone: Sequence[np.ndarray]
) -> dict[tuple[str, int], np.ndarray]:
    """Positions along the consumers' axes that read some units.

    Zeros there leave nothing of them. Of a weight that is stored as direction
    and length (``torch.nn.utils.weight_norm``) they are those of the length.

    Args:
        groups (Sequence[ChannelGroup]): All groups.
        gone (Sequence[np.ndarray]): Per group the units.
    """
    read: dict[tuple[str, int], list[np.ndarray]] = {}
    for group, units in zip(groups, gone):
        members = {(m.tensor, m.axis): m for m in group.members}
        for key, member in members.items() if len(units) else ():
            if member.role in ('consumer', 'grouped'):
                # without a direction there is no norm to divide by
                length = (length_of(member.tensor), member.axis)
                if length in members:
                    key, member = length, members[length]
                read.setdefault(key, []).append(member.index[units].ravel())
    return {key: np.concatenate(parts) for key, parts in read.items()}


def shrink_groups(
    groups: Sequence[ChannelGroup],
    gone: Sequence[np.ndarray],
    keep: Keep,
    sizes: Sizes,
) -> list[ChannelGroup]:
    """The same groups in the network that is left, renumbered.

    Args:
        groups (Sequence[ChannelGroup]): Before the removal.
        gone (Sequence[np.ndarray]): Per group the units that go.
        keep (Keep): What stays of each axis, whatever group went.
        sizes (Mapping): Sizes before the removal.
    """
    return [
        _shrink_group(group, units, keep, sizes)
        for group, units in zip(groups, gone)
    ]


def lost_units(
    groups: Sequence[ChannelGroup], structure: Structure
) -> list[np.ndarray]:
    """Units of the original network's groups that a structure lacks.

    Raises:
        ValueError: If the structure lacks only a part of a unit.
    """
    return [_lost_units(group, structure) for group in groups]


def _lost_units(group: ChannelGroup, structure: Structure) -> np.ndarray:
    parts = []
    for member in group.members:
        axis = structure.axes.get((member.tensor, member.axis))
        kept = np.arange(member.index.max() + 1) if axis is None else axis.keep
        there = np.isin(member.index, kept)
        parts.append(~there.any(1))
        lost = np.asarray(parts[-1])
        if not (lost == parts[0]).all() or not (lost | there.all(1)).all():
            raise ValueError(
                f'the structure of {structure.architecture} removes only a '
                f'part of some channels of the group {group.name} (see '
                f'{member.tensor}, axis {member.axis}); expected the config '
                'that was pruned and the mmgfp that pruned it'
            )
    return np.flatnonzero(parts[0])


def _shrink_group(
    group: ChannelGroup, units: np.ndarray, keep: Keep, sizes: Sizes
) -> ChannelGroup:
    stay = np.setdiff1d(np.arange(group.size), units)
    new_unit = np.full(group.size + 1, -1)  # the last one maps -1 to -1
    new_unit[stay] = np.arange(len(stay))
    members = tuple(
        _shrink_member(m, stay, keep, sizes) for m in group.members
    )
    taps = tuple(_shrink_tap(tap, new_unit, keep, sizes) for tap in group.taps)
    return replace(group, size=len(stay), members=members, taps=taps)


def _shrink_member(
    member: Member, stay: np.ndarray, keep: Keep, sizes: Sizes
) -> Member:
    key = member.tensor, member.axis
    return replace(
        member, index=_renumber(key, keep, sizes)[member.index[stay]]
    )


def _shrink_tap(
    tap: Tap, new_unit: np.ndarray, keep: Keep, sizes: Sizes
) -> Tap:
    """Drop the input channels that went, of whatever group they were."""
    position = _renumber((tap.weight, tap.axis), keep, sizes)[tap.position]
    stay = position >= 0
    return replace(tap, position=position[stay], unit=new_unit[tap.unit[stay]])


def _renumber(key: tuple[str, int], keep: Keep, sizes: Sizes) -> np.ndarray:
    """New position of every old one along an axis, -1 for removed ones."""
    kept = keep.get(key, np.arange(sizes[key]))
    position = np.full(sizes[key], -1)
    position[kept] = np.arange(len(kept))
    return position
