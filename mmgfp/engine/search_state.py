"""State of a search in checkpoints, for an exact resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ..utils.plain import shown
from ..version import __version__

SEARCH_KEY = 'mmgfp_search'
SEARCH_VERSION = 1

_PARTS = {
    'type': str,
    'tally': dict,
    'criterion': dict,
    'scores': list,
    'search': dict,
    'batches': list,
    'random': list,
}
_ADVICE = (
    'Resume from another checkpoint, or continue from this one with '
    'load_from and without resuming.'
)


@dataclass
class Tally:
    """Counts that a resumed search continues.

    Attributes:
        start (float): Remaining ratio when the search started.
        step (int): Completed steps of the search.
        phase (str): 'scoring' while a criterion observes training, 'learning'
            while the search is trained, 'done' when the network is cut.
        steps (int): Optimiser steps in this phase.
        planned (int): Total of the optimiser steps for learning.
        skipped_in_a_row (int): Current streak of skipped batches.
    """

    start: float = 1.0
    step: int = 0
    phase: Literal['scoring', 'learning', 'done'] = 'scoring'
    steps: int = 0
    planned: int = 0
    skipped_in_a_row: int = 0


def stamped_search(
    search_type: str, tally: Tally, **parts: Any
) -> dict[str, Any]:
    """Returns the state, in plain types and tensors, with its version."""
    return {
        'version': SEARCH_VERSION,
        'mmgfp': __version__,
        'type': search_type,
        'tally': asdict(tally),
        **parts,
    }


def read_search_state(state: Any, search_type: str) -> dict[str, Any]:
    """Check the result of :func:`stamped_search`.

    Args:
        state (Any): The loaded state.
        search_type (str): Name of the search in the config.

    Raises:
        ValueError: If it has another version or search, or is incomplete.
    """
    if not isinstance(state, Mapping):
        raise ValueError(
            f'the checkpoint holds {shown(state)} under {SEARCH_KEY!r}, '
            f'expected the state of a search. {_ADVICE}'
        )
    version = state.get('version')
    if type(version) is not int or version != SEARCH_VERSION:
        raise ValueError(
            f'the checkpoint holds the state of a search in version '
            f'{shown(version)}; this mmgfp {__version__} resumes version '
            f'{SEARCH_VERSION}. It was written by mmgfp '
            f'{shown(state.get("mmgfp"))}: install that release. {_ADVICE}'
        )
    for part, kind in _PARTS.items():
        if not isinstance(state.get(part), kind):
            raise _incomplete(part)
    names = {field.name for field in fields(Tally)}
    for name in sorted(names ^ state['tally'].keys(), key=str):
        raise _incomplete(f'tally.{name}')
    if state['type'] != search_type:
        raise ValueError(
            f'the checkpoint holds a search by {shown(state["type"])}, but '
            f'the config has {search_type}: resume with the interrupted '
            f'config. {_ADVICE}'
        )
    return dict(state)


def _incomplete(part: str) -> ValueError:
    return ValueError(
        f'the checkpoint holds the state of a search in which {part} is '
        f'missing or unknown. {_ADVICE}'
    )
