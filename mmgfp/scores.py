"""The scores of one pruning step, as they were compared, and their file.

``flops_0.50_scores.json`` holds those of the step that reached a saved ratio:
plain types, per channel group one number per unit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import complete

FORMAT = 'mmgfp-scores'
VERSION = 1


@dataclass(frozen=True, eq=False)
class GroupScores:
    """Scores of one channel group before a step, and what the step took.

    Attributes:
        layers (tuple[str, ...]): Layers that lose outputs with the group.
        scores (np.ndarray): (size,) Fisher information per unit, divided by
            what one unit saved when the step began; infinite where that is
            nothing.
        chosen (np.ndarray): (k,) units that the step removed, ascending.
    """

    layers: tuple[str, ...]
    scores: np.ndarray
    chosen: np.ndarray


@dataclass(frozen=True)
class StepScores:
    """Scores of one pruning step.

    Attributes:
        normalize_by (str): What they were divided by: 'acts', 'flops' or
            'none'.
        groups (dict): Name of the channel group -> :class:`GroupScores`.
        iteration (int): Training iterations until then; 0 if not known.
    """

    normalize_by: str
    groups: Mapping[str, GroupScores]
    iteration: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain types; None stands for infinite scores."""
        return {
            'format': FORMAT,
            'version': VERSION,
            'normalize_by': self.normalize_by,
            'iteration': self.iteration,
            'groups': {
                name: {
                    'layers': list(group.layers),
                    'scores': [
                        s if np.isfinite(s) else None
                        for s in group.scores.tolist()
                    ],
                    'chosen': group.chosen.tolist(),
                }
                for name, group in self.groups.items()
            },
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON; the final name appears only when it is complete."""
        with complete(path) as partial:
            Path(partial).write_text(json.dumps(self.to_dict()), 'utf-8')

    @classmethod
    def load(cls, path: str | os.PathLike) -> StepScores:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If it is damaged, or something else.
        """
        try:
            data = json.loads(Path(path).read_text('utf-8'))
            if (data['format'], data['version']) != (FORMAT, VERSION):
                raise ValueError(f'its format is {data["format"]!r}')
            groups = {
                str(name): GroupScores(
                    tuple(map(str, group['layers'])),
                    np.array(
                        [np.inf if s is None else s for s in group['scores']],
                        float,
                    ),
                    np.array(group['chosen'], int),
                )
                for name, group in data['groups'].items()
            }
            return cls(
                str(data['normalize_by']), groups, int(data['iteration'])
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f'{os.fspath(path)} holds no scores of mmgfp '
                f'({type(error).__name__}: {error}); expected the file that '
                'pruning left beside its structure'
            ) from error


def step_scores(
    normalize_by: str,
    names: Mapping[str, tuple[str, ...]],
    fisher: list[np.ndarray],
    saving: np.ndarray,
    chosen: list[np.ndarray],
) -> StepScores:
    """Normalise the scores of a step as they were compared.

    Args:
        normalize_by (str): See :class:`StepScores`.
        names (Mapping): Name of each group -> layers that lose outputs.
        fisher (list[np.ndarray]): Per group the Fisher information of its
            units, shape (size,).
        saving (np.ndarray): (G,) what one unit of each group saved when the
            step began.
        chosen (list[np.ndarray]): Per group the units that went.
    """
    groups = {}
    for g, (name, layers) in enumerate(names.items()):
        scores = np.full(len(fisher[g]), np.inf)
        if saving[g] > 0:
            scores = fisher[g] / saving[g]
        groups[name] = GroupScores(layers, scores, np.sort(chosen[g]))
    return StepScores(normalize_by, groups)
