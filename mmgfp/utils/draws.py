"""Random numbers that networks draw while they are traced or compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def same_draws() -> Iterator[None]:
    """Seed the random generators inside, and restore their states after."""
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if _on_cuda() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def _on_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def draws_numbers(run: Callable[[], Any]) -> bool:
    """Returns whether a run draws from torch's global random generators."""
    with _Draws() as draws:
        run()
    return draws.found


class _Draws(TorchDispatchMode):
    """Records whether an operation draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get('generator') is None:
            self.found |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **kwargs)
