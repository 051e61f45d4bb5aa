"""Kronecker-factored curvature of a layer (Martens & Grosse, ICML 2015).

Notation: a layer has a weight matrix ``W`` (o, d), of outputs and inputs (with
the kernel and, last, the bias), for each of g groups. For N images with R rows
of inputs ``a`` and of gradients ``s`` of each image's loss::

    A = 1/N sum a a^T        G = 1/R sum s s^T        Hessian ~ kron(G, A)

The sums run over images, positions, and calls of the layer. Of a factor larger
than the limit, only blocks on its diagonal are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from .layer_sums import Diagonal, Factor, diagonal_of

Damping = Literal['relative', 'pi', 'identity']

# Least mean of a diagonal that damping depends on.
LEAST = 1e-30


@dataclass
class Side:
    """A damped factor of a layer at its kept positions.

    With its inverse, the curvature of some positions is that which is left
    when the other positions adapt (Optimal Brain Surgeon): the inverse of
    their part of the inverse. Without, the others stay as they are (Optimal
    Brain Damage).

    Attributes:
        of_each (Tensor): (g, n) curvature of each position alone.
        starts (Sequence[int]): First index of each block. Defaults to (): of
            a :class:`Diagonal`, only ``of_each`` is known.
        blocks (Sequence[Tensor]): (g, n, n) each, with damping.
        inverses (Sequence[Tensor], optional): (g, n, n) inverse of each
            block.
    """

    of_each: Tensor
    starts: Sequence[int] = ()
    blocks: Sequence[Tensor] = ()
    inverses: Sequence[Tensor] | None = None

    def of_sets(self, index: Tensor) -> Tensor:
        """Returns the curvature of sets of positions of a single group.

        Args:
            index (Tensor): (m, b) positions of m sets.

        Returns:
            Tensor: (m, b, b).
        """
        if self.inverses is None:
            return self._parts(self.blocks, index)
        return torch.linalg.inv(self._parts(self.inverses, index))

    def multiplied(self, matrices: Tensor) -> Tensor:
        """Returns ``matrices @ factor`` for matrices (g, ..., n)."""
        parts = matrices.split([b.shape[1] for b in self.blocks], -1)
        return torch.cat(
            [
                torch.einsum('g...i,gij->g...j', part, block)
                for part, block in zip(parts, self.blocks)
            ],
            -1,
        )

    def compensated(self, vectors: Tensor, gone: Tensor) -> Tensor:
        """Returns vectors with some elements zero and the others adapted.

        If the elements P of a vector ``w`` are pruned, the kept elements K
        become ``w_K + A_KK^-1 A_KP w_P``: the minimum of
        ``(v - w)^T A (v - w)`` over all ``v`` with ``v_P = 0`` (Hassibi &
        Stork, NIPS 1992, for several weights at once).

        Args:
            vectors (Tensor): (g, m, n).
            gone (Tensor): (g, m, n) whether an element is pruned.

        Returns:
            Tensor: The new vectors, (g, m, n).

        Raises:
            ValueError: If the curvature of kept elements is singular.
        """
        found = vectors.masked_fill(gone, 0)
        for start, block in zip(self.starts, self.blocks):
            part = slice(start, start + block.shape[1])
            for old, new, lost, matrix in zip(
                vectors[:, :, part], found[:, :, part], gone[:, :, part], block
            ):
                # vectors that lose the same elements are solved for together
                sets, of = torch.unique(lost, dim=0, return_inverse=True)
                for number, out in enumerate(sets):
                    if out.any() and not out.all():
                        mine = torch.nonzero(of == number)
                        stays = matrix[~out]
                        root, failed = torch.linalg.cholesky_ex(stays[:, ~out])
                        if failed:
                            raise ValueError(
                                'weights cannot compensate, because a '
                                'curvature is singular: expected a larger '
                                "`strength`, with damping='relative' or 'pi'"
                            )
                        moved = stays[:, out] @ old[mine, out].T
                        new[mine, ~out] += torch.cholesky_solve(moved, root).T
        return found

    def _parts(self, blocks: Sequence[Tensor], index: Tensor) -> Tensor:
        """Returns submatrices (m, b, b) at positions (m, b)."""
        size = index.shape[1]
        found = blocks[0].new_zeros(len(index), size, size)
        for start, block in zip(self.starts, blocks):
            local = index - start
            here = (local >= 0) & (local < block.shape[1])
            local = local.clamp(0, block.shape[1] - 1)
            part = block[0][local[:, :, None], local[:, None, :]]
            found += part * (here[:, :, None] & here[:, None, :])
        return found


@dataclass
class Curvature:
    """Predicted growth of the loss without parts of a layer's weight.

    Attributes:
        weight (Tensor): (g, r, c), in double precision. Rows are outputs, or
            inputs if the convolution is transposed.
        rows (Side): Factor of the r rows.
        columns (Side): Factor of the c columns.
    """

    weight: Tensor
    rows: Side
    columns: Side

    def elements(self) -> Tensor:
        """Returns scores of single weights, (g, r, c).

        ``w^2 / (2 [G^-1]_ii [A^-1]_jj)`` where rows are outputs; without
        inverses ``w^2 G_ii A_jj / 2``.
        """
        rows = self.rows.of_each[:, :, None]
        return self.weight.square() * rows * self.columns.of_each[:, None] / 2

    def of_row_blocks(self, index: Tensor) -> Tensor:
        """Returns scores of cutting blocks of rows, (m,), of a single group.

        ``tr(W_P A W_P^T [G^-1]_PP^-1) / 2`` for the rows P; without inverses
        ``tr(W_P A W_P^T G_PP) / 2``.

        Args:
            index (Tensor): (m, b) rows.
        """
        return _of_blocks(self.weight[0], index, self.rows, self.columns)

    def of_column_blocks(self, index: Tensor) -> Tensor:
        """Returns scores of cutting blocks of columns, (m,).

        Args:
            index (Tensor): (m, b) columns.
        """
        return _of_blocks(self.weight[0].T, index, self.columns, self.rows)

    def of_groups(self) -> Tensor:
        """Returns scores of cutting whole groups, (g,).

        ``tr(W A W^T G) / 2`` where rows are outputs.
        """
        half = self.columns.multiplied(self.weight)
        whole = self.rows.multiplied(half.transpose(1, 2)).transpose(1, 2)
        return (whole * self.weight).sum((1, 2)) / 2


def _of_blocks(
    weight: Tensor, index: Tensor, removed: Side, other: Side
) -> Tensor:
    lost = weight[index]  # (m, b, n)
    inner = removed.of_sets(index)
    products = other.multiplied(lost.flatten(0, 1)[None])[0].view_as(lost)
    return torch.einsum('mbn,mbc,mcn->m', products, inner, lost) / 2


def sides(
    name: str,
    inputs: Factor | Diagonal,
    gradients: Factor | Diagonal,
    positions: float,
    batches: float,
    damping: Literal['pi', 'identity'],
    strength: float,
    inverted: bool = True,
) -> tuple[Side, Side]:
    """Damp the two factors of a layer, in double precision.

    ``'pi'`` adds ``pi sqrt(strength)`` and ``sqrt(strength) / pi``, pi being
    the root of the ratio of the factors' mean diagonals (Martens & Grosse,
    Section 6.3). ``'identity'`` adds twice the identity over the number of
    batches, as MLPrune does.

    Args:
        name (str): Name of the layer, for errors.
        inputs (Factor | Diagonal): A.
        gradients (Factor | Diagonal): G.
        positions (float): Rows per image.
        batches (float): Number of summed batches.
        damping (str): 'pi' or 'identity'.
        strength (float): Strength of the damping 'pi', in the units of the
            curvature.
        inverted (bool): Whether to invert them. Defaults to True.

    Returns:
        tuple[Side, Side]: The inputs' side and the gradients' side.

    Raises:
        ValueError: If a factor is not finite or cannot be inverted.
        RuntimeError: If a diagonal is to be inverted.
    """
    require_finite(name, inputs, gradients)
    means = [f.diagonal().of_each().mean(1) for f in (inputs, gradients)]
    if damping == 'identity':
        extra = torch.full_like(means[0], 2 / batches)
        pads = [extra * positions**2, extra / positions**2]
    else:
        # without gradients, scores are those of the damping alone
        least = [mean.clamp(min=LEAST) for mean in means]
        ratio = (least[0] / least[1]).sqrt()
        pads = [ratio * strength**0.5, strength**0.5 / ratio]
    return (
        _damped(name, inputs, pads[0], inverted),
        _damped(name, gradients, pads[1], inverted),
    )


def require_finite(name: str, *factors: Factor | Diagonal) -> None:
    """Raise if a factor of a layer is not finite.

    Raises:
        ValueError: If one is not.
    """
    blocks = chain(*(factor.blocks for factor in factors))
    if not all(block.isfinite().all() for block in blocks):
        raise ValueError(
            f'the curvature of {name} is not finite: its inputs or the '
            'gradients of its outputs overflow. Expected a trained network '
            'and batches on which its loss is finite'
        )


def _damped(
    name: str, factor: Factor | Diagonal, pad: Tensor, inverted: bool
) -> Side:
    """Returns a factor with (g,) values added to its diagonal."""
    if isinstance(factor, Diagonal):
        if inverted:
            raise RuntimeError('a diagonal has no inverse of a whole factor')
        return Side(factor.of_each() + pad[:, None])
    blocks = [block.to(torch.float64, copy=True) for block in factor.blocks]
    for block in blocks:
        block.diagonal(0, 1, 2).add_(pad[:, None])
    if not inverted:
        return Side(diagonal_of(blocks), factor.starts, blocks)
    inverses = []
    for block in blocks:
        root, failed = torch.linalg.cholesky_ex(block)
        if failed.any():
            raise ValueError(
                f'the curvature of {name} is singular with damping of '
                f'{float(pad.min()):.3g}: expected a larger `strength`, with '
                "damping='relative' or 'pi'"
            )
        inverses.append(torch.cholesky_inverse(root))
    return Side(1 / diagonal_of(inverses), factor.starts, blocks, inverses)
