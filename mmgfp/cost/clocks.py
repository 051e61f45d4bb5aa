"""How long a forward takes, and how much of it each module."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Run = Callable[[], Any]

# Of the time of a forward, what is spent in no module of the model.
REST = 'rest'


class ProcessorClock:
    """Time on a CPU."""

    def wait(self) -> None:
        """All is done."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def seconds(self, began: float, ended: float) -> float:
        """Between two marks."""
        return ended - began


class GpuClock:
    """Time on a GPU, which works on what was asked of it earlier."""

    def wait(self) -> None:
        """Until all is done."""
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        """When the GPU comes to this place."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(
        self, began: torch.cuda.Event, ended: torch.cuda.Event
    ) -> float:
        """Between two marks."""
        ended.synchronize()
        return began.elapsed_time(ended) / 1000


def clock_of(device: str) -> ProcessorClock | GpuClock:
    """The clock of a device, ``'cpu'`` or ``'cuda'``."""
    return ProcessorClock() if device == 'cpu' else GpuClock()


def seconds_of(run: Run, clock: Any) -> float:
    """That a forward takes, with nothing else under way."""
    clock.wait()
    began = clock.mark()
    run()
    ended = clock.mark()
    return clock.seconds(began, ended)


# -- modules ---------------------------------------------------------------


def entrances(model: nn.Module, run: Run) -> list[str]:
    """Modules that a forward calls from outside of all modules but the model.

    The backbone for one. Heads are often run by a method of their own, which
    hooks do not see; then it is their layers.
    """
    inside: list[str] = []
    found: dict[str, None] = {}

    def enter(name: str) -> Callable:
        def hook(*_: Any) -> None:
            if not inside:
                found[name] = None
            inside.append(name)

        return hook

    def leave(*_: Any) -> None:
        inside.pop()

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return list(found)


def module_shares(
    model: nn.Module, names: Sequence[str], run: Run, clock: Any
) -> dict[str, float]:
    """Shares of a forward's time by top-level module.

    Args:
        model (nn.Module): What ``run`` runs.
        names (Sequence[str]): From :func:`entrances`.
        run (Callable): A forward.
        clock (ProcessorClock | GpuClock): That of the device.
    """
    open_calls: list[Any] = []
    spans: list[tuple[str, Any, Any]] = []

    def enter(*_: Any) -> None:
        open_calls.append(clock.mark())

    def leave(top: str) -> Callable:
        def hook(*_: Any) -> None:
            began = open_calls.pop()
            if not open_calls:  # a call inside of another is in its time
                spans.append((top, began, clock.mark()))

        return hook

    handles = []
    for name in names:
        module, top = model.get_submodule(name), name.partition('.')[0]
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave(top)))
    try:
        total = seconds_of(run, clock)
    finally:
        for handle in handles:
            handle.remove()
    tops = dict.fromkeys(name.partition('.')[0] for name in names)
    found = {top: 0.0 for top, _ in model.named_children() if top in tops}
    for top, began, ended in spans:
        found[top] += clock.seconds(began, ended) / total
    return {**found, REST: 1 - sum(found.values())}
