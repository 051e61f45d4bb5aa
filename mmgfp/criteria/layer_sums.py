"""Sums over the rows of a layer, from which its curvature is computed.

A layer has a factor of its inputs and one of its gradients
(:mod:`mmgfp.criteria.curvature`). Where only the diagonals of the factors are
needed, nothing else is summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from .layer_rows import (
    conv_groups,
    gradient_rows,
    gradient_squares,
    input_rows,
    input_squares,
    is_transposed,
)
from .patch_products import channel_order, has_products, patch_products


@dataclass
class Factor:
    """Sum of outer products of the rows of a layer.

    Attributes:
        starts (Sequence[int]): First index of each diagonal block.
        blocks (Sequence[Tensor]): (g, n, n) each, for g groups.
    """

    starts: Sequence[int]
    blocks: Sequence[Tensor]

    @classmethod
    def zeros(cls, groups: int, size: int, limit: int, like: Tensor) -> Factor:
        """Returns an empty sum.

        Args:
            groups (int): Groups of the convolution.
            size (int): Elements of a row, with the 1 of a bias.
            limit (int): Rows of the largest block.
            like (Tensor): Tensor with the device and precision of the sums.
        """
        starts = range(0, size, limit)
        dtype = torch.promote_types(like.dtype, torch.float32)
        sizes = [min(limit, size - start) for start in starts]
        return cls(
            starts, [like.new_zeros(groups, n, n, dtype=dtype) for n in sizes]
        )

    def add(self, rows: Tensor) -> None:
        """Add the outer products of rows.

        Args:
            rows (Tensor): (g, R, d); d is one less than the size of the
                factor if the layer has a bias. The 1 of the bias is appended.
        """
        given = rows.shape[2]
        for start, block in zip(self.starts, self.blocks):
            part = rows[:, :, start : min(start + block.shape[1], given)]
            products = part.transpose(1, 2) @ part
            _add(block, products, part.sum(1), rows.shape[1])

    def add_products(self, products: Tensor, sums: Tensor, count: int) -> None:
        """Add sums over rows to a factor that is a single block.

        Args:
            products (Tensor): (g, d, d) sum of the outer products of rows.
            sums (Tensor): (g, d) sum of the rows.
            count (int): Number of rows of each group.
        """
        (block,) = self.blocks
        _add(block, products, sums, count)

    def reordered(self, order: np.ndarray) -> Factor:
        """Returns a factor of a single block with positions in an order.

        Args:
            order (np.ndarray): (d,) positions; the 1 of the bias stays last.
        """
        (block,) = self.blocks
        rest = np.arange(len(order), block.shape[1])
        index = torch.from_numpy(np.append(order, rest)).to(block.device)
        return Factor(self.starts, [block[:, index][:, :, index]])

    def kept(self, positions: np.ndarray, groups: np.ndarray) -> Factor:
        """Returns the factor without some positions and groups.

        Args:
            positions (np.ndarray): (n,) whether each position is kept.
            groups (np.ndarray): (g,) whether each group is kept.
        """
        found, starts, begin = [], [], 0
        which = torch.from_numpy(np.flatnonzero(groups))
        for start, block in zip(self.starts, self.blocks):
            here = np.flatnonzero(positions[start : start + block.shape[1]])
            if len(here):
                index = torch.from_numpy(here).to(block.device)
                block = block[which.to(block.device)]
                found.append(block[:, index][:, :, index])
                starts.append(begin)
                begin += len(here)
        return Factor(starts, found)

    def scaled(self, by: float | Tensor) -> Factor:
        """Returns the factor multiplied by a scalar."""
        return Factor(self.starts, [block * by for block in self.blocks])


@dataclass
class Diagonal:
    """Sum of the squares of the rows of a layer: the diagonal of a factor.

    Attributes:
        values (Tensor): (g, n), for g groups.
    """

    values: Tensor

    @classmethod
    def zeros(cls, groups: int, size: int, like: Tensor) -> Diagonal:
        """Returns an empty sum; see :meth:`Factor.zeros`."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return cls(like.new_zeros(groups, size, dtype=dtype))

    @property
    def blocks(self) -> Sequence[Tensor]:
        """Returns all sums, to be changed in place."""
        return [self.values]

    def add(self, squares: Tensor, count: int) -> None:
        """Add the squares of rows.

        Args:
            squares (Tensor): (g, d) their sum; d is one less than n if the
                layer has a bias, whose 1 is appended.
            count (int): Number of rows of each group.
        """
        given = squares.shape[1]
        self.values[:, :given] += squares
        self.values[:, given:] += count

    def kept(self, positions: np.ndarray, groups: np.ndarray) -> Diagonal:
        """Returns the diagonal at some positions; see :meth:`Factor.kept`."""
        places = (
            torch.from_numpy(np.flatnonzero(k)) for k in (groups, positions)
        )
        first, second = (place.to(self.values.device) for place in places)
        return Diagonal(self.values[first][:, second])

    def scaled(self, by: float | Tensor) -> Diagonal:
        """Returns the diagonal multiplied by a scalar."""
        return Diagonal(self.values * by)


