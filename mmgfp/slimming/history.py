"""The last score of every unit, and the step in which it was chosen.

Part of the structure (:mod:`mmgfp.slimming.structure`), in units of the
original network. It orders the units: which pruned channels would be restored
first, and which kept ones would be pruned next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..utils.plain import (
    natural,
    number,
    plain_dict,
    plain_list,
    shown,
    text,
    truth,
)

# the step of a unit that is not pruned
STAYS = -1


@dataclass(frozen=True)
class Removal:
    """One choice: units of a group that were removed together.

    Attributes:
        group (str): Name of the group.
        channels (int): Channels its first producer lost.
    """

    group: str
    channels: int

    def __str__(self) -> str:
        return f'{self.group} ({self.channels})'


@dataclass(frozen=True, eq=False)
class GroupScores:
    """Scores of one channel group.

    Attributes:
        layers (tuple[str, ...]): Layers whose outputs are cut with the group.
        scores (np.ndarray): (size,) score per unit in the last step that
            compared it, divided by the cost that one unit saved at the
            beginning of that step; infinite where it saved nothing, 0 if not
            known.
        removed (np.ndarray): (size,) number of the step that chose the unit,
            from 1; 0 if not known, :data:`STAYS` if none did.
        left_out (bool): Whether the last step did not compare the group,
            because it had no scores. Defaults to False.
    """

    layers: tuple[str, ...]
    scores: np.ndarray
    removed: np.ndarray
    left_out: bool = False

    def order(self) -> np.ndarray:
        """Returns the units, (size,), from the least important to the most.

        Units that were chosen earlier come earlier. Within a step, and among
        kept units, the score decides.
        """
        last = np.where(self.removed == STAYS, np.inf, self.removed)
        return np.lexsort((self.scores, last))


@dataclass(frozen=True)
class Scores:
    """Scores of all groups that could be pruned.

    Attributes:
        normalize_by (str): Saving that the last step divided scores by:
            'acts', 'flops', 'latency' or 'none'.
        groups (dict): Name of the channel group -> :class:`GroupScores`.
        step (int): Number of the last step, from 1. Continues when a slim
            network is pruned further.
        iteration (int): Training iterations until that step; 0 if not known.
        criterion (str): Class name of the criterion of the last step; empty
            if not known.
    """

    normalize_by: str
    groups: Mapping[str, GroupScores]
    step: int = 0
    iteration: int = 0
    criterion: str = ''

    def last_step(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the units of a group that the last step compared.

        Returns:
            tuple[np.ndarray, np.ndarray]: Scores, and whether the step chose
            the unit; (k,) each, (0,) if it left the group out.
        """
        group = self.groups[name]
        if group.left_out:
            return np.zeros(0), np.zeros(0, bool)
        chosen = group.removed == self.step
        there = (group.removed == STAYS) | chosen
        return group.scores[there], chosen[there]

    def after(
        self,
        units: Sequence[np.ndarray],
        scores: Sequence[np.ndarray],
        saving: np.ndarray,
        chosen: Sequence[np.ndarray],
        compared: np.ndarray,
        iteration: int = 0,
    ) -> Scores:
        """Returns the record after one more step.

        Args:
            units (Sequence[np.ndarray]): Per group (k,) the units that were
                not masked before the step.
            scores (Sequence[np.ndarray]): Per group (k,) their scores.
            saving (np.ndarray): (G,) the cost that one unit of each group
                saved when the step began.
            chosen (Sequence[np.ndarray]): Per group the chosen units.
            compared (np.ndarray): (G,) whether each group had scores; if not,
                it keeps those of the last step that compared it.
            iteration (int): Training iterations so far.
        """
        step = self.step + 1
        groups = {}
        for g, (name, group) in enumerate(self.groups.items()):
            if not compared[g]:
                groups[name] = replace(group, left_out=True)
                continue
            last, removed = group.scores.copy(), group.removed.copy()
            last[units[g]] = np.inf
            if saving[g] > 0:
                last[units[g]] = scores[g] / saving[g]
            removed[chosen[g]] = step
            groups[name] = GroupScores(group.layers, last, removed)
        return replace(self, groups=groups, step=step, iteration=iteration)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain types; None stands for infinite scores."""
        return {
            **({'criterion': self.criterion} if self.criterion else {}),
            'normalize_by': self.normalize_by,
            'step': self.step,
            'iteration': self.iteration,
            'groups': {
                name: {
                    'layers': list(group.layers),
                    'scores': [
                        float(f'{s:.6g}') if np.isfinite(s) else None
                        for s in group.scores.tolist()
                    ],
                    'removed': group.removed.tolist(),
                    **({'left_out': True} if group.left_out else {}),
                }
                for name, group in self.groups.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scores:
        """Read the result of :meth:`to_dict`.

        Raises:
            ValueError: If a group does not have one number of each kind per
                unit, or an entry has another type.
            KeyError, TypeError: If an entry is missing.
        """
        groups = {}
        for name, plain in plain_dict(data['groups']).items():
            scores = [
                np.inf if s is None else number(s)
                for s in plain_list(plain_dict(plain)['scores'])
            ]
            removed = [_step(n) for n in plain_list(plain['removed'])]
            if len(scores) != len(removed):
                raise ValueError(
                    f'{len(scores)} scores and {len(removed)} '
                    f'steps for the units of {shown(name)}'
                )
            groups[text(name)] = GroupScores(
                tuple(map(text, plain_list(plain['layers']))),
                np.array(scores, float),
                np.array(removed, int),
                truth(plain.get('left_out', False)),
            )
        return cls(
            text(data['normalize_by']),
            groups,
            natural(data['step']),
            natural(data['iteration']),
            text(data.get('criterion', '')),
        )


def _step(value: Any) -> int:
    stays = type(value) is int and value == STAYS
    return STAYS if stays else natural(value)


def no_scores(layers: Sequence[str], there: np.ndarray) -> GroupScores:
    """Returns the record of a group before its first step.

    Args:
        layers (Sequence[str]): Layers whose outputs are cut with it.
        there (np.ndarray): (size,) whether each unit of the original network
            is still in the network.
    """
    removed = np.where(there, STAYS, 0)
    return GroupScores(tuple(layers), np.zeros(len(there)), removed)
