"""Choice of single weights to prune from one list over all layers.

Scores of all layers are compared; the lowest are pruned first, of equal scores
the first ones. Weights that are pruned together, or a single weight, are
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
    """Blocks or pattern of pruned weights, and the floor of every layer.

    Attributes:
        block (tuple[int, int]): Numbers of output channels and input channels
            that are pruned together. The last block of a layer may be
            smaller.
        pattern (tuple[int, int], optional): (n, m): of m neighbours along the
            inputs, n stay.
        min_density (float): Ratio of its weights that every layer keeps, at
            least one weight.
    """

    block: tuple[int, int] = (1, 1)
    pattern: tuple[int, int] | None = None
    min_density: float = 0.0

    def fits(self, shape: Sequence[int]) -> bool:
        """Returns whether a shape, outputs first, fits the pattern."""
        if self.pattern is None:
            return True
        return math.ceil(shape[1] / self.block[1]) % self.pattern[1] == 0

    def floor(self, weights: int) -> int:
        """Returns the floor of a layer with this number of weights."""
        return max(1, math.ceil(round(self.min_density * weights, 6)))

    def least(self, shape: Sequence[int]) -> int:
        """Returns the least number of kept weights of a shape, outputs first.

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


def beyond_pattern(pruned: np.ndarray, shapes: Shapes) -> int:
    """Returns the number of blocks that a pattern does not allow to stay.

    Args:
        pruned (np.ndarray): Booleans of pruned weights, outputs first.
        shapes (Shapes): Blocks and pattern.
    """
    assert shapes.pattern is not None
    left = _block_sums((~pruned).astype(np.int64), shapes.block) > 0
    return int(_beyond_pattern(left * 1.0, left, shapes.pattern).sum())


def choose(
    scores: Mapping[str, np.ndarray],
    pruned: Mapping[str, np.ndarray],
    count: int | None,
    shapes: Shapes,
    layer_norm: LayerNorm = 'none',
) -> dict[str, np.ndarray]:
    """Choose the weights to prune next.

    Args:
        scores (Mapping[str, np.ndarray]): Scores by layer, with the axes
            outputs, inputs, and others. The lowest are pruned first.
        pruned (Mapping[str, np.ndarray]): Booleans of the same shapes for
            weights pruned before; they stay pruned.
        count (int | None): Number of weights to prune; with blocks, the
            largest number of whole blocks within it. None for all that
            floors and pattern allow.
        shapes (Shapes): Blocks or pattern, and floors.
        layer_norm (str): 'sum' to divide the scores of a layer by the sum
            over its unpruned weights. Defaults to 'none'.

    Returns:
        dict[str, np.ndarray]: By layer, booleans for pruned weights.

    Raises:
        ValueError: If scores are not finite, or the floors keep too many
            weights.
    """
    layers = [
        _Layer(name, values, pruned[name], shapes, layer_norm)
        for name, values in scores.items()
    ]
    values = np.concatenate([layer.values for layer in layers])
    sizes = np.concatenate([layer.sizes for layer in layers])
    if count is None:
        count = int(sizes.sum())
    # a floor can keep a whole block of which a part could be pruned
    whole = len(layers) * (math.prod(shapes.block) - 1)
    if sizes.sum() + whole < count:
        raise ValueError(
            f'{count} weights are to be pruned, but only {int(sizes.sum())} '
            'can be: the floors of the layers keep the others. Raise density, '
            'or lower min_density.'
        )
    goes = _lightest(values, sizes, count)
    parts = np.split(goes, np.cumsum([len(la.values) for la in layers])[:-1])
    return {
        layer.name: layer.gone_with(part) for layer, part in zip(layers, parts)
    }


class _Layer:
    """The prunable blocks of a layer: scores and sizes, as vectors.

    A block's score is the mean score of its weights.
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
        """Returns which weights are pruned if some blocks are pruned."""
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
    """Returns which may be pruned: of m neighbours, the m - n lowest."""
    n, m = pattern
    outputs, inputs, *rest = values.shape
    ranked = np.where(there, values, -np.inf)  # pruned ones come first
    ranked = ranked.reshape(outputs, inputs // m, m, *rest)
    rank = ranked.argsort(2, kind='stable').argsort(2, kind='stable')
    return (rank < m - n).reshape(values.shape) & there


def _lightest(
    values: np.ndarray, sizes: np.ndarray, budget: int
) -> np.ndarray:
    """Returns booleans of the lowest values whose sizes fit a budget.

    Of equal values the first ones are chosen.
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
    """Returns booleans of the ``count`` lowest values, without a full sort."""
    if count >= len(values):
        return np.ones(len(values), bool)
    if count == 0:
        return np.zeros(len(values), bool)
    edge = np.partition(values, count - 1)[count - 1]
    goes = values < edge
    equal = np.flatnonzero(values == edge)
    goes[equal[: count - int(goes.sum())]] = True
    return goes
