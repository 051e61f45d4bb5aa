"""Channel groups: which channels must go together, and where they live.

The slots of a :class:`~mmgfp.slots.Trace` that are coupled, directly or not,
form a *unit*: what the paper calls coupled channels (Section 3.2 and
Algorithm 1, here as connected components, which do not depend on the order of
the layers). Units that live in the same places form a *channel group*.

This file knows names and integers. It does not touch weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .layouts import ROW_PER_IMAGE, Layout
from .slots import ATTRIBUTE, Trace, Use, layer_of

Role = Literal['producer', 'consumer', 'grouped', 'affine', 'width']


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one tensor that loses slices with a group.

    Attributes:
        tensor (str): Name of the parameter or buffer, or of an attribute
            that counts channels.
        axis (int): Axis that is sliced; :data:`~mmgfp.slots.ATTRIBUTE` for
            an attribute.
        index (np.ndarray): (size, k) positions along that axis, one row per
            unit; k is 1 for a plain layer, C / g for a grouped one, 49 for a
            linear layer behind 7x7 features.
        role (str): 'producer' (loses outputs), 'consumer' (loses inputs),
            'grouped' (a grouped convolution loses both at once), 'affine'
            (per-channel weights, biases and statistics) or 'width' (an
            attribute that counts them).
    """

    tensor: str
    axis: int
    index: np.ndarray
    role: Role

    @property
    def layer(self) -> str:
        """Name of the module that owns the tensor."""
        return layer_of(self.tensor)

    @property
    def width(self) -> int:
        """Slices that go with one unit."""
        return self.index.shape[1]


@dataclass(frozen=True, eq=False)
class Tap:
    """Where the mask gradient of a group is observed.

    Attributes:
        module (str): The consumer whose first argument carries the channels.
        channel_axis (int): The axis of that argument which carries them.
        weight (str): The consumer's weight.
        axis (int): The weight's axis that loses the channels.
        position (np.ndarray): (C,) where along it each input channel is.
        unit (np.ndarray): (C,) unit of the group per input channel, -1 for
            channels of other groups.
        layout (Layout): Which image each row of that argument belongs to.
    """

    module: str
    channel_axis: int
    weight: str
    axis: int
    position: np.ndarray
    unit: np.ndarray
    layout: Layout = ROW_PER_IMAGE


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that live in the same layers and are pruned independently.

    Attributes:
        name (str): Its first producer in execution order, numbered if several
            groups share that.
        size (int): Number of units.
        members (tuple[Member, ...]): Everything that is sliced.
        taps (tuple[Tap, ...]): One per consumer.
        frozen (str): Why it must not be pruned; '' if it may be.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    taps: tuple[Tap, ...]
    frozen: str = ''

    def layers(self, *roles: Role) -> list[str]:
        """Names of the member layers with one of these roles."""
        return list(
            dict.fromkeys(m.layer for m in self.members if m.role in roles)
        )

    @property
    def producers(self) -> list[str]:
        """Layers that lose outputs (the paper's parents)."""
        return self.layers('producer', 'grouped')

    @property
    def consumers(self) -> list[str]:
        """Layers that lose inputs (the paper's children)."""
        return self.layers('consumer', 'grouped')

    @property
    def width(self) -> int:
        """Channels that one unit removes from the first producer."""
        return next(
            (
                m.width
                for m in self.members
                if m.role in ('producer', 'grouped')
            ),
            1,
        )

    @property
    def channels(self) -> int:
        """Channels of the first producer that belong to the group."""
        return self.size * self.width

    @property
    def internal(self) -> bool:
        """Whether a single layer consumes what a single layer produces.

        Grouped convolutions in between do not count (the paper's "-I").
        """
        return (
            len(self.layers('producer')) == 1
            and len(self.layers('consumer')) == 1
        )

    def freeze(self, reason: str) -> ChannelGroup:
        """The same group, not to be pruned."""
        return replace(self, frozen=reason)


def build_groups(trace: Trace) -> list[ChannelGroup]:
    """Turn a trace into channel groups, in execution order.

    Returns:
        list[ChannelGroup]: Prunable ones and frozen ones; the latter carry
        the reason. Channels that nothing consumes or produces are left out.
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
    for piece in pieces:  # ascending, so its axes are in order as well
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
    """Why a component is frozen; the first reason found tells."""
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
    """Build one group from (size, slots per unit) slots."""
    table = trace.table
    members = []
    axes = axis_of[units[0]]  # the same for every unit
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
    """Observation points of the units; a reason if one cannot be observed."""
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
    """Name groups after their first producer, numbering the repeated."""
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
