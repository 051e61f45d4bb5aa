"""Channel groups: which channels are cut together, and where they are.

Slots of a network (one slice of one axis of a parameter or buffer) that are
coupled, directly or not, form a *unit*: what the paper calls coupled channels
(Section 3.2). Units in the same places form a *channel group*.

This file handles names and integers, no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .rows import ROW_PER_IMAGE, Layout

# Instead of an axis: the channels that an attribute of a module counts.
ATTRIBUTE = -1

Role = Literal['producer', 'consumer', 'grouped', 'affine', 'width']


def layer_of(name: str) -> str:
    """Returns the module that a parameter or buffer belongs to.

    Tensors that ``torch.nn.utils.parametrize`` adds belong to the layer. A
    tensor of the network itself is returned as it is.

    Args:
        name (str): Such as ``'conv1.weight'`` or
            ``'conv1.parametrizations.weight.original1'``.
    """
    layer, parametrized, _ = name.partition('.parametrizations.')
    return layer if parametrized else name.rpartition('.')[0] or name


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one tensor that is cut with a group.

    Attributes:
        tensor (str): Name of the parameter or buffer, or of an attribute
            that counts channels.
        axis (int): Axis that is cut; :data:`~mmgfp.groups.ATTRIBUTE` for
            an attribute.
        index (np.ndarray): (size, k) positions along that axis, one row per
            unit; k is 1 for a plain layer, C / g for a grouped one, 49 for a
            linear layer behind 7x7 features.
        role (str): 'producer' (loses outputs), 'consumer' (loses inputs),
            'grouped' (a grouped convolution loses both), 'affine'
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
        """Number of slices that are cut with one unit."""
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
    """Units in the same layers, each of which can be pruned alone.

    Attributes:
        name (str): Its first producer in execution order, numbered if several
            groups share that.
        size (int): Number of units.
        members (tuple[Member, ...]): Axes that are cut.
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
        """Layers whose outputs are cut (the paper's parents)."""
        return self.layers('producer', 'grouped')

    @property
    def consumers(self) -> list[str]:
        """Layers whose inputs are cut (the paper's children)."""
        return self.layers('consumer', 'grouped')

    @property
    def width(self) -> int:
        """Channels of the first producer in one unit."""
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
        """Whether one layer produces the channels and one consumes them.

        Grouped convolutions in between do not count (the paper's "-I").
        """
        return (
            len(self.layers('producer')) == 1
            and len(self.layers('consumer')) == 1
        )

    def restrict(self, units: np.ndarray) -> ChannelGroup:
        """Returns the group reduced to some units, without taps.

        Args:
            units (np.ndarray): Their indices, or a mask of shape (size,).
        """
        members = tuple(
            replace(member, index=member.index[units])
            for member in self.members
        )
        size = len(members[0].index)
        return replace(self, size=size, members=members, taps=())

    def freeze(self, reason: str) -> ChannelGroup:
        """Returns the same group with a reason not to prune it."""
        return replace(self, frozen=reason)


class UnitSpace:
    """The units of some groups in one flat vector, group after group.

    Args:
        groups (Sequence[ChannelGroup]): In the order of the vector.
        numbers (Sequence[np.ndarray], optional): Per group (size,) the
            indices that its units have in the unpruned network. By default
            the network is unpruned.

    Attributes:
        sizes (np.ndarray): (G,) units of each group.
        group_of (np.ndarray): (U,) number of the group of each unit.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        numbers: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.groups = list(groups)
        self.sizes = np.array([group.size for group in groups], dtype=int)
        self.group_of = np.repeat(np.arange(len(groups)), self.sizes)
        self.numbers = (
            [np.arange(size) for size in self.sizes]
            if numbers is None
            else list(numbers)
        )

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def split(self, flat: np.ndarray) -> list[np.ndarray]:
        """Split a vector of all units, (U,), into one vector per group."""
        return np.split(flat, np.cumsum(self.sizes)[:-1])

    def consumers(self) -> list[tuple[Tap, np.ndarray]]:
        """Returns per consumer a tap and the flat units of its inputs, (C,).

        Channels that belong to no group have the index U.
        """
        found: dict[str, tuple[Tap, np.ndarray]] = {}
        start = 0
        for group in self.groups:
            for tap in group.taps:
                blank = np.full(len(tap.unit), len(self))
                _, unit = found.setdefault(tap.module, (tap, blank))
                mine = tap.unit >= 0
                unit[mine] = start + tap.unit[mine]
            start += group.size
        return list(found.values())

    def groups_among(self, units: np.ndarray) -> list[int]:
        """Returns the indices of the groups that some flat units belong to."""
        return np.unique(self.group_of[units[units < len(self)]]).tolist()
