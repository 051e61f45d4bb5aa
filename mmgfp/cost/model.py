"""Cost of a network: multiply-accumulates, parameters, activations.

Conventions (those that reproduce the paper's unpruned rows):

- ``flops``: multiply-accumulates of convolutions and linear layers, per
  image; no bias, normalisation, activation function or pooling.
- ``params``: every parameter once, frozen ones included, no buffers.
- ``acts``: elements of all convolution and linear outputs, per image and
  call ("memory" in the paper); a head run on five levels counts five times.

Multiply-accumulates of a call are output positions times weight elements,
grouped convolutions included. So the cost of a pruned network follows from
the positions, which one forward records, and the sizes of the weight's axes.

A layer may compute its kernel. If it is computed element by element from one
weight (weight standardisation), it counts as that weight. Otherwise it is a
fixed cost of the module that runs. A product of two factors that depend on the
input, as in an attention, is not counted, but reported. The sum of all is
compared with the count of torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode

from ..groups import ChannelGroup, layer_of
from ..slimming.surgery import named_tensors
from ..tracing.origins import PRODUCTS, Origins
from ..utils.extension_ops import around_compiled, by_name
from ..utils.trees import tree_leaves
from .latency import LatencyModel, LatencyTable

try:
    # not FlopCounterMode, whose hooks fail if a network computes gradients
    from torch.utils.flop_counter import flop_registry
except ImportError:  # older torch
    flop_registry = {}

Metric = Literal['flops', 'params', 'acts', 'latency']
# the counted metrics; latency needs a table
METRICS: tuple[Metric, ...] = ('flops', 'params', 'acts')

# Ratio of the multiply-accumulates from which a difference is reported.
_DOUBT = 0.01

# Name of a row of kernels that are computed from no single weight.
_COMPUTED = '{} (computed kernels)'

_ATTENTION = 'aten::_scaled_dot_product_'

# Operations of several linear layers: each row is multiplied by each matrix.
_FUSED = (
    'aten::_native_multi_head_attention',
    'aten::_transformer_encoder_layer_fwd',
    'aten::mkldnn_rnn_layer',
    'aten::_cudnn_rnn',
    'aten::miopen_rnn',
)


@dataclass
class Calls:
    """Recorded calls of a network's weights in one forward.

    Attributes:
        positions (dict[str, float]): Multiply-accumulates per image and
            element of a weight, a parameter or buffer, summed over all its
            calls: h * w for a convolution (of the input for a transposed
            one), rows for a linear layer.
        outputs (dict[str, float]): Elements per image that one slice of the
            weight's output axis makes. A slice of a grouped transposed
            convolution, an input of it, need not make a whole channel.
        output_axis (dict[str, int | None]): Axis of the weight that makes
            outputs; None if no axis does, and ``outputs`` are all outputs.
        fixed (dict[str, dict[str, float]]): By name of a module, flops and
            acts of kernels that it computes from no single weight.
        left_out (float): Multiply-accumulates per image of products of two
            activations, which are no layers.
        nonzero (dict[str, float]): Multiply-accumulates per image with
            elements of the kernel that are not zero, by weight. Empty unless
            they were counted.
    """

    positions: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    output_axis: dict[str, int | None] = field(default_factory=dict)
    fixed: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: float = 0
    nonzero: dict[str, float] = field(default_factory=dict)

    def total_fixed(self, metric: str) -> float:
        """Returns the ``flops`` or ``acts`` that belong to no weight."""
        return sum(cost[metric] for cost in self.fixed.values())

    def unattributed(self, flops: float) -> dict[str, float]:
        """Returns the ratios of the work that belongs to no weight.

        Args:
            flops (float): Multiply-accumulates of the whole network.

        Returns:
            dict: ``computed_kernels``, a ratio of the flops;
            ``products_of_activations``, of the flops and those products.
        """
        fixed, left_out = self.total_fixed('flops'), self.left_out
        return {
            'computed_kernels': fixed / flops if fixed else 0.0,
            'products_of_activations': left_out / (flops + left_out)
            if left_out
            else 0.0,
        }


class _CallRecorder(TorchDispatchMode):
    """Records the weights that convolutions and matrix products use."""

    def __init__(self, model: nn.Module, images: int, zeros: bool) -> None:
        super().__init__()
        self.calls = Calls()
        # multiply-accumulates of operations that torch's counter knows: as
        # counted here, and by torch
        self.seen = self.expected = 0
        self.unknown: list[str] = []  # other operations on weights
        self.origins = Origins(model)
        self._images = images
        self._zeros = zeros  # whether to count them
        self._names = {id(m): n for n, m in model.named_modules()}
        self._stack: list[str] = []
        self._added = 0  # how many operations were counted

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Track the module being executed."""

        def enter(module: nn.Module, args: tuple) -> None:
            outer = self._stack[-1] if self._stack else ''
            self._stack.append(self._names.get(id(module), outer))

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            self._stack.pop()

        handles = [
            nn_module.register_module_forward_pre_hook(enter),
            nn_module.register_module_forward_hook(leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _where(self) -> str:
        return (self._stack and self._stack[-1]) or 'the network itself'

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # layers are not decomposed
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._note(func, args, kwargs, out)
        self.origins.note(func, args, kwargs, out)
        return out

    def _note(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        operation = func._schema.name
        before = self.calls.left_out, self._added
        if operation == 'aten::convolution':
            macs = self._convolution(*args, out=out)
        elif operation in PRODUCTS:
            a, b = (args[i] for i in PRODUCTS[operation])
            macs = self._product(a, b, out)
        elif operation.startswith(_ATTENTION):
            macs = self._attention(*args[:3])
        elif operation in _FUSED:
            macs = self._fused(operation, args)
        elif operation == 'torchvision::deform_conv2d':
            macs = self._compiled(args[1], out)
        elif operation == 'aten::_trilinear':  # of nn.Bilinear
            macs = len(args[0]) * args[1].numel()
            self._add(args[1], 0, macs, out.numel())
        else:
            macs = 0
            if func.namespace not in ('aten', 'prim', 'prims'):
                self._doubt(operation, tree_leaves((args, kwargs)), before)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.seen += macs
            self.expected += formula(*args, **kwargs, out_val=out) // 2

    def _add(
        self,
        kernel: Tensor,
        axis: int | None,
        macs: int,
        acts: int,
        images: int | None = None,
    ) -> None:
        """Count an operation with a kernel.

        Args:
            kernel (Tensor): Argument of the operation.
            axis (int | None): The axis of it that makes outputs, if any.
            macs (int): Multiply-accumulates, of all images.
            acts (int): Elements of the result.
            images (int, optional): Number of its images, if not all.
        """
        calls, images = self.calls, images or self._images
        self._added += 1
        name = self.origins.weight_of(kernel)
        if name is None:
            known = calls.fixed.setdefault(
                self._where(), {'flops': 0, 'acts': 0}
            )
            known['flops'] += _ratio(macs, images)
            known['acts'] += _ratio(acts, images)
            return
        stored = self.origins.stored[name]
        positions = _ratio(macs, images * stored.numel())
        calls.positions[name] = calls.positions.get(name, 0) + positions
        if self._zeros:
            share = int(torch.count_nonzero(kernel)) / kernel.numel()
            before = calls.nonzero.get(name, 0)
            calls.nonzero[name] = before + macs / images * share
        made = None
        if axis is not None:
            made = self.origins.output_axis(name, kernel, axis)
        made = calls.output_axis.setdefault(name, made)
        slices = 1 if made is None else stored.shape[made]
        per_slice = acts / images / slices
        calls.outputs[name] = calls.outputs.get(name, 0) + per_slice

    def _convolution(
        self, source: Tensor, weight: Tensor, *settings: Any, out: Tensor
    ) -> int:
        transposed, groups = settings[4], settings[6]
        sliding = source if transposed else out
        macs = sliding.numel() // sliding.shape[1] * weight.numel()
        axis = 1 if transposed and groups == 1 else 0
        self._add(weight, axis, macs, out.numel())
        return macs

    def _product(self, a: Tensor, b: Tensor, out: Tensor) -> int:
        """Count ``a @ b`` with a factor that is computed from weights."""
        macs = a.numel() * (b.shape[-1] if b.dim() > 1 else 1)
        depends = [self.origins.of(factor).data for factor in (a, b)]
        stored = [self.origins.stored_in(factor) for factor in (a, b)]
        if b.dim() == 1 and not any(depends):  # for the norm of a weight
            return macs
        # a product without an axis of images is computed once
        once = all(stored) and all(a.stride())
        add = partial(
            self._add, macs=macs, acts=out.numel(), images=1 if once else None
        )
        if stored[1] or (not stored[0] and depends == [True, False]):
            add(b, -1 if b.dim() > 1 else None)
        elif stored[0] or depends == [False, True]:
            add(a, -2 if b.dim() > 1 else 0)
        else:
            self.calls.left_out += macs / self._images
        return macs

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> int:
        tokens = key.shape[-2]
        rows = query.numel() // query.shape[-1]
        macs = rows * tokens * (query.shape[-1] + value.shape[-1])
        self.calls.left_out += macs / self._images
        return macs

    def _fused(self, operation: str, args: tuple) -> int:
        """Count several linear layers on all rows of the first argument."""
        matrices = [
            t
            for t in tree_leaves(args[1:])
            if isinstance(t, Tensor)
            and t.dim() == 2
            and self.origins.stored_in(t) is not None
        ]
        if not matrices:
            return 0
        source = args[0]
        width = matrices[0].shape[1]
        rows = source.numel() // width
        if not operation.endswith(('_rnn', '_rnn_layer')):
            pairs = rows * source.shape[1]
            self.calls.left_out += 2 * pairs * width / self._images
        for matrix in matrices:
            acts = rows * len(matrix)
            self._add(matrix, 0, rows * matrix.numel(), acts)
        return sum(rows * matrix.numel() for matrix in matrices)

    def around(self, cls: type, call: Callable, args: Sequence[Any]) -> Any:
        """Count extension operators; visible convolutions count themselves."""
        weight = by_name(call, args).get('weight')
        before = self.calls.left_out, self._added
        out = call(*args)
        if before == (self.calls.left_out, self._added) and isinstance(
            weight, Tensor
        ):
            self._compiled(weight, out)
        self._doubt(cls.__name__, args, before)
        return out

    def _compiled(self, weight: Tensor, out: Any) -> int:
        if (
            not isinstance(out, Tensor)
            or not out.dim() == weight.dim() > 2
            or out.shape[1] != weight.shape[0]
        ):
            return 0
        macs = out.numel() // out.shape[1] * weight.numel()
        self._add(weight, 0, macs, out.numel())
        return macs

    def _doubt(
        self, operation: str, given: Sequence[Any], before: tuple
    ) -> None:
        """Record an operation with a weight that was not counted."""
        if before == (self.calls.left_out, self._added) and any(
            isinstance(t, Tensor)
            and t.dim() > 1
            and not self.origins.of(t).data
            and self.origins.weight_of(t) is not None
            for t in given
        ):
            self.unknown.append(f'{operation} in {self._where()}')


def _ratio(number: int, divisor: int) -> float:
    """Returns the quotient, exact if it is a whole number."""
    whole, rest = divmod(number, divisor)
    return number / divisor if rest else whole


def record_calls(
    model: nn.Module,
    run: Callable[[], Any],
    images: int = 1,
    zeros: bool = False,
) -> Calls:
    """Run the model once and record the calls of its weights.

    Warns of unknown operations with weights, and if the count differs from
    that of torch by more than a hundredth. (Torch also counts products of
    activations; torch 2.0 counts nothing.)

    Args:
        model (nn.Module): In eval mode.
        run (Callable): Runs it on demo input, without arguments.
        images (int): Images in that input. Defaults to 1.
        zeros (bool): Whether to count zeros in kernels
            (:attr:`Calls.nonzero`). Defaults to False.
    """
    recorder = _CallRecorder(model, images, zeros)
    with (
        torch.no_grad(),
        recorder.modules(),
        recorder.origins.inputs(),
        around_compiled(recorder.around),
        recorder,
    ):
        run()
    for operation in dict.fromkeys(recorder.unknown):
        warnings.warn(
            f'{operation} takes a weight and has no rule: '
            'its cost counts as 0',
            stacklevel=2,
        )
    _compare(recorder.seen, recorder.expected)
    return recorder.calls


def _compare(counted: int, expected: int) -> None:
    """Warn if the count differs from that of torch."""
    if abs(counted - expected) > _DOUBT * expected:
        warnings.warn(
            f'{counted:,} multiply-accumulates were counted, including '
            f'products of activations, but torch.utils.flop_counter counts '
            f'{expected:,}: pruning by cost may choose wrong channels',
            stacklevel=3,
        )


def count_cost(model: nn.Module, calls: Calls) -> dict[str, dict[str, int]]:
    """Returns the current cost of a network, in total ('') and by module.

    Returns:
        dict: Module name -> ``{'flops', 'params', 'acts'}``. A parameter of
        the network itself has a row under its own name, and so have the
        kernels that a module computes from no single weight.
    """
    table: dict[str, dict[str, int]] = {}
    metrics: tuple[str, ...] = METRICS
    total = dict.fromkeys(metrics, 0)
    rows: list[tuple[str, dict[str, float]]] = []
    parameters = dict(model.named_parameters())
    for name, tensor in named_tensors(model).items():
        cost: dict[str, float] = {'params': 0, 'flops': 0, 'acts': 0}
        if name in parameters:
            cost['params'] = tensor.numel()
        elif name not in calls.positions:
            continue
        if name in calls.positions:
            cost['flops'] = calls.positions[name] * tensor.numel()
            axis = calls.output_axis[name]
            slices = 1 if axis is None else tensor.shape[axis]
            cost['acts'] = calls.outputs[name] * slices
        rows.append((layer_of(name), cost))
    rows += [(_COMPUTED.format(n), cost) for n, cost in calls.fixed.items()]
    for module, cost in rows:  # '' is the total
        row = table.setdefault(module, dict.fromkeys(metrics, 0))
        for key, value in cost.items():
            row[key] += round(value)
            total[key] += round(value)
    return {'': total, **table}


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of the cost: T tensors, G groups.

    Attributes:
        slices (list[np.ndarray]): For both axes, (G, T) slices that one unit
            takes from it.
        sizes (np.ndarray): (2, T) sizes of both axes.
        weight (dict[str, np.ndarray]): 'flops' and 'params', (T,), for one
            slice of each axis.
        outputs (np.ndarray): (2, T) activations for one slice of each axis.
        fixed (dict[str, float]): By metric, cost that no width changes.
    """

    slices: list[np.ndarray]
    sizes: np.ndarray
    weight: dict[str, np.ndarray]
    outputs: np.ndarray
    fixed: dict[str, float]


class CostModel:
    """Cost of a network as a function of the number of units of each group.

    At most two axes of a parameter are cut; its size is then
    ``rest * a0 * a1``, and the savings of one unit of each group are three
    matrix-vector products. The same holds for buffers that layers multiply
    with. Kernels that are computed from no single weight have a fixed cost.

    Args:
        model (nn.Module): The network the groups belong to.
        groups (Sequence[ChannelGroup]): Groups that may be cut.
        calls (Calls): See :func:`record_calls`.
        latency (LatencyTable, optional): Table of the full network; with it,
            latency is a metric, too.
        acts (float, optional): Activations of the full network, if this one
            is slim; for the latency.

    Raises:
        ValueError: If a parameter is cut along more than two axes.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        calls: Calls,
        latency: LatencyTable | None = None,
        acts: float | None = None,
    ) -> None:
        parameters = dict(model.named_parameters())
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in named_tensors(model).items()
            if name in parameters or name in calls.positions
        }
        names = list(shapes)
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
            positions[i] = calls.positions.get(name, 0)
            outputs[i] = calls.outputs.get(name, 0)
        owned = np.array([name in parameters for name in names])
        self._weight = {'params': rest * owned, 'flops': rest * positions}
        self._fixed_flops = calls.total_fixed('flops')
        self._set_outputs(calls, shapes, outputs)
        self._widths = [self._width_matrix(groups, k) for k in (0, 1)]
        self._latency: LatencyModel | None = None
        if latency is not None:
            acts = acts or self.total()['acts']
            self._set_latency(latency, shapes, acts)

    def _set_latency(
        self, table: LatencyTable, shapes: Mapping[str, tuple], acts: float
    ) -> None:
        """Match the first two axes of each parameter with its cut axes."""
        self._fixed = np.ones((2, len(self._row)))
        # 0 or 1: that cut axis; 2: none, the size is fixed
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

    def _first_axes(self, sizes: np.ndarray) -> np.ndarray:
        """Returns sizes (2, T) of the first two axes, from the cut axes'."""
        return np.stack(
            [
                np.choose(which, [*sizes, fixed])
                for which, fixed in zip(self._shrinking, self._fixed)
            ]
        )

    @property
    def has_latency(self) -> bool:
        """Whether there is a latency table."""
        return self._latency is not None

    def latency(self, sizes: np.ndarray, acts: float) -> float:
        """Returns the milliseconds of a network of other sizes.

        Args:
            sizes (np.ndarray): (2, T) sizes of the cut axes.
            acts (float): Its activations.
        """
        assert self._latency is not None
        return self._latency.total(self._first_axes(sizes), acts)

    def latency_slopes(self, sizes: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the derivatives of :meth:`latency`.

        Args:
            sizes (np.ndarray): (2, T) sizes of the cut axes.

        Returns:
            tuple: By the sizes, (2, T), and by the activations.
        """
        assert self._latency is not None
        by_axis, by_acts = self._latency.slopes(self._first_axes(sizes))
        slopes = np.zeros_like(sizes)
        for which, slope in zip(self._shrinking, by_axis):
            for k in (0, 1):
                slopes[k] += np.where(which == k, slope, 0.0)
        return slopes, by_acts

    def _set_outputs(
        self, calls: Calls, shapes: Mapping[str, tuple], outputs: np.ndarray
    ) -> None:
        """Set the activations per output channel on the output axis."""
        self._outputs = np.zeros((2, len(self._row)))
        self._fixed_acts = calls.total_fixed('acts')
        for name, axis in calls.output_axis.items():
            i = self._row[name]
            if axis is None:
                self._fixed_acts += outputs[i]
            elif axis in self._axes[name]:
                self._outputs[self._axes[name].index(axis), i] = outputs[i]
            else:
                self._fixed_acts += outputs[i] * shapes[name][axis]

    def _width_matrix(
        self, groups: Sequence[ChannelGroup], k: int
    ) -> csr_matrix:
        """Returns the slices (G, T) that a unit takes from cut axis ``k``."""
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

    @property
    def tensors(self) -> list[str]:
        """Names of the T parameters and buffers with a cost."""
        return list(self._row)

    def coefficients(self) -> Coefficients:
        """Returns the coefficients of the cost at the current sizes."""
        return Coefficients(
            slices=[matrix.toarray() for matrix in self._widths],
            sizes=self.sizes.copy(),
            weight=self._weight,
            outputs=self._outputs,
            fixed={
                'flops': self._fixed_flops,
                'params': 0.0,
                'acts': self._fixed_acts,
            },
        )

    def cut(self, units: np.ndarray) -> None:
        """Cut a number of units of each group, shape (G,)."""
        for k in (0, 1):
            self.sizes[k] -= self._widths[k].T @ np.asarray(units, float)

    def after_cut(self, units: np.ndarray) -> dict[str, float]:
        """Returns the cost after a cut of further units, shape (G,)."""
        before = self.sizes.copy()
        self.cut(units)
        cost = self.total()
        self.sizes = before
        return cost

    def total(self) -> dict[str, float]:
        """Returns ``{'flops', 'params', 'acts'}`` at the current sizes.

        And ``'latency'`` in milliseconds, if there is a table.
        """
        volume = self.sizes.prod(0)
        acts = (self._outputs * self.sizes).sum() + self._fixed_acts
        cost = {
            'flops': float(self._weight['flops'] @ volume + self._fixed_flops),
            'params': float(self._weight['params'] @ volume),
            'acts': float(acts),
        }
        if self._latency is not None:
            cost['latency'] = self.latency(self.sizes, acts)
        return cost

    def marginal(self, metric: Metric) -> np.ndarray:
        """Returns the savings of cutting one unit of each group, shape (G,).

        They are exact differences of :meth:`total`, and equal the sum of child
        and parent terms of the paper (Section 3.3). The exception is a layer
        whose inputs and outputs are cut with the same unit: their common
        corner is counted once here.
        """
        w0, w1 = self._widths
        if metric == 'acts':
            return w0 @ self._outputs[0] + w1 @ self._outputs[1]
        if metric == 'latency':
            assert self._latency is not None
            return self._latency.marginal(
                self._first_axes(self.sizes), self.marginal('acts')
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
                f'{name} of shape {shapes[name]} would be cut along '
                f'the axes {known}; expected at most two'
            )
    return axes
