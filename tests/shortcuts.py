"""What MMEngine does at every start and save, left out.

A runner starts compilers and others to log their versions, and formats the
whole config for the log and every checkpoint: half the time of a short run.
"""

from __future__ import annotations

from typing import Any

from mmengine.runner import runner
from yapf.yapflib import yapf_api


def take() -> None:
    """Leave them out in this process."""
    runner.collect_env = dict
    yapf_api.FormatCode = _as_it_is


def _as_it_is(text: str, *_: Any, **__: Any) -> tuple[str, bool]:
    return text, False
