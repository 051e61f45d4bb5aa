"""The last score of every unit, and in which step it was removed.

Part of the structure (:mod:`mmgfp.slimming.structure`), in units of the
original network: from it follows which removed channels to give back first,
and which kept ones to drop next.
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

# stands for the step that removed a unit which stays
STAYS = -1


@dataclass(frozen=True, eq=False)
class GroupScores:
    """Scores of one channel group.

    Attributes:
        layers (tuple[str, ...]): Layers that lose outputs with the group.
        scores (np.ndarray): (size,) Fisher information per unit in the last
            step that compared it, divided by what one unit saved when that
            step began; infinite where that was nothing, 0 if not known.
        removed (np.ndarray): (size,) number of the step that removed it, from
            1; 0 if not known, :data:`STAYS` while it is there.
        left_out (bool): Whether the last step did not compare the group, for
            want of scores. Defaults to False.
    """

    layers: tuple[str, ...]
    scores: np.ndarray
    removed: np.ndarray
    left_out: bool = False

    def order(self) -> np.ndarray:
        """Units, (size,), from the one to miss least to the most important.

        What went earlier comes earlier; within a step, and among those that
        stay, the score decides.
        """
        last = np.where(self.removed == STAYS, np.inf, self.removed)
        return np.lexsort((self.scores, last))


@dataclass(frozen=True)
class Scores:
    """Scores of all groups that could be pruned.

    Attributes:
        normalize_by (str): What those of the last step were divided by:
            'acts', 'flops', 'latency' or 'none'.
        groups (dict): Name of the channel group -> :class:`GroupScores`.
        step (int): Number of the last step, from 1. Counts on when a slim
            network is pruned further.
        iteration (int): Training iterations until then; 0 if not known.
    """

    normalize_by: str
    groups: Mapping[str, GroupScores]
    step: int = 0
    iteration: int = 0

    def last_step(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """What the last step compared in a group.

        Returns:
            tuple[np.ndarray, np.ndarray]: Scores, and whether it removed the
            unit; (k,) each, (0,) if it left the group out.
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
        fisher: Sequence[np.ndarray],
        saving: np.ndarray,
        chosen: Sequence[np.ndarray],
        compared: np.ndarray,
        iteration: int = 0,
    ) -> Scores:
        """The record after one more step.

        Args:
            units (Sequence[np.ndarray]): Per group (k,) the units that were
                there.
            fisher (Sequence[np.ndarray]): Per group (k,) their Fisher
                information.
            saving (np.ndarray): (G,) what one unit of each group saved when
                the step began.
            chosen (Sequence[np.ndarray]): Per group the units that went.
            compared (np.ndarray): (G,) whether each group had scores; if not,
                it keeps those of the last step that compared it.
            iteration (int): Training iterations until now.
        """
        step = self.step + 1
        groups = {}
        for g, (name, group) in enumerate(self.groups.items()):
            if not compared[g]:
                groups[name] = replace(group, left_out=True)
                continue
            scores, removed = group.scores.copy(), group.removed.copy()
            scores[units[g]] = np.inf
            if saving[g] > 0:
                scores[units[g]] = fisher[g] / saving[g]
            removed[chosen[g]] = step
            groups[name] = GroupScores(group.layers, scores, removed)
        return replace(self, groups=groups, step=step, iteration=iteration)

    def to_dict(self) -> dict[str, Any]:
        """As plain types; None stands for infinite scores."""
        return {
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
        """Read what :meth:`to_dict` gave.

        Raises:
            ValueError: If a group has not one number of each kind per unit,
                or something is of another type.
            KeyError, TypeError: If something is missing.
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
        )


def _step(value: Any) -> int:
    stays = type(value) is int and value == STAYS
    return STAYS if stays else natural(value)


def no_scores(layers: Sequence[str], there: np.ndarray) -> GroupScores:
    """A group before its first step.

    Args:
        layers (Sequence[str]): Layers that lose outputs with it.
        there (np.ndarray): (size,) whether each unit of the original network
            is still there.
    """
    removed = np.where(there, STAYS, 0)
    return GroupScores(tuple(layers), np.zeros(len(there)), removed)
