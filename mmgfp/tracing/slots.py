"""Slots: every slice of every parameter and buffer has a number.

This file holds the results of a trace, and no torch code.
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

    Axes of size 1 have no slots: there is nothing to remove from them.

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
        """Number what an attribute of a module counts, behind the rest."""
        self._axis_id[name, ATTRIBUTE] = len(self.axes)
        self.axes.append((name, ATTRIBUTE))
        self.starts = np.append(self.starts, self.starts[-1] + size)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __contains__(self, name_and_axis: tuple[str, int]) -> bool:
        return name_and_axis in self._axis_id

    def slots(self, name: str, axis: int) -> np.ndarray:
        """The slots of one axis in order, shape (size,)."""
        i = self._axis_id[name, axis]
        return np.arange(self.starts[i], self.starts[i + 1])

    def axis_ids(self, slots: np.ndarray) -> np.ndarray:
        """For each slot the position of its axis in :attr:`axes`."""
        return np.searchsorted(self.starts, slots, side='right') - 1

    def describe(self, slot: int) -> tuple[str, int, int]:
        """``(tensor name, axis, index)`` of a slot."""
        i = int(self.axis_ids(np.asarray(slot)))
        return (*self.axes[i], int(slot - self.starts[i]))


@dataclass(frozen=True)
class Use:
    """One weight that consumes channels.

    Attributes:
        weight (str): Name of the weight.
        axis (int): The weight axis that loses the consumed channels: 1 for a
            plain layer, 0 for a grouped convolution.
        grouped (bool): Whether removing a channel removes a convolution
            group, input and output together.
        module (str | None): The module whose first argument carries these
            channels; None if the weight is used in some other way, so that
            its input cannot be observed from outside.
        channel_axis (int): The axis of that argument which carries them.
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
    edges: np.ndarray  # (2, E) pairs of slots that go together
    frozen: list[tuple[np.ndarray, str]]  # slots that must stay, and why
    uses: list[Use]  # consumers in order of execution
    issued: list[tuple[str, int, int]]  # producers: (weight, axis, channels)
    order: dict[str, int]  # tensor name -> first use, in execution order
    unused: list[str]  # parameters that took no part
    trained: bool  # whether the losses were traced as well
    # attributes named like widths of which it is not known what they count
    unclear: list[str] = field(default_factory=list)

    def components(self) -> np.ndarray:
        """The connected component of every slot, shape (slots,)."""
        a, b = self.edges
        shape = (len(self.table), len(self.table))
        ones = np.ones(a.size, dtype=bool)
        graph = coo_matrix((ones, (a, b)), shape=shape)
        return connected_components(graph, directed=False)[1]
