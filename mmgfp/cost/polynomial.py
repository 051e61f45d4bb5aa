"""Cost as a polynomial of widths, in torch: batched and differentiable.

The size of a parameter is ``rest * a0 * a1``, where both axes are linear in
the widths of the groups (:class:`mmgfp.cost.model.CostModel`). So flops and
params are polynomials of degree two in the widths, and acts of degree one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .model import CostModel

_METRICS = ('flops', 'params', 'acts')


class Cost:
    """What a network costs whose groups have given widths.

    Latency has no such form and is left out.

    Args:
        model (CostModel): Of the network.
        sizes (np.ndarray): (G,) units that each group has in it.

    Attributes:
        tensors (list[str]): Names of the T parameters and buffers that cost.
    """

    def __init__(self, model: CostModel, sizes: np.ndarray) -> None:
        self.tensors = model.tensors
        parts = model.coefficients()
        self._slices = [torch.from_numpy(part) for part in parts.slices]
        full = torch.from_numpy(np.asarray(sizes, float))
        # what each axis has besides the slices of the groups
        self._rest = [
            torch.from_numpy(axis) - full @ part
            for axis, part in zip(parts.sizes, self._slices)
        ]
        self._weight = {
            m: torch.from_numpy(w) for m, w in parts.weight.items()
        }
        self._outputs = torch.from_numpy(parts.outputs)
        self._fixed = parts.fixed

    def __call__(
        self, widths: Tensor, density: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Cost of networks with these widths.

        Args:
            widths (Tensor): (..., G) units that are left of each group; need
                not be whole numbers, as where they are expected ones.
            density (Mapping[str, Tensor], optional): (...) share of non-zero
                elements, by name of a tensor; 1 for others. Activations do
                not depend on it.

        Returns:
            dict[str, Tensor]: ``flops``, ``params`` and ``acts``, (...) each.

        Raises:
            ValueError: If the density is of a tensor that does not cost.
        """
        widths = widths.double()
        a0, a1 = (
            rest + widths @ part
            for rest, part in zip(self._rest, self._slices)
        )
        volume = a0 * a1
        for name, share in (density or {}).items():
            if name not in self.tensors:
                raise ValueError(
                    f'density of {name!r}: expected the name of a parameter '
                    'of a layer'
                )
            here = torch.zeros(len(self.tensors), dtype=torch.float64)
            here[self.tensors.index(name)] = 1
            volume = volume * (1 + here * (share[..., None] - 1))
        axes = torch.stack([a0, a1], -2)
        return {
            **{
                metric: volume @ weight + self._fixed[metric]
                for metric, weight in self._weight.items()
            },
            'acts': (self._outputs * axes).sum((-1, -2)) + self._fixed['acts'],
        }

    def quadratic(self, metric: str) -> tuple[float, Tensor, Tensor]:
        """``c``, ``l`` (G,), ``Q`` (G, G) of ``cost = c + l.n + n.Q.n``.

        Args:
            metric (str): 'flops', 'params' or 'acts'.

        Raises:
            ValueError: If the metric has no such form.
        """
        if metric not in _METRICS:
            raise ValueError(
                f'metric={metric!r}: expected one of {", ".join(_METRICS)}'
            )
        (b0, b1), (w0, w1) = self._rest, self._slices
        fixed = self._fixed[metric]
        if metric == 'acts':
            constant = (self._outputs * torch.stack([b0, b1])).sum()
            linear = w0 @ self._outputs[0] + w1 @ self._outputs[1]
            none = torch.zeros(len(linear), len(linear), dtype=torch.float64)
            return float(constant) + fixed, linear, none
        weight = self._weight[metric]
        linear = w0 @ (weight * b1) + w1 @ (weight * b0)
        pairs = w0 * weight @ w1.T
        return float((weight * b0) @ b1) + fixed, linear, pairs
