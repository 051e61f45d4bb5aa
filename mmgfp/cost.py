"""Cost of a network: multiply-accumulates, parameters, activations.

Conventions (those that reproduce the paper's unpruned rows):

- ``flops``: multiply-accumulates of convolutions and linear layers, per
  image; no bias, normalisation, activation function or pooling.
- ``params``: every parameter once, frozen ones included, no buffers.
- ``acts``: elements of all convolution and linear outputs, per image and
  call ("memory" in the paper); a head run on five levels counts five times.

Multiply-accumulates of a call are output positions times weight elements,
grouped convolutions included. So the cost of a pruned network follows from
the positions, which one forward tells, and the sizes of the weight's axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .compiled import around_compiled, by_name
from .groups import ChannelGroup
from .latency import LatencyModel, LatencyTable
from .operations import Weights

Metric = Literal['flops', 'params', 'acts', 'latency']
# those that are counted; latency is only known from a table
METRICS: tuple[Metric, ...] = ('flops', 'params', 'acts')


@dataclass
class Calls:
    """What one forward did with the weights of a network.

    Attributes:
        positions (dict[str, int]): Output positions per image of a weight,
            summed over all its calls: h * w for a convolution (of the input
            for a transposed one), rows for a linear layer.
        outputs (dict[str, float]): Elements per image that one slice of the
            weight's output axis makes. A slice of a grouped transposed
            convolution, an input of it, need not make a whole channel.
        output_axis (dict[str, int]): Axis of the weight that makes outputs.
    """

    positions: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    output_axis: dict[str, int] = field(default_factory=dict)


class _CallRecorder(TorchDispatchMode):
    """Notes which weight convolutions and matrix products use, how often."""

    def __init__(self, model: nn.Module, images: int) -> None:
        super().__init__()
        self.calls = Calls()
        self._images = images
        self._find = Weights(model).find

    def _add(
        self, name: str, weight: Tensor, axis: int, positions: int, out: Tensor
    ) -> None:
        calls, images = self.calls, self._images
        calls.output_axis[name] = axis
        per_slice = out.numel() / images / weight.shape[axis]
        calls.positions[name] = (
            calls.positions.get(name, 0) + positions // images
        )
        calls.outputs[name] = calls.outputs.get(name, 0) + per_slice

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func._schema.name
        if operation == 'aten::convolution':
            self._convolution(*args, out=out)
        elif operation in ('aten::addmm', 'aten::mm', 'aten::bmm'):
            self._linear(args[-1] if len(args) == 2 else args[2], out)
        elif operation == 'torchvision::deform_conv2d':
            self._compiled(args[1], out)
        return out

    def around(self, cls: type, call: Callable, args: Sequence[Any]) -> Any:
        """Compiled convolutions; one made of visible ones counts itself."""
        weight = by_name(call, args).get('weight')
        found = self._find(weight) if isinstance(weight, Tensor) else None
        before = self.calls.positions.get(found[0]) if found else None
        out = call(*args)
        if found and self.calls.positions.get(found[0]) == before:
            self._compiled(found[1], out)
        return out

    def _compiled(self, weight: Tensor, out: Any) -> None:
        found = self._find(weight)
        if (
            found is not None
            and isinstance(out, Tensor)
            and out.dim() == weight.dim() > 2
            and out.shape[1] == weight.shape[0]
        ):
            self._add(*found, 0, out.numel() // out.shape[1], out)

    def _convolution(
        self, source: Tensor, weight: Tensor, *settings: Any, out: Tensor
    ) -> None:
        found = self._find(weight)
        if found is None:
            return
        transposed, groups = settings[4], settings[6]
        sliding = source if transposed else out
        positions = sliding.numel() // sliding.shape[1]
        axis = 1 if transposed and groups == 1 else 0
        self._add(*found, axis, positions, out)

    def _linear(self, matrix: Tensor, out: Tensor) -> None:
        found = self._find(matrix)
        if found is None or found[1].dim() != 2:
            return
        # a batched product repeats the matrix, with stride 0
        as_stored = matrix.stride()[-2:] == found[1].stride()
        rows = out.numel() // out.shape[-1]
        self._add(*found, 1 if as_stored else 0, rows, out)


def record_calls(
    model: nn.Module, run: Callable[[], Any], images: int = 1
) -> Calls:
    """Run the model once and note the calls of its weights.

    Args:
        model (nn.Module): In eval mode.
        run (Callable): Runs it on demo input, without arguments.
        images (int): Images in that input. Defaults to 1.
    """
    recorder = _CallRecorder(model, images)
    with torch.no_grad(), around_compiled(recorder.around), recorder:
        run()
    return recorder.calls


def count_cost(model: nn.Module, calls: Calls) -> dict[str, dict[str, int]]:
    """Cost of a network as it is, in total ('') and by module.

    Returns:
        dict: Module name -> ``{'flops', 'params', 'acts'}``. A parameter of
        the network itself has a row under its own name.
    """
    table: dict[str, dict[str, int]] = {}
    metrics: tuple[str, ...] = METRICS
    total = dict.fromkeys(metrics, 0)
    for name, parameter in model.named_parameters():
        module = name.rpartition('.')[0] or name  # '' is the total
        row = table.setdefault(module, dict.fromkeys(metrics, 0))
        cost = {'params': parameter.numel(), 'flops': 0, 'acts': 0}
        if name in calls.positions:
            axis = calls.output_axis[name]
            channels = parameter.shape[axis]
            cost['flops'] = calls.positions[name] * parameter.numel()
            cost['acts'] = round(calls.outputs[name] * channels)
        for key, value in cost.items():
            row[key] += value
            total[key] += value
    return {'': total, **table}


class CostModel:
    """Cost of a network as a function of how many units each group keeps.

    Every parameter has at most two axes that shrink; its size is then
    ``rest * a0 * a1`` and the cost of removing one unit of each group are
    three matrix-vector products.

    Args:
        model (nn.Module): The network the groups belong to.
        groups (Sequence[ChannelGroup]): Groups that may shrink.
        calls (Calls): See :func:`record_calls`.
        latency (LatencyTable, optional): Of the full network; then latency
            is a metric, too.
        acts (float, optional): Activations of the full network, if this one
            is slim; for the latency.

    Raises:
        ValueError: If some parameter shrinks along more than two axes.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        calls: Calls,
        latency: LatencyTable | None = None,
        acts: float | None = None,
    ) -> None:
        names = [n for n, _ in model.named_parameters()]
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        self._row = {n: i for i, n in enumerate(names)}
        axes = _shrinking_axes(groups, shapes)
        self._axes = axes
        self.sizes = np.ones((2, len(names)))
        rest = np.ones(len(names))
        positions, outputs = np.zeros(len(names)), np.zeros(len(names))
        for name, i in self._row.items():
            for axis, n in enumerate(shapes[name]):
                if axis in axes[name]:
                    self.sizes[axes[name].index(axis), i] = n
                else:
                    rest[i] *= n
            if name in calls.positions:
                positions[i] = calls.positions[name]
                outputs[i] = calls.outputs[name]
        self._weight = {'params': rest, 'flops': rest * positions}
        self._set_outputs(calls, shapes, outputs)
        self._widths = [self._width_matrix(groups, k) for k in (0, 1)]
        self._latency: LatencyModel | None = None
        if latency is not None:
            acts = acts or self.total()['acts']
            self._set_latency(latency, shapes, acts)

    def _set_latency(
        self, table: LatencyTable, shapes: Mapping[str, tuple], acts: float
    ) -> None:
        """Which shrinking axis the first two axes of each parameter are."""
        self._fixed = np.ones((2, len(self._row)))
        # 0 or 1: that shrinking axis; 2: none, the size is fixed
        self._shrinking = np.full((2, len(self._row)), 2)
        for name, i in self._row.items():
            for axis, n in enumerate(shapes[name][:2]):
                self._fixed[axis, i] = n
                if axis in self._axes[name]:
                    self._shrinking[axis, i] = self._axes[name].index(axis)
        units = [
            sum(w.multiply(which == k) for k, w in enumerate(self._widths))
            for which in self._shrinking
        ]
        self._latency = LatencyModel(table, list(self._row), units, acts)

    def _first_axes(self) -> np.ndarray:
        """(2, T) current sizes of the first two axes."""
        return np.stack(
            [
                np.choose(which, [*self.sizes, fixed])
                for which, fixed in zip(self._shrinking, self._fixed)
            ]
        )

    def _set_outputs(
        self, calls: Calls, shapes: Mapping[str, tuple], outputs: np.ndarray
    ) -> None:
        """Activations per output channel, on the axis that makes outputs."""
        self._outputs = np.zeros((2, len(self._row)))
        self._fixed_acts = 0.0
        for name, axis in calls.output_axis.items():
            i = self._row[name]
            if axis in self._axes[name]:
                self._outputs[self._axes[name].index(axis), i] = outputs[i]
            else:
                self._fixed_acts += outputs[i] * shapes[name][axis]

    def _width_matrix(
        self, groups: Sequence[ChannelGroup], k: int
    ) -> csr_matrix:
        """(G, T) slices that one unit takes from shrinking axis ``k``."""
        rows, columns, values = [], [], []
        for g, group in enumerate(groups):
            for member in group.members:
                axes = self._axes.get(member.tensor, ())
                if k < len(axes) and axes[k] == member.axis:
                    rows.append(g)
                    columns.append(self._row[member.tensor])
                    values.append(float(member.width))
        shape = (len(groups), len(self._row))
        return csr_matrix((values, (rows, columns)), shape=shape)

    def remove(self, units: np.ndarray) -> None:
        """Forget some units of each group, shape (G,)."""
        for k in (0, 1):
            self.sizes[k] -= self._widths[k].T @ np.asarray(units, float)

    def without(self, units: np.ndarray) -> dict[str, float]:
        """Cost if so many units of each group, shape (G,), were gone."""
        before = self.sizes.copy()
        self.remove(units)
        cost = self.total()
        self.sizes = before
        return cost

    def total(self) -> dict[str, float]:
        """``{'flops', 'params', 'acts'}`` at the current sizes.

        And ``'latency'`` in milliseconds, if there is a table.
        """
        volume = self.sizes.prod(0)
        acts = (self._outputs * self.sizes).sum() + self._fixed_acts
        cost = {
            'flops': float(self._weight['flops'] @ volume),
            'params': float(self._weight['params'] @ volume),
            'acts': float(acts),
        }
        if self._latency is not None:
            cost['latency'] = self._latency.total(self._first_axes(), acts)
        return cost

    def marginal(self, metric: Metric) -> np.ndarray:
        """What removing one unit of each group saves now, shape (G,).

        The exact difference of :meth:`total`. It equals the sum of child and
        parent terms of the paper (Section 3.3), except where one layer loses
        an input and an output with the same unit: their common corner is
        counted once here.
        """
        w0, w1 = self._widths
        if metric == 'acts':
            return w0 @ self._outputs[0] + w1 @ self._outputs[1]
        if metric == 'latency':
            assert self._latency is not None
            return self._latency.marginal(
                self._first_axes(), self.marginal('acts')
            )
        weight, (a0, a1) = self._weight[metric], self.sizes
        both = w0.multiply(w1)
        return w0 @ (weight * a1) + w1 @ (weight * a0) - both @ weight


def _shrinking_axes(
    groups: Sequence[ChannelGroup], shapes: Mapping[str, tuple]
) -> dict[str, list[int]]:
    axes: dict[str, list[int]] = {name: [] for name in shapes}
    for group in groups:
        for member in group.members:
            known = axes.get(member.tensor)
            if known is not None and member.axis not in known:
                known.append(member.axis)
    for name, known in axes.items():
        known.sort()
        if len(known) > 2:
            raise ValueError(
                f'{name} of shape {shapes[name]} shrinks along '
                f'the axes {known}; at most two are supported'
            )
    return axes
