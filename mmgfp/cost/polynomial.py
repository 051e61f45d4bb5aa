"""Cost as a function of widths in torch, batched and differentiable.

The size of a parameter is ``rest * a0 * a1``, where both axes are linear in
the widths of the groups (:class:`mmgfp.cost.model.CostModel`). So flops and
params are polynomials of degree two in the widths, and acts of degree one.
Latency is interpolated in a table of measured widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .model import CostModel

_METRICS = ('flops', 'params', 'acts')


class Cost:
    """Cost of a network as a function of the widths of its groups.

    Args:
        model (CostModel): Cost model of the network, which stays as it is.
        sizes (np.ndarray): (G,) units that each group has in it.

    Attributes:
        tensors (list[str]): Names of the T parameters and buffers with a cost.
    """

    def __init__(self, model: CostModel, sizes: np.ndarray) -> None:
        self.tensors = model.tensors
        self._model = model
        parts = model.coefficients()
        self._slices = [torch.from_numpy(part) for part in parts.slices]
        full = torch.from_numpy(np.asarray(sizes, float))
        # slices of each axis that belong to no group
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
        """Returns the cost of networks with these widths.

        Args:
            widths (Tensor): (..., G) units of each group that are left; may
                be fractions, such as expected widths.
            density (Mapping[str, Tensor], optional): (...) ratio of non-zero
                elements, by name of a tensor; 1 for others. Activations do
                not depend on it.

        Returns:
            dict[str, Tensor]: ``flops``, ``params`` and ``acts``, (...) each;
            with a latency table also ``latency`` in milliseconds, which does
            not depend on the density.

        Raises:
            ValueError: If the density is of a tensor without a cost.
        """
        widths = widths.double()
        a0, a1 = (
            rest + widths @ part
            for rest, part in zip(self._rest, self._slices)
        )
        volume = a0 * a1
        for name, ratio in (density or {}).items():
            if name not in self.tensors:
                raise ValueError(
                    f'density of {name!r}: expected the name of a parameter '
                    'of a layer'
                )
            here = torch.zeros(len(self.tensors), dtype=torch.float64)
            here[self.tensors.index(name)] = 1
            volume = volume * (1 + here * (ratio[..., None] - 1))
        axes = torch.stack([a0, a1], -2)
        acts = (self._outputs * axes).sum((-1, -2)) + self._fixed['acts']
        cost = {
            metric: volume @ weight + self._fixed[metric]
            for metric, weight in self._weight.items()
        }
        cost['acts'] = acts
        if self._model.has_latency:
            cost['latency'] = _Latency.apply(axes, acts, self._model)
        return cost

    def quadratic(self, metric: str) -> tuple[float, Tensor, Tensor]:
        """Returns ``c``, ``l`` (G,), ``Q`` (G, G) of ``c + l.n + n.Q.n``.

        Args:
            metric (str): 'flops', 'params' or 'acts'.

        Raises:
            ValueError: If the metric is no polynomial.
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


class _Latency(torch.autograd.Function):
    """Milliseconds, (...), from sizes of the cut axes and activations."""

    @staticmethod
    def forward(
        ctx: Any, axes: Tensor, acts: Tensor, model: CostModel
    ) -> Tensor:
        ctx.save_for_backward(axes)
        ctx.model = model
        flat = axes.detach().flatten(0, -3) if axes.dim() > 2 else axes[None]
        found = [
            model.latency(sizes.numpy(), float(number))
            for sizes, number in zip(flat, acts.detach().reshape(-1))
        ]
        return axes.new_tensor(found).reshape(acts.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (axes,) = ctx.saved_tensors
        flat = axes.reshape(-1, *axes.shape[-2:])
        found = [ctx.model.latency_slopes(sizes.numpy()) for sizes in flat]
        by_axes = torch.stack([torch.from_numpy(s) for s, _ in found])
        by_acts = grad.new_tensor([rest for _, rest in found])
        return (
            grad[..., None, None] * by_axes.reshape(axes.shape),
            grad * by_acts.reshape(grad.shape),
            None,
        )
