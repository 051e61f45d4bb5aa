"""From the trace of a network to its channel groups.

The slots of a :class:`~mmgfp.tracing.slots.Trace` that are coupled, directly
or not, form a unit (Group Fisher paper, Section 3.2 and Algorithm 1; here
connected components, which do not depend on the order of the layers). Units
with slots in the same axes form a channel group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..groups import ATTRIBUTE, ChannelGroup, Member, Role, Tap
from .slots import Trace, Use


def build_groups(trace: Trace) -> list[ChannelGroup]:
    """Turn a trace into channel groups, in execution order.

    Args:
        trace (Trace): The facts of one forward.

    Returns:
        list[ChannelGroup]: Prunable groups, and frozen groups with the
        reason. Channels without consumers and producers are left out.
    """
    table = trace.table
    component = trace.components()
    reasons = _reasons(trace, component)
    axis_of = table.axis_ids(np.arange(len(table)))
    roles = _roles(trace)
    involved = np.zeros(len(table), dtype=bool)
    for tensor, axis in roles:
        involved[table.slots(tensor, axis)] = True
    involved |= np.isin(component, component[trace.edges.ravel()])

    slots = np.flatnonzero(involved)
    slots = slots[np.argsort(component[slots], kind='stable')]
    pieces = np.split(slots, np.flatnonzero(np.diff(component[slots])) + 1)
    alike: dict[tuple[str, bytes], list[np.ndarray]] = defaultdict(list)
    for piece in pieces:  # slots ascend, so axes are in order, too
        if piece.size:
            reason = reasons.get(int(component[piece[0]]), '')
            alike[reason, axis_of[piece].tobytes()].append(piece)

    uses = [(use, np.array(use.slots)) for use in trace.uses]
    groups = []
    for (reason, _), units in alike.items():
        group = _group(trace, uses, np.stack(units), axis_of, roles, reason)
        if group is not None:
            groups.append(group)
    groups.sort(key=lambda g: _rank(g, trace))
    return _named(groups)


def _reasons(trace: Trace, component: np.ndarray) -> dict[int, str]:
    """Returns the first reason found for each frozen component."""
    reasons: dict[int, str] = {}
    for slots, reason in trace.frozen:
        for c in np.unique(component[slots]):
            reasons.setdefault(int(c), reason)
    return reasons


def _roles(trace: Trace) -> dict[tuple[str, int], Role]:
    roles: dict[tuple[str, int], Role] = {
        key: 'width' for key in trace.table.axes if key[1] == ATTRIBUTE
    }
    for weight, axis, _ in trace.issued:
        roles[weight, axis] = 'producer'
    for use in trace.uses:
        roles[use.weight, use.axis] = 'grouped' if use.grouped else 'consumer'
    return roles


def _group(
    trace: Trace,
    uses: Sequence[tuple[Use, np.ndarray]],
    units: np.ndarray,
    axis_of: np.ndarray,
    roles: dict[tuple[str, int], Role],
    reason: str,
) -> ChannelGroup | None:
    """Build one group from slots, (size, slots per unit)."""
    table = trace.table
    members = []
    axes = axis_of[units[0]]  # equal for all units of a group
    for axis_id in np.unique(axes):
        tensor, axis = table.axes[axis_id]
        index = units[:, axes == axis_id]
        members.append(
            Member(
                tensor,
                axis,
                index - table.starts[axis_id],
                roles.get((tensor, axis), 'affine'),
            )
        )
    members.sort(
        key=lambda m: (trace.order.get(m.tensor, len(trace.order)), m.axis)
    )
    if all(m.role in ('affine', 'width') for m in members):
        return None
    first = next(
        (m for m in members if m.role in ('producer', 'grouped')), members[0]
    )
    order = np.argsort(first.index[:, 0], kind='stable')
    members = [replace(m, index=m.index[order]) for m in members]
    taps, blind = _taps(trace, uses, units[order])
    return ChannelGroup(
        '',
        len(units),
        tuple(members),
        taps,
        reason or blind or _incomplete(members),
    )


def _incomplete(members: Sequence[Member]) -> str:
    roles = {m.role for m in members}
    if not roles & {'producer', 'grouped'}:
        return 'no layer produces these channels'
    if not roles & {'consumer', 'grouped'}:
        return 'no layer consumes these channels'
    return ''


def _taps(
    trace: Trace,
    uses: Sequence[tuple[Use, np.ndarray]],
    units: np.ndarray,
) -> tuple[tuple[Tap, ...], str]:
    """Returns the taps of the units; a reason if a consumer has no tap."""
    unit_of = np.full(len(trace.table), -1)
    unit_of[units] = np.arange(len(units))[:, None]
    taps, seen = [], set()
    for use, slots in uses:
        unit = unit_of[slots]
        if (unit < 0).all():
            continue
        if use.module is None:
            return (), (
                f'{use.weight} is used by code outside the layer that owns it'
            )
        if use.module not in seen:
            seen.add(use.module)
            start = trace.table.slots(use.weight, use.axis)[0]
            taps.append(
                Tap(
                    use.module,
                    use.channel_axis,
                    use.weight,
                    use.axis,
                    slots - start,
                    unit,
                )
            )
    return tuple(taps), ''


def _rank(group: ChannelGroup, trace: Trace) -> tuple:
    first = next(
        (m for m in group.members if m.role in ('producer', 'grouped')),
        group.members[0],
    )
    return (
        trace.order.get(first.tensor, len(trace.order)),
        first.axis,
        int(first.index[0, 0]),
    )


def _named(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Name groups after their first producer; number repeated names."""
    count: dict[str, int] = defaultdict(int)
    named = []
    for group in groups:
        if group.producers:
            base = group.producers[0]
        else:
            base = f'input of {(group.consumers or group.layers("affine"))[0]}'
        count[base] += 1
        suffix = f'#{count[base]}' if count[base] > 1 else ''
        named.append(replace(group, name=base + suffix))
    return named
