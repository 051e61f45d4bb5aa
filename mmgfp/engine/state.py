"""State of pruning in checkpoints, for an exact resume.

Scores, counts and random states are beside the structure, under
:data:`STATE_KEY`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..utils.plain import shown
from ..version import __version__
from .progress import Tally

STATE_KEY = 'mmgfp_pruning'
# States of version 1 have no version; from 3 on they name the criterion.
STATE_VERSION = 3

_PARTS = {'pruner': dict, 'tally': dict, 'random': list}
_ADVICE = (
    'Resume from another checkpoint, or continue from this one with load_from '
    'and without resuming.'
)


def stamped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state with the versions of its format and of mmgfp.

    Args:
        state (Mapping): ``pruner``, ``tally``, ``target`` and ``random``.
    """
    return {'version': STATE_VERSION, 'mmgfp': __version__, **state}


def read_state(state: Any) -> dict[str, Any]:
    """Check the result of :func:`stamped`, or a state of version 1.

    Args:
        state (Any): The loaded state.

    Raises:
        ValueError: If it has another version, or is incomplete.
    """
    if not isinstance(state, dict):
        raise ValueError(
            f'the checkpoint holds {shown(state)} under {STATE_KEY!r}, '
            f'expected the state of pruning. {_ADVICE}'
        )
    version = state.get('version', 1)
    if type(version) is not int or not 1 <= version <= STATE_VERSION:
        raise ValueError(
            f'the checkpoint holds the state of pruning in version '
            f'{shown(version)}; this mmgfp {__version__} resumes versions 1 '
            f'to {STATE_VERSION}. It was written by mmgfp '
            f'{shown(state.get("mmgfp"))}: install that release. {_ADVICE}'
        )
    for part, kind in _PARTS.items():
        if not isinstance(state.get(part), kind):
            raise _incomplete(part)
    counts = {field.name for field in fields(Tally)}
    for name in sorted(counts ^ state['tally'].keys(), key=str):
        raise _incomplete(f'tally.{name}')
    return state


def _incomplete(part: str) -> ValueError:
    return ValueError(
        f'the checkpoint holds a state of pruning in which {part} is missing '
        f'or unknown. {_ADVICE}'
    )
