"""Running a network in double precision, also around operators without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .extension_ops import around_compiled
from .trees import map_tensors

Run = Callable[[nn.Module], Any]


def in_double(run: Run) -> Run:
    """Returns the same forward for a model in double precision.

    Args:
        run (Callable): ``run(model)`` runs a model on demo input.
    """

    def cast_inputs(
        module: nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict]:
        return _cast((args, kwargs), torch.float64)

    def run_double(model: nn.Module) -> Any:
        handle = model.register_forward_pre_hook(cast_inputs, with_kwargs=True)
        try:
            with _double_by_default(), around_compiled(_in_a_known_precision):
                return run(model)
        finally:
            handle.remove()

    return run_double


@contextmanager
def _double_by_default() -> Iterator[None]:
    """Make new tensors double, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _in_a_known_precision(
    cls: type, call: Callable, args: Sequence[Any]
) -> Any:
    """Cast the arguments of extension operators, some of which lack double."""
    try:
        return call(*_cast(args, torch.float64))
    except RuntimeError:
        out = call(*_cast(args, torch.float32))
        return _cast(out, torch.float64)


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    return map_tensors(
        lambda t: t.to(dtype) if t.is_floating_point() else t, tree
    )
