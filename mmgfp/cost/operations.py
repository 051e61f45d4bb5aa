"""The convolutions and matrix products that a network runs on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..tracing.origins import Origins


@dataclass(frozen=True)
class Operation:
    """A convolution or matrix product with a weight, as run on a device.

    Attributes:
        weight (tuple[int, ...]): Shape of the weight, as it is stored.
        source (tuple[int, ...]): Shape of the input; (rows, channels) for a
            linear layer.
        settings (tuple): Stride, padding, dilation, whether transposed,
            output padding and groups; () for a linear layer.
        bias (bool): Whether it has a bias.
    """

    weight: tuple[int, ...]
    source: tuple[int, ...]
    settings: tuple[Any, ...] = ()
    bias: bool = False

    @property
    def groups(self) -> int:
        """Groups of the convolution at full width."""
        return self.settings[5] if self.settings else 1

    def widths(self, ratios: Sequence[float]) -> tuple[list[int], list[int]]:
        """Returns ascending sizes of the weight's first two axes to measure.

        Grouped convolutions are cut by whole groups, along the first axis.

        Args:
            ratios (Sequence[float]): Ratios of the full width.
        """
        per_group = self.weight[0] // self.groups
        first = {max(1, round(self.groups * s)) for s in ratios}
        if self.groups > 1:
            return sorted(n * per_group for n in first), [self.weight[1]]
        sizes = [{max(1, round(n * s)) for s in ratios} for n in self.weight]
        return sorted(sizes[0]), sorted(sizes[1])

    def inputs(
        self, first: int, second: int, device: torch.device | str = 'cpu'
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[Any, ...]]:
        """Returns input, weight, bias and settings at some width.

        Args:
            first (int): Size of the weight's first axis.
            second (int): Size of its second axis.
            device (torch.device | str): Their device. Defaults to 'cpu'.
        """
        shape = (first, second, *self.weight[2:])
        settings = self.settings
        transposed = bool(settings and settings[3])
        channels = first if transposed else second
        outputs = second if transposed else first
        if self.groups > 1:
            groups = first * self.groups // self.weight[0]
            settings = (*settings[:5], groups)
            channels = first if transposed else second * groups
            outputs = second * groups if transposed else first
        if settings:
            source = (self.source[0], channels, *self.source[2:])
        else:
            source = (self.source[0], channels)
        return (
            torch.rand(source, device=device),
            torch.rand(shape, device=device),
            torch.rand(outputs, device=device) if self.bias else None,
            settings,
        )


def run_operation(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    settings: tuple[Any, ...],
) -> Tensor:
    """Run an operation; its time is measured."""
    if not settings:
        return nn.functional.linear(source, weight, bias)
    stride, padding, dilation, transposed, more, groups = settings
    return torch.convolution(
        source,
        weight,
        bias,
        list(stride),
        list(padding),
        list(dilation),
        transposed,
        list(more),
        groups,
    )


class _Recorder(TorchDispatchMode):
    """Records the operations with weights, to run them again.

    The recorder of :mod:`mmgfp.cost.model` counts; this one needs the settings
    and the shapes of single calls.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: dict[str, list[Operation]] = {}
        self.origins = Origins(model)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        operation = func._schema.name
        if operation == 'aten::convolution':
            source, weight, bias = args[:3]
            settings = tuple(
                tuple(a) if isinstance(a, (list, tuple)) else a
                for a in args[3:9]
            )
            self._note(weight, tuple(source.shape), settings, bias is not None)
        elif operation in ('aten::addmm', 'aten::mm'):
            source, weight = args[-2:]
            self._note(weight, tuple(source.shape), (), len(args) == 3)
        out = func(*args, **kwargs)
        self.origins.note(func, args, kwargs, out)
        return out

    def _note(
        self,
        weight: Tensor,
        source: tuple[int, ...],
        settings: tuple[Any, ...],
        bias: bool,
    ) -> None:
        name = self.origins.weight_of(weight)
        if name is None:
            return
        stored = self.origins.stored[name]
        expected = tuple(stored.shape)
        if not settings:  # a matrix is transposed for the product
            expected = expected[::-1]
        if tuple(weight.shape) != expected:
            return
        calls = self.found.setdefault(name, [])
        calls.append(Operation(tuple(stored.shape), source, settings, bias))


def record_operations(
    model: nn.Module, run: Callable[[], Any]
) -> dict[str, list[Operation]]:
    """Returns the operations of one forward by name of the weight.

    They include convolutions with kernels that are computed from a weight of
    the same shape.

    Args:
        model (nn.Module): In eval mode.
        run (Callable): Runs it on demo input, without arguments.
    """
    recorder = _Recorder(model)
    with torch.no_grad(), recorder.origins.inputs(), recorder:
        run()
    return recorder.found
