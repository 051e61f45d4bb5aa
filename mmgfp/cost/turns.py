"""Things that are measured in turn, so that all meet the same machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def in_turn(
    measure: Callable[[str], Any],
    names: Sequence[str],
    rounds: int,
    warmup: int = 1,
) -> dict[str, list[Any]]:
    """Measure each thing once a round; another one begins every round.

    Args:
        measure (Callable): ``measure(name)``.
        names (Sequence[str]): Of the things.
        rounds (int): That count.
        warmup (int): Rounds before them. Defaults to 1.

    Returns:
        dict: By name, what each round found.
    """
    found: dict[str, list[Any]] = {name: [] for name in names}
    for i in range(warmup + rounds):
        shift = i % len(names)
        for name in (*names[shift:], *names[:shift]):
            value = measure(name)
            if i >= warmup:
                found[name].append(value)
    return found


def shares(
    found: Mapping[str, Sequence[float]], base: str
) -> dict[str, list[float]]:
    """Ratios to one of the things, round by round."""
    return {
        name: [a / b for a, b in zip(values, found[base])]
        for name, values in found.items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return dict(
        median=statistics.median(values), least=min(values), most=max(values)
    )
