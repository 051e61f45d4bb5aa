"""The peak of memory, measured in a separate process."""

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
    """Returns the result of a function in a new process.

    Args:
        function (Callable): A function of a module; it is passed by name.
        *args: Its arguments.
    """
    # large tensors get separate pages, which are returned when freed; this
    # takes time, so timed processes must not inherit the setting
    key = 'MALLOC_MMAP_THRESHOLD_'
    before = os.environ.get(key)
    torch.cuda.empty_cache()  # frees reserved memory for the process
    os.environ[key] = str(1 << 16)
    try:
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            return pool.apply(function, args)
    finally:
        del os.environ[key]
        if before is not None:
            os.environ[key] = before


def peak_of(action: Callable[[], Any], device: str) -> float:
    """Returns the peak in MB while a function runs.

    On a CPU it is the resident memory of the process, on a GPU that of all
    tensors.
    """
    if device == 'cpu':
        reset_peak_memory()
        action()
        return peak_memory_mb()
    torch.cuda.reset_peak_memory_stats()
    action()
    return torch.cuda.max_memory_allocated() / 2**20


def reset_peak_memory() -> None:
    """Reset the peak if the system supports it."""
    with suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')


def peak_memory_mb() -> int:
    """Returns the peak of resident memory in MB."""
    with suppress(OSError):
        status = Path('/proc/self/status').read_text()
        if found := re.search(r'VmHWM:\s+(\d+)', status):
            return int(found[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
