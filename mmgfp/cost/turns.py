"""Measurements that alternate, so that all run under the same conditions."""

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
    """Measure each candidate once a round, in rotating order.

    Args:
        measure (Callable): ``measure(name)``.
        names (Sequence[str]): Names of the candidates.
        rounds (int): Rounds that count.
        warmup (int): Rounds before them. Defaults to 1.

    Returns:
        dict: By name, the results of the rounds.
    """
    found: dict[str, list[Any]] = {name: [] for name in names}
    for i in range(warmup + rounds):
        shift = i % len(names)
        for name in (*names[shift:], *names[:shift]):
            value = measure(name)
            if i >= warmup:
                found[name].append(value)
    return found


def ratios_to(
    found: Mapping[str, Sequence[float]], base: str
) -> dict[str, list[float]]:
    """Returns the ratios to one of the candidates, round by round."""
    return {
        name: [a / b for a, b in zip(values, found[base])]
        for name, values in found.items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    return dict(
        median=statistics.median(values), least=min(values), most=max(values)
    )
