"""Which single weights go: one list over all layers. Pure numbers.

Scores of all layers are compared; the least go first, of equal ones those
that come first. What goes together - a weight alone, or a block of them - is
called a block here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LayerNorm = Literal['none', 'sum']


@dataclass(frozen=True)
class Shapes:
    """What goes together, and what every layer keeps.

    Attributes:
        block (tuple[int, int]): Output channels and input channels that
            go together. The last ones of a layer may be fewer.
        pattern (tuple[int, int], optional): (n, m): of m neighbours along the
            inputs, n stay.
        min_density (float): Share of its weights that every layer keeps, and
            at least one weight.
    """

    block: tuple[int, int] = (1, 1)
    pattern: tuple[int, int] | None = None
    min_density: float = 0.0

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a weight, outputs first, divides into the pattern."""
        if self.pattern is None:
            return True
        return math.ceil(shape[1] / self.block[1]) % self.pattern[1] == 0

    def floor(self, weights: int) -> int:
        """Weights that a layer keeps of so many."""
        return max(1, math.ceil(round(self.min_density * weights, 6)))

    def least(self, shape: Sequence[int]) -> int:
        """How many weights of a layer stay at least, outputs first.

        With blocks of unequal sizes it may be one block more.
        """
        weights = math.prod(shape)
        if self.pattern is None:
            losable = weights
        else:
            n, m = self.pattern
            losable = weights * (m - n) // m
        losable = min(losable, weights - self.floor(weights))
        return weights - losable // self._size(shape) * self._size(shape)

    def _size(self, shape: Sequence[int]) -> int:
        return math.prod(min(n, b) for n, b in zip(shape, self.block))


def choose(
    scores: Mapping[str, np.ndarray],
    pruned: Mapping[str, np.ndarray],
    count: int,
    shapes: Shapes,
    layer_norm: LayerNorm = 'none',
) -> dict[str, np.ndarray]:
    """Choose the weights that go next.

    Args:
        scores (Mapping[str, np.ndarray]): By layer, of its weights: outputs,
            inputs, and other axes. The least goes first.
        pruned (Mapping[str, np.ndarray]): Which of them are gone already,
            booleans; they stay so.
        count (int): How many go. Where weights go in blocks, as many as whole
            blocks allow.
        shapes (Shapes): What goes together, and what stays.
        layer_norm (str): 'sum' to divide the scores of a layer by the sum of
            those that are there. Defaults to 'none'.

    Returns:
        dict[str, np.ndarray]: By layer, which weights are gone now.

    Raises:
        ValueError: If scores are not finite, or too few weights may go.
    """
    layers = [
        _Layer(name, values, pruned[name], shapes, layer_norm)
        for name, values in scores.items()
    ]
    values = np.concatenate([layer.values for layer in layers])
    sizes = np.concatenate([layer.sizes for layer in layers])
    # a floor can keep a whole block where a part of it may go
    whole = len(layers) * (math.prod(shapes.block) - 1)
    if sizes.sum() + whole < count:
        raise ValueError(
            f'{count} weights are to go, but only {int(sizes.sum())} may: '
            'the others are kept by the floors of the layers. Raise density, '
            'or lower min_density.'
        )
    goes = _lightest(values, sizes, count)
    parts = np.split(goes, np.cumsum([len(la.values) for la in layers])[:-1])
    return {
        layer.name: layer.gone_with(part) for layer, part in zip(layers, parts)
    }


class _Layer:
    """The blocks of a layer that may go: scores and sizes, as vectors.

    A block's score is the mean of its weights'.
    """

    def __init__(
        self,
        name: str,
        scores: np.ndarray,
        pruned: np.ndarray,
        shapes: Shapes,
        layer_norm: LayerNorm,
    ) -> None:
        self.name = name
        self._pruned, self._block = pruned, shapes.block
        scores = np.where(pruned, 0, scores).astype(np.float64)
        if not np.isfinite(scores).all():
            raise ValueError(
                f'the scores of {name} are not finite; expected numbers for '
                'all of its weights. Look for weights that are not finite.'
            )
        total = scores.sum()
        if layer_norm == 'sum' and total > 0:
            scores = scores / total
        left = _block_sums((~pruned).astype(np.int64), shapes.block)
        means = _block_sums(scores, shapes.block) / np.maximum(left, 1)
        possible = left > 0
        if shapes.pattern is not None:
            possible &= _beyond_pattern(means, left > 0, shapes.pattern)
        most = int(left.sum()) - shapes.floor(pruned.size)
        self._shape = possible.shape
        at = np.flatnonzero(possible)
        within = _lightest(means.flat[at], left.flat[at], most)
        self._at = at[within]
        self.values, self.sizes = means.flat[self._at], left.flat[self._at]

    def gone_with(self, goes: np.ndarray) -> np.ndarray:
        """Which weights are gone if some of these blocks go."""
        blocks = np.zeros(self._shape, bool)
        blocks.flat[self._at[goes]] = True
        for axis, length in enumerate(self._block):
            if length > 1:
                blocks = blocks.repeat(length, axis)
        outputs, inputs = self._pruned.shape[:2]
        return self._pruned | blocks[:outputs, :inputs]


def _block_sums(values: np.ndarray, block: Sequence[int]) -> np.ndarray:
    for axis, length in enumerate(block):
        if length > 1:
            starts = np.arange(0, values.shape[axis], length)
            values = np.add.reduceat(values, starts, axis)
    return values


def _beyond_pattern(
    values: np.ndarray, there: np.ndarray, pattern: tuple[int, int]
) -> np.ndarray:
    """Which ones may go: of m neighbours, the m - n least."""
    n, m = pattern
    outputs, inputs, *rest = values.shape
    ranked = np.where(there, values, -np.inf)  # what is gone counts as gone
    ranked = ranked.reshape(outputs, inputs // m, m, *rest)
    rank = ranked.argsort(2, kind='stable').argsort(2, kind='stable')
    return (rank < m - n).reshape(values.shape) & there


def _lightest(
    values: np.ndarray, sizes: np.ndarray, budget: int
) -> np.ndarray:
    """The first in the order of values whose sizes fit a budget, booleans.

    Of equal values those that come first.
    """
    if budget <= 0 or not len(values):
        return np.zeros(len(values), bool)
    if sizes[0] == sizes.min() == sizes.max():
        return _least(values, budget // int(sizes[0]))
    order = values.argsort(kind='stable')
    fit = np.searchsorted(sizes[order].cumsum(), budget, side='right')
    goes = np.zeros(len(values), bool)
    goes[order[:fit]] = True
    return goes


def _least(values: np.ndarray, count: int) -> np.ndarray:
    """As many of the least as are asked for, without sorting all of them."""
    if count >= len(values):
        return np.ones(len(values), bool)
    if count == 0:
        return np.zeros(len(values), bool)
    edge = np.partition(values, count - 1)[count - 1]
    goes = values < edge
    equal = np.flatnonzero(values == edge)
    goes[equal[: count - int(goes.sum())]] = True
    return goes
