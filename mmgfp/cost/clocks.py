"""Time of a forward, and the ratio of it that each module takes.

``torch.utils.benchmark`` is no substitute: ``Timer.timeit(1)`` runs a forward
three times (torch 2.10), and it has no marks within a forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Run = Callable[[], Any]

# Name for the time of a forward that is spent in no module of the model.
REST = 'rest'


class ProcessorClock:
    """Time on a CPU."""

    def wait(self) -> None:
        """Do nothing: a CPU runs synchronously."""

    def mark(self) -> float:
        """Returns the current time."""
        return time.perf_counter()

    def seconds(self, began: float, ended: float) -> float:
        """Returns the seconds between two marks."""
        return ended - began


class GpuClock:
    """Time on a GPU, which runs asynchronously."""

    def wait(self) -> None:
        """Wait until the GPU is idle."""
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        """Record an event in the stream of the GPU."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(
        self, began: torch.cuda.Event, ended: torch.cuda.Event
    ) -> float:
        """Returns the seconds between two marks."""
        ended.synchronize()
        return began.elapsed_time(ended) / 1000


def clock_of(device: str) -> ProcessorClock | GpuClock:
    """Returns the clock of a device, ``'cpu'`` or ``'cuda'``."""
    return ProcessorClock() if device == 'cpu' else GpuClock()


def seconds_of(run: Run, clock: Any) -> float:
    """Returns the seconds that a forward takes."""
    clock.wait()
    began = clock.mark()
    run()
    ended = clock.mark()
    return clock.seconds(began, ended)


# -- modules ---------------------------------------------------------------


def entrances(model: nn.Module, run: Run) -> list[str]:
    """Returns the modules that a forward calls from the model's own code.

    The backbone is one of them. Heads often run in a method of their own,
    which hooks do not see; then their layers are returned.
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


def module_ratios(
    model: nn.Module, names: Sequence[str], run: Run, clock: Any
) -> dict[str, float]:
    """Returns the ratios of a forward's time by top-level module.

    Args:
        model (nn.Module): The model that ``run`` runs.
        names (Sequence[str]): From :func:`entrances`.
        run (Callable): A forward.
        clock (ProcessorClock | GpuClock): The clock of the device.
    """
    open_calls: list[Any] = []
    spans: list[tuple[str, Any, Any]] = []

    def enter(*_: Any) -> None:
        open_calls.append(clock.mark())

    def leave(top: str) -> Callable:
        def hook(*_: Any) -> None:
            began = open_calls.pop()
            if not open_calls:  # the time includes calls inside of it
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
