"""Slots: numbers for all slices of all parameters and buffers.

This file holds the data of a trace. It traces nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ..groups import ATTRIBUTE
from ..slimming.surgery import named_tensors


class SlotTable:
    """Numbers the slots of all parameters and buffers of a model.

    Axes of size 1 have no slots, because nothing can be cut from them.

    Args:
        model (nn.Module): Shared tensors are numbered once, under the first
            of their names.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.axes: list[tuple[str, int]] = []
        self._axis_id: dict[tuple[str, int], int] = {}
        starts = [0]
        for name, tensor in named_tensors(model).items():
            self.tensors[name] = tensor
            for axis, size in enumerate(tensor.shape):
                if size > 1:
                    self._axis_id[name, axis] = len(self.axes)
                    self.axes.append((name, axis))
                    starts.append(starts[-1] + size)
        self.starts = np.asarray(starts)

    def add_attribute(self, name: str, size: int) -> None:
        """Append slots for the channels that a module's attribute counts."""
        self._axis_id[name, ATTRIBUTE] = len(self.axes)
        self.axes.append((name, ATTRIBUTE))
        self.starts = np.append(self.starts, self.starts[-1] + size)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __contains__(self, name_and_axis: tuple[str, int]) -> bool:
        return name_and_axis in self._axis_id

    def slots(self, name: str, axis: int) -> np.ndarray:
        """Returns the slots of one axis in order, shape (size,)."""
        i = self._axis_id[name, axis]
        return np.arange(self.starts[i], self.starts[i + 1])

    def axis_ids(self, slots: np.ndarray) -> np.ndarray:
        """Returns each slot's position of its axis in :attr:`axes`."""
        return np.searchsorted(self.starts, slots, side='right') - 1

    def describe(self, slot: int) -> tuple[str, int, int]:
        """Returns ``(tensor name, axis, index)`` of a slot."""
        i = int(self.axis_ids(np.asarray(slot)))
        return (*self.axes[i], int(slot - self.starts[i]))


@dataclass(frozen=True)
class Use:
    """A weight that consumes channels.

    Attributes:
        weight (str): Name of the weight.
        axis (int): The weight axis that loses the consumed channels: 1 for a
            plain layer, 0 for a grouped convolution.
        grouped (bool): Whether removing a channel removes a convolution
            group, input and output together.
        module (str | None): The module whose first argument has these
            channels; None if a hook on a module cannot observe the input.
        channel_axis (int): The channel axis of that argument.
        slots (tuple[int, ...]): The weight slot of every input channel.
    """

    weight: str
    axis: int
    grouped: bool
    module: str | None
    channel_axis: int
    slots: tuple[int, ...]


@dataclass
class Trace:
    """Facts about the slots of a model from one forward."""

    table: SlotTable
    edges: np.ndarray  # (2, E) pairs of coupled slots
    frozen: list[tuple[np.ndarray, str]]  # frozen slots and the reason
    uses: list[Use]  # consumers in order of execution
    issued: list[tuple[str, int, int]]  # producers: (weight, axis, channels)
    order: dict[str, int]  # tensor name -> first use, in execution order
    unused: list[str]  # parameters that no traced operation used
    trained: bool  # whether the losses were traced, too
    # attributes named like widths whose channels were not found
    unclear: list[str] = field(default_factory=list)

    def components(self) -> np.ndarray:
        """Returns the connected component of every slot, shape (slots,)."""
        a, b = self.edges
        shape = (len(self.table), len(self.table))
        ones = np.ones(a.size, dtype=bool)
        graph = coo_matrix((ones, (a, b)), shape=shape)
        return connected_components(graph, directed=False)[1]
