"""Work that many short tests would repeat, left out or done once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from mmengine.runner import runner
from yapf.yapflib import yapf_api

Result = TypeVar('Result')


def remember(function: Callable[..., Result]) -> Callable[..., Result]:
    """Compute each result once.

    A search for groups clears the caches of ``functools`` where arguments are
    numbers.
    """
    results: dict[tuple, Result] = {}

    @wraps(function)
    def remembered(*args: Any) -> Result:
        if args not in results:
            results[args] = function(*args)
        return results[args]

    return remembered


def empty_pictures() -> None:
    """Make an empty file of each figure of matplotlib.

    Drawing takes a tenth of a short training run.
    """
    from matplotlib.figure import Figure

    Figure.savefig = lambda _figure, path, **_: Path(path).touch()


def plain_logs() -> None:
    """Leave out what MMEngine does at every start and save.

    A runner starts compilers and others to log their versions, and formats
    the whole config for the log and every checkpoint: half the time of a
    short run.
    """
    runner.collect_env = dict
    yapf_api.FormatCode = _as_it_is


def _as_it_is(text: str, *_: Any, **__: Any) -> tuple[str, bool]:
    return text, False


def remember_imports() -> None:
    """Let the garbage collector skip what exists now, such as modules.

    Each search for groups asks it for all caches of functions, which takes a
    quarter of the time of a test with a small network.
    """
    from mmgfp.tracing import caches

    gc.collect()
    known = gc.get_referrers(caches._Cached)
    gc.freeze()

    def all_referrers(kind: Any) -> list[Any]:
        assert kind is caches._Cached
        return [*known, *gc.get_referrers(kind)]

    caches.gc = SimpleNamespace(
        get_referrers=all_referrers, get_referents=gc.get_referents
    )
