"""What the sizes that the code uses say about labels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from .label_layers import canonical, squeezed
from .sizes import Term
from .slots import SlotTable


@dataclass(frozen=True, eq=False)
class SizeFact:
    """A number that the code computes from attributes counts channels.

    Attributes:
        term (Term): How the number came about.
        labels (np.ndarray): (n, k) slots at each of the n positions that it
            counts; -1 where there are none.
        where (str): The module that was being executed.
    """

    term: Term
    labels: np.ndarray
    where: str


@dataclass(frozen=True, eq=False)
class Choice:
    """A channel axis viewed as rows and columns, both of which may shrink.

    Attributes:
        labels (np.ndarray): (rows, columns) slots.
    """

    labels: np.ndarray


@dataclass
class SizeRecord:
    """What was seen of sizes.

    Attributes:
        given (dict): For the operation being executed: output axis -> size,
            as far as the code gave one.
        cuts (set): Numbers from attributes that it cuts at.
        made (list): Sizes of fresh tensors: (size, label layers, axis,
            module). What they count shows when something is written there.
    """

    facts: list[SizeFact] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    given: dict[int, Any] = field(default_factory=dict)
    cuts: set[int] = field(default_factory=set)
    made: list[tuple[Any, Sequence[Tensor], int, str]] = field(
        default_factory=list
    )


class Labels(Protocol):
    """What is needed of the tracer of labels."""

    sizes: SizeRecord
    table: SlotTable

    def tag(self, tensor: Tensor) -> Any:
        """Has ``layers``."""

    def layers(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The label layers of a tensor that are not blank."""

    def couple(self, a: np.ndarray, b: np.ndarray) -> None:
        """These slots go together, one to one."""

    def freeze(self, labels: Tensor | np.ndarray, reason: str) -> None:
        """Keep these slots for ever."""

    def where(self) -> str:
        """The module being executed."""

    def aside(self) -> AbstractContextManager:
        """What is done with labels in between is no part of the network."""


def axis_labels(layers: Sequence[Tensor], axis: int, slots: int) -> np.ndarray:
    """All labels at each position of an axis, (n, k).

    Args:
        layers (Sequence[Tensor]): Label layers, one at least.
        axis (int): Of the layers.
        slots (int): Labels from here on are of no slots.

    Returns:
        np.ndarray: -1 for what is no slot.
    """
    columns = [np.full((layers[0].shape[axis], 0), -1)]
    for layer in map(canonical, layers):
        flat = squeezed(layer)
        if flat.shape[axis] == layer.shape[axis] and flat.numel():
            rows = flat.movedim(axis, 0).reshape(len(columns[0]), -1)
            columns.append(rows.numpy())
    found = np.concatenate(columns, axis=1)
    if not found.shape[1]:
        return np.full((len(found), 1), -1)
    return np.where(found < slots, found, -1)
