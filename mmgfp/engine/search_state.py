"""What a checkpoint keeps so that a search resumes exactly."""

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
    'Resume from another checkpoint, or search on from this one with '
    'load_from and without resuming.'
)


@dataclass
class Tally:
    """Counts that a resumed search continues.

    Attributes:
        start (float): Remaining ratio when the search started.
        step (int): Steps of the search that are done.
        phase (str): 'scoring' while a criterion observes training, 'learning'
            while the search is trained, 'done' when the network is cut.
        steps (int): Optimiser steps in this phase.
        planned (int): Optimiser steps that learning has in all.
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
    """Check what :func:`stamped_search` gave.

    Args:
        state (Any): As loaded.
        search_type (str): Name of the search in the config.

    Raises:
        ValueError: If it is of another version or search, or incomplete.
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
            f'the checkpoint holds a search by {shown(state["type"])}, and '
            f'the config says {search_type}: resume with the config that was '
            f'interrupted. {_ADVICE}'
        )
    return dict(state)


def _incomplete(part: str) -> ValueError:
    return ValueError(
        f'the checkpoint holds the state of a search of which {part} is '
        f'missing or not known. {_ADVICE}'
    )
