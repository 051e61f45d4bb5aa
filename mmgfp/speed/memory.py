"""The peak of the memory, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def in_own_process(function: Callable, *args: Any) -> Any:
    """What a function returns in a fresh process.

    Args:
        function (Callable): Of a module, for its name is what travels.
        *args: Its arguments.
    """
    # every large tensor in pages of its own, given back when it is freed;
    # that takes time, so processes that are timed must not inherit it
    key = 'MALLOC_MMAP_THRESHOLD_'
    before = os.environ.get(key)
    torch.cuda.empty_cache()  # what is only kept in reserve is of use there
    os.environ[key] = str(1 << 16)
    try:
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            return pool.apply(function, args)
    finally:
        del os.environ[key]
        if before is not None:
            os.environ[key] = before


def peak_of(action: Callable[[], Any], device: str) -> float:
    """Peak in MB while something runs.

    On a CPU all that is resident in this process, on a GPU all tensors.
    """
    if device == 'cpu':
        reset_peak_memory()
        action()
        return peak_memory_mb()
    torch.cuda.reset_peak_memory_stats()
    action()
    return torch.cuda.max_memory_allocated() / 2**20


def reset_peak_memory() -> None:
    """Forget the peak so far, where the system can."""
    with suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')


def peak_memory_mb() -> int:
    """Peak of resident memory."""
    with suppress(OSError):
        status = Path('/proc/self/status').read_text()
        if found := re.search(r'VmHWM:\s+(\d+)', status):
            return int(found[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
