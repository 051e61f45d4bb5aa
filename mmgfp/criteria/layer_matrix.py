"""The weight of a layer as matrices, without masked units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import Member
from .curvature import Curvature, Side
from .layer_rows import conv_groups, is_transposed, kernel_size
from .layer_sums import Diagonal, Factor


class LayerMatrix:
    """Finds members of channel groups in the matrices of a layer.

    Each of g groups of a convolution has one matrix. Its rows are positions
    of the weight's axis 0 in this group; its columns are those of axis 1 with
    the kernel and, last, the bias. The matrices of a transposed convolution,
    which has its inputs along axis 0, have no bias.

    Args:
        module (nn.Module): A convolution or linear layer.
        masked (Sequence[tuple[Member, np.ndarray]]): Members in its weight,
            with (size,), whether each unit is not masked.

    Attributes:
        weight (Tensor): (g, r, c) unmasked weights, in double precision.
    """

    def __init__(
        self, module: nn.Module, masked: Sequence[tuple[Member, np.ndarray]]
    ) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        self._transposed = is_transposed(module)
        self._kernel = kernel_size(module)
        self._shape = weight.shape
        self._groups = conv_groups(module)
        self._in_group = len(weight) // self._groups
        left: list[np.ndarray] = [
            np.ones(weight.shape[axis], bool) for axis in (0, 1)
        ]
        for member, there in masked:
            left[member.axis][member.index[~there].ravel()] = False
        rows: np.ndarray = left[0].reshape(self._groups, self._in_group)
        # units of a grouped convolution are whole groups of it
        self._kept_groups = np.any(rows, axis=1)
        self._kept_rows = np.all(rows[self._kept_groups], axis=0)
        self._kept_columns: np.ndarray = left[1].repeat(self._kernel)
        self._width = int(self._kept_columns.sum())  # without the bias
        matrix = weight.detach().reshape(self._groups, self._in_group, -1)
        bias = module.bias
        if isinstance(bias, Tensor) and not self._transposed:
            biases = bias.detach().view(self._groups, -1, 1)
            matrix = torch.cat([matrix, biases], 2)
            self._kept_columns = np.append(self._kept_columns, True)
        for axis, kept in enumerate(
            (self._kept_groups, self._kept_rows, self._kept_columns)
        ):
            index = torch.from_numpy(np.flatnonzero(kept)).to(matrix.device)
            matrix = matrix.index_select(axis, index)
        self.weight = matrix.double()

    def kept(
        self, inputs: Factor | Diagonal, gradients: Factor | Diagonal
    ) -> tuple[Factor | Diagonal, Factor | Diagonal]:
        """Returns the factors of the layer without masked units."""
        of = self._kept_columns, self._kept_rows
        of_inputs, of_gradients = of[::-1] if self._transposed else of
        return (
            inputs.kept(of_inputs, self._kept_groups),
            gradients.kept(of_gradients, self._kept_groups),
        )

    def curvature(self, inputs: Side, gradients: Side) -> Curvature:
        """Returns the curvature from both factors."""
        if self._transposed:
            return Curvature(self.weight, inputs, gradients)
        return Curvature(self.weight, gradients, inputs)

    @property
    def is_grouped(self) -> bool:
        """Returns whether units are groups of the convolution."""
        return self._groups > 1

    def groups(self, index: np.ndarray) -> Tensor:
        """Returns convolution groups (m, b) of positions along axis 0."""
        numbers = _numbers(self._kept_groups)[index // self._in_group]
        return torch.from_numpy(numbers[:, :: self._in_group])

    def rows(self, index: np.ndarray) -> Tensor:
        """Returns rows (m, b) of positions along axis 0."""
        return torch.from_numpy(_numbers(self._kept_rows)[index])

    def columns(self, index: np.ndarray) -> Tensor:
        """Returns columns (m, b * kernel) of positions along axis 1."""
        wide = index[..., None] * self._kernel + np.arange(self._kernel)
        found = _numbers(self._kept_columns)[wide]
        return torch.from_numpy(found.reshape(len(index), -1))

    def compensated(self, curvature: Curvature, gone: Tensor) -> Tensor:
        """Returns the matrix (g, r, c) of an unmasked layer after pruning.

        The inputs of each output are adapted, see :meth:`Side.compensated`.

        Args:
            curvature (Curvature): Curvature of the layer.
            gone (Tensor): Whether each weight is pruned, in the weight's
                shape.
        """
        where = torch.zeros_like(self.weight, dtype=torch.bool)
        where[..., : self._width] = gone.to(where.device).reshape(
            *self.weight.shape[:2], self._width
        )
        if self._transposed:
            found = curvature.rows.compensated(self.weight.mT, where.mT)
            return found.mT
        return curvature.columns.compensated(self.weight, where)

    def without_bias(self, matrix: Tensor) -> Tensor:
        """Returns a matrix (g, r, c) without the column of the bias."""
        return matrix[..., : self._width]

    def as_weight(self, matrix: Tensor) -> Tensor:
        """Returns a matrix (g, r, c), unmasked, in the weight's shape."""
        return self.without_bias(matrix).reshape(self._shape)

    def as_bias(self, matrix: Tensor) -> Tensor | None:
        """Returns the bias, (o,), in an unmasked matrix (g, r, c), or None."""
        found = matrix[..., self._width :]
        return found.flatten() if found.numel() else None


def _numbers(kept: np.ndarray) -> np.ndarray:
    """Returns the new position of each kept position."""
    return np.cumsum(kept) - 1