def _add(block: Tensor, products: Tensor, sums: Tensor, count: int) -> None:
    n = products.shape[1]
    block[:, :n, :n] += products
    if n < block.shape[1]:  # the block includes the bias
        block[:, n, :n] += sums
        block[:, :n, n] += sums
        block[:, n, n] += count


@dataclass
class LayerSums:
    """Sums of a layer: its two factors and the number of rows.

    Attributes:
        inputs (Factor | Diagonal): Of the inputs; its positions may have
            another order than the weight (:meth:`inputs_of`).
        gradients (Factor | Diagonal): Of the gradients of the outputs.
        rows (Tensor): Number of rows, ().
    """

    inputs: Factor | Diagonal
    gradients: Factor | Diagonal
    rows: Tensor

    @classmethod
    def zeros(cls, module: nn.Module, limit: int | None) -> LayerSums:
        """Returns empty sums.

        Args:
            module (nn.Module): A convolution or linear layer.
            limit (int, optional): Rows of the largest block of a factor; None
                for diagonals only.
        """
        groups, weight = conv_groups(module), module.weight
        assert isinstance(weight, Tensor)
        narrow = len(weight) // groups
        wide = weight[0].numel()
        inputs, gradients = narrow, wide
        if not is_transposed(module):
            inputs, gradients = wide + (module.bias is not None), narrow

        def empty(size: int) -> Factor | Diagonal:
            like = weight.detach()
            if limit is None:
                return Diagonal.zeros(groups, size, like)
            return Factor.zeros(groups, size, limit, like)

        rows = torch.zeros((), dtype=torch.float64, device=weight.device)
        return cls(empty(inputs), empty(gradients), rows)

    @property
    def is_approximate(self) -> bool:
        """Returns whether a factor lacks elements besides its blocks."""
        return max(len(f.blocks) for f in (self.inputs, self.gradients)) > 1

    def tensors(self) -> list[Tensor]:
        """Returns all tensors, to be changed in place."""
        return [*self.inputs.blocks, *self.gradients.blocks, self.rows]

    def add(self, module: nn.Module, source: Tensor, gradient: Tensor) -> None:
        """Add a call of the layer.

        Args:
            module (nn.Module): The layer.
            source (Tensor): Its input.
            gradient (Tensor): Gradient with respect to its output.
        """
        inputs, gradients = self.inputs, self.gradients
        if isinstance(inputs, Diagonal):
            squares, count = input_squares(module, source)
            inputs.add(squares, count)
            self.rows += count
        elif _by_products(module, inputs):
            for products, total, count in patch_products(module, source):
                inputs.add_products(products, total, count)
                self.rows += count
        else:
            for rows in input_rows(module, source):
                inputs.add(rows)
                self.rows += rows.shape[1]
        if isinstance(gradients, Diagonal):
            gradients.add(*gradient_squares(module, gradient, source))
        else:
            for rows in gradient_rows(module, gradient, source):
                gradients.add(rows)

    def inputs_of(self, module: nn.Module) -> Factor | Diagonal:
        """Returns the sum of the inputs, in the order of the weight."""
        factor = self.inputs
        if isinstance(factor, Factor) and _by_products(module, factor):
            return factor.reordered(channel_order(module))
        return factor


def _by_products(module: nn.Module, factor: Factor) -> TypeGuard[nn.Conv2d]:
    """Returns whether the factor of the inputs is summed without patches."""
    return len(factor.blocks) == 1 and has_products(module)
