"""Positions that a cut keeps of each axis, and the groups afterwards.

Names and integers only; :mod:`mmgfp.slimming.surgery` cuts the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from ..groups import ATTRIBUTE, ChannelGroup, Member, Tap, UnitSpace
from .structure import Structure
from .surgery import Keep, length_of, named_tensors, read_width

Sizes = Mapping[tuple[str, int], int]


def axis_sizes(model: nn.Module, groups: Sequence[ChannelGroup]) -> Sizes:
    """Returns the current size of every axis and attribute of the groups."""
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
    groups: Sequence[ChannelGroup], cut: Sequence[np.ndarray], sizes: Sizes
) -> Keep:
    """Returns the kept positions of every axis that is cut.

    Args:
        groups (Sequence[ChannelGroup]): All groups.
        cut (Sequence[np.ndarray]): Per group the units to cut.
        sizes (Mapping): See :func:`axis_sizes`.
    """
    removed: dict[tuple[str, int], list[np.ndarray]] = {}
    for group, units in zip(groups, cut):
        if len(units):
            for member in group.members:
                removed.setdefault((member.tensor, member.axis), []).append(
                    member.index[units].ravel()
                )
    return {
        key: np.setdiff1d(np.arange(sizes[key]), np.concatenate(parts))
        for key, parts in removed.items()
    }


def masked_positions(
    groups: Sequence[ChannelGroup], masked: Sequence[np.ndarray]
) -> dict[tuple[str, int], np.ndarray]:
    """Returns the positions along the consumers' axes that read some units.

    Zeros there mask the units. For a weight that is stored as direction and
    length (``torch.nn.utils.weight_norm``) they are positions of the length.

    Args:
        groups (Sequence[ChannelGroup]): All groups.
        masked (Sequence[np.ndarray]): Per group the units.
    """
    read: dict[tuple[str, int], list[np.ndarray]] = {}
    for group, units in zip(groups, masked):
        members = {(m.tensor, m.axis): m for m in group.members}
        for key, member in members.items() if len(units) else ():
            if member.role in ('consumer', 'grouped'):
                # a direction of zeros would divide by a norm of zero
                length = (length_of(member.tensor), member.axis)
                if length in members:
                    key, member = length, members[length]
                read.setdefault(key, []).append(member.index[units].ravel())
    return {key: np.concatenate(parts) for key, parts in read.items()}


def cut_space(
    units: UnitSpace, cut: Sequence[np.ndarray], keep: Keep, sizes: Sizes
) -> UnitSpace:
    """Returns the units of the network after a cut, renumbered.

    Args:
        units (UnitSpace): All units before the cut.
        cut (Sequence[np.ndarray]): Per group the units that are cut.
        keep (Keep): Positions of each axis that are kept by all groups.
        sizes (Mapping): Sizes before the cut.
    """
    groups = [
        _cut_group(group, gone, keep, sizes)
        for group, gone in zip(units.groups, cut)
    ]
    numbers = [np.delete(n, gone) for n, gone in zip(units.numbers, cut)]
    return UnitSpace(groups, numbers)


def cut_units(
    groups: Sequence[ChannelGroup], structure: Structure
) -> list[np.ndarray]:
    """Returns the units of the original groups that a structure has cut.

    Raises:
        ValueError: If the structure has cut only a part of a unit.
    """
    return [_cut_units(group, structure) for group in groups]


def _cut_units(group: ChannelGroup, structure: Structure) -> np.ndarray:
    parts = []
    for member in group.members:
        axis = structure.axes.get((member.tensor, member.axis))
        kept = np.arange(member.index.max() + 1) if axis is None else axis.keep
        there = np.isin(member.index, kept)
        parts.append(~there.any(1))
        whole = np.asarray(parts[-1])
        if not (whole == parts[0]).all() or not (whole | there.all(1)).all():
            raise ValueError(
                f'the structure of {structure.architecture} has cut only a '
                f'part of some channels of the group {group.name} (see '
                f'{member.tensor}, axis {member.axis}); expected the config '
                'that was pruned and the mmgfp that pruned it'
            )
    return np.flatnonzero(parts[0])


def _cut_group(
    group: ChannelGroup, units: np.ndarray, keep: Keep, sizes: Sizes
) -> ChannelGroup:
    stay = np.setdiff1d(np.arange(group.size), units)
    new_unit = np.full(group.size + 1, -1)  # the last one maps -1 to -1
    new_unit[stay] = np.arange(len(stay))
    members = tuple(_cut_member(m, stay, keep, sizes) for m in group.members)
    taps = tuple(_cut_tap(tap, new_unit, keep, sizes) for tap in group.taps)
    return replace(group, size=len(stay), members=members, taps=taps)


def _cut_member(
    member: Member, stay: np.ndarray, keep: Keep, sizes: Sizes
) -> Member:
    key = member.tensor, member.axis
    return replace(
        member, index=_renumber(key, keep, sizes)[member.index[stay]]
    )


def _cut_tap(tap: Tap, new_unit: np.ndarray, keep: Keep, sizes: Sizes) -> Tap:
    """Returns the tap without the input channels that any group cuts."""
    position = _renumber((tap.weight, tap.axis), keep, sizes)[tap.position]
    stay = position >= 0
    return replace(tap, position=position[stay], unit=new_unit[tap.unit[stay]])


def _renumber(key: tuple[str, int], keep: Keep, sizes: Sizes) -> np.ndarray:
    """Returns the new position of every old one, -1 for those cut."""
    kept = keep.get(key, np.arange(sizes[key]))
    position = np.full(sizes[key], -1)
    position[kept] = np.arange(len(kept))
    return position
