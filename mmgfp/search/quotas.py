"""Groups that compete with each other in a choice.

Scores of layers of different kinds are hard to compare. Users can set ratios
of layers, or compare only groups of one kind with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from ..groups import ATTRIBUTE, ChannelGroup


class Quotas:
    """Compares groups only with those of the same kind.

    All kinds keep the same ratio of their units at any time, up to whole
    units. A group with a ratio of its own is compared with no other: it
    loses units in proportion to the progress towards the target.

    Args:
        kinds (Sequence[int]): (G,) number of the kind of each group.
        originals (Sequence[int]): (G,) units of each unpruned group.
        ratios (np.ndarray): (G,) final ratio of units; NaN for groups without
            a ratio of their own.
    """

    def __init__(
        self,
        kinds: Sequence[int],
        originals: Sequence[int],
        ratios: np.ndarray,
    ) -> None:
        self._originals = np.asarray(originals)
        self._ratios = ratios
        self._kinds = np.asarray(kinds)

    def next(
        self, left: np.ndarray, possible: np.ndarray, progress: float
    ) -> np.ndarray:
        """Returns which groups compete for the next removal, (G,).

        Args:
            left (np.ndarray): (G,) current units of each group.
            possible (np.ndarray): (G,) whether a group can lose a unit.
            progress (float): Completed ratio of pruning from the start to the
                target.
        """
        lag = self.lag(left, progress)
        behind = possible & (lag > 0)
        if behind.any():
            largest = np.argmax(np.where(behind, lag, -np.inf))
            return np.arange(len(left)) == largest
        competes = np.isnan(self._ratios)
        free = possible & competes
        if not free.any():
            return free
        kinds = self._kinds
        now = np.bincount(kinds, left * competes)
        first = np.bincount(kinds, self._originals * competes)
        share = np.full(len(left), -np.inf)
        share[free] = now[kinds[free]] / first[kinds[free]]
        return free & (kinds == kinds[np.argmax(share)])

    def lag(self, left: np.ndarray, progress: float) -> np.ndarray:
        """Returns the ratio of its units that a group must lose now, (G,).

        0 or less for groups that need to lose none; NaN for groups without a
        ratio of their own. Arguments are those of :meth:`next`.
        """
        goal = 1 - progress * (1 - self._ratios)
        return left / self._originals - goal


def group_kinds(
    model: nn.Module, groups: Sequence[ChannelGroup]
) -> dict[str, int]:
    """Returns the number of the kind of each group, by its name.

    Groups are of one kind if layers of the same types lose the same axes, in
    equal numbers (isomorphic pruning, Fang et al., ECCV 2024). Sizes are
    ignored: the same block in another stage is of the same kind.

    Args:
        model (nn.Module): The network.
        groups (Sequence[ChannelGroup]): Its groups.
    """
    modules = dict(model.named_modules())
    numbers: dict[tuple, int] = {}
    found = {}
    for group in groups:
        kind = tuple(
            sorted(
                (
                    type(modules.get(member.layer)).__name__,
                    member.tensor.rpartition('.')[2],
                    member.role,
                    member.axis,
                )
                for member in group.members
                if member.axis != ATTRIBUTE
            )
        )
        found[group.name] = numbers.setdefault(kind, len(numbers))
    return found


def group_ratios(
    groups: Sequence[ChannelGroup], ratios: Mapping[str, float]
) -> dict[str, float]:
    """Returns ratios of groups, from those of patterns of layers.

    Args:
        groups (Sequence[ChannelGroup]): All groups, with frozen ones.
        ratios (Mapping[str, float]): Ratio of its units that a group keeps
            if a layer that loses outputs with it matches the pattern
            (:mod:`fnmatch`).

    Returns:
        dict[str, float]: Ratio by name of the group.

    Raises:
        ValueError: If a pattern matches no layer whose outputs can be pruned,
            or patterns with different ratios match layers of one group.
    """
    found: dict[str, float] = {}
    by: dict[str, str] = {}
    for pattern, ratio in ratios.items():
        matching = [
            group
            for group in groups
            if any(fnmatchcase(layer, pattern) for layer in group.producers)
        ]
        possible = [group for group in matching if not group.frozen]
        if not possible:
            reasons = '; '.join(dict.fromkeys(g.frozen for g in matching[:3]))
            because = f' ({reasons})' if reasons else ''
            raise ValueError(
                f'ratios={{{pattern!r}: {ratio}}} matches no layer whose '
                f'outputs can be pruned{because}; expected names as '
                '`mmgfp groups` prints them, with * and ? as wildcards, such '
                "as 'backbone.layer4.*'"
            )
        for group in possible:
            if found.setdefault(group.name, ratio) != ratio:
                raise ValueError(
                    f'ratios={dict(ratios)!r}: both {by[group.name]!r} and '
                    f'{pattern!r} match layers of the channel group '
                    f'{group.name}, whose layers {group.producers[:5]} are '
                    'pruned together; expected one ratio for them'
                )
            by.setdefault(group.name, pattern)
    return found
