"""Sums over the rows of a layer, from which its curvature is computed.

A layer has a factor of its inputs and one of its gradients
(:mod:`mmgfp.criteria.curvature`). Where only the diagonals of the factors are
needed, nothing else is summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

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
from .patch_products import (
    channel_order,
    has_products,
    patch_products,
    pays,
)


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
        index = _with_bias(order, block.shape[1]).to(block.device)
        return Factor(self.starts, [block[:, index][:, :, index]])

    def diagonal(self) -> Diagonal:
        """Returns its diagonal."""
        return Diagonal(diagonal_of(self.blocks))

    def kept(self, positions: np.ndarray, groups: np.ndarray) -> Factor:
        """Returns the factor without some positions and groups.

        Args:
            positions (np.ndarray): (n,) whether each position is kept.
            groups (np.ndarray): (g,) whether each group is kept.
        """
        if positions.all() and groups.all():
            return self
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

    def diagonal(self) -> Diagonal:
        """Returns the diagonal itself, as :meth:`Factor.diagonal`."""
        return self

    def of_each(self) -> Tensor:
        """Returns the values in double precision."""
        return self.values.double()

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

    def reordered(self, order: np.ndarray) -> Diagonal:
        """Returns the diagonal in an order; see :meth:`Factor.reordered`."""
        index = _with_bias(order, self.values.shape[1])
        return Diagonal(self.values[:, index.to(self.values.device)])

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


def diagonal_of(blocks: Sequence[Tensor]) -> Tensor:
    """Returns the diagonal, (g, n), over diagonal blocks."""
    return torch.cat([block.diagonal(0, 1, 2) for block in blocks], 1)


def _with_bias(order: np.ndarray, size: int) -> Tensor:
    """Returns an order of (size,) positions; the last ones stay."""
    return torch.from_numpy(np.append(order, np.arange(len(order), size)))


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
        inputs (Factor | Diagonal): Of the inputs; see :meth:`factors` for
            its order.
        gradients (Factor | Diagonal): Of the gradients of the outputs.
        rows (Tensor): Number of rows, ().
        order (np.ndarray, optional): Positions of the inputs in the order of
            the weight, if theirs is that of
            :func:`mmgfp.criteria.patch_products.patch_products`.
    """

    inputs: Factor | Diagonal
    gradients: Factor | Diagonal
    rows: Tensor
    order: np.ndarray | None = None

    @classmethod
    def zeros(
        cls, modules: Sequence[nn.Module], limit: int | None
    ) -> LayerSums:
        """Returns empty sums.

        Args:
            modules (Sequence[nn.Module]): A convolution or linear layer, and
                others with the same weight.
            limit (int, optional): Rows of the largest block of a factor; None
                for diagonals only.
        """
        module = modules[0]
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
        found = cls(empty(inputs), empty(gradients), rows)
        single = limit is not None and len(found.inputs.blocks) == 1
        if single and all(map(has_products, modules)):
            found.order = channel_order(cast(nn.Conv2d, module))
        return found

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
        self.rows += self._add_inputs(module, source)
        if isinstance(self.gradients, Diagonal):
            self.gradients.add(*gradient_squares(module, gradient, source))
            return
        for rows in gradient_rows(module, gradient, source):
            self.gradients.add(rows)

    def _add_inputs(self, module: nn.Module, source: Tensor) -> int:
        """Returns the number of rows."""
        factor, count = self.inputs, 0
        if isinstance(factor, Diagonal):
            squares, count = input_squares(module, source)
            factor.add(squares, count)
        elif self.order is not None and pays(
            conv := cast(nn.Conv2d, module), source
        ):
            for products, total, number in patch_products(conv, source):
                factor.add_products(products, total, number)
                count += number
        else:
            for rows in input_rows(module, source):
                if self.order is not None:
                    place = torch.from_numpy(np.argsort(self.order))
                    rows = rows[:, :, place.to(rows.device)]
                factor.add(rows)
                count += rows.shape[1]
        return count

    def factors(self) -> tuple[Factor | Diagonal, Factor | Diagonal]:
        """Returns both factors, in the order of the weight."""
        return _in_order(self.inputs, self.order), self.gradients

    def diagonals(self) -> tuple[Diagonal, Diagonal]:
        """Returns the diagonals of :meth:`factors`."""
        inputs = _in_order(self.inputs.diagonal(), self.order)
        return inputs.diagonal(), self.gradients.diagonal()


def _in_order(
    factor: Factor | Diagonal, order: np.ndarray | None
) -> Factor | Diagonal:
    return factor if order is None else factor.reordered(order)
