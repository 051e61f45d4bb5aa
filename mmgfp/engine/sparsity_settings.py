"""Reading the arguments of the hook that prunes single weights."""

from __future__ import annotations

import re
from typing import Any, cast

from ..criteria.base import ElementCriterion
from ..registry import CRITERIA
from ..search.sparsity import Shapes
from .settings import (
    check_ratio,
    is_pair,
    named_class,
    read_criterion,
    whole,
)


def read_element_criterion(
    criterion: Any, default: str, compensate: bool
) -> ElementCriterion:
    """Build the criterion for single weights of a config.

    Args:
        criterion (Any): Value of the config; None for the default.
        default (str): Name of the default criterion.
        compensate (bool): Whether kept weights compensate for pruned ones.

    Raises:
        ValueError: As :func:`read_criterion`, or if it scores channels only
            or cannot compensate.
    """
    settings = dict(type=default) if criterion is None else criterion
    # before its arguments are checked, which may be those of another one
    kind = named_class('criterion', settings, CRITERIA, default)
    found: Any = kind
    if not isinstance(kind, type) or hasattr(kind, 'elements'):
        found = read_criterion(settings, default, compensate)
    if not hasattr(found, 'elements'):
        raise ValueError(
            f'criterion={criterion!r} scores channels, not single weights; '
            "expected one with scores of elements, such as dict(type='KFAC') "
            "or dict(type='Magnitude')"
        )
    return cast(ElementCriterion, found)


def read_density(density: Any, pattern: tuple[int, int] | None) -> float:
    """Check the ratio of the weights that stays.

    Args:
        density (Any): Value of the config; None if a pattern sets it.
        pattern (tuple[int, int], optional): See :func:`read_pattern`.

    Raises:
        ValueError: If it is missing, contradicts a pattern or is no ratio.
    """
    if pattern is not None:
        if density is not None:
            raise ValueError(
                f'density={density!r} contradicts pattern={pattern[0]}:'
                f'{pattern[1]}, which sets the density. Remove one.'
            )
        return pattern[0] / pattern[1]
    check_ratio('density', density)
    return float(density)


def read_pattern(pattern: Any) -> tuple[int, int] | None:
    """Check a pattern, such as '2:4' for two of four neighbours.

    Raises:
        ValueError: If it is no such text.
    """
    if pattern is None:
        return None
    match = re.fullmatch(r'(\d+):(\d+)', str(pattern))
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ValueError(
            f'pattern={pattern!r}: expected numbers of kept and of all '
            "neighbouring inputs, such as '2:4'"
        )
    return int(match[1]), int(match[2])


def read_shapes(block: Any, pattern: Any, min_density: Any) -> Shapes:
    """Check blocks or pattern, and the floor of every layer.

    Raises:
        ValueError: Naming the argument, its value and what was expected.
    """
    if not is_pair(block):
        raise ValueError(
            f'block={block!r}: expected numbers of output channels and input '
            'channels that are pruned together, such as (4, 1)'
        )
    if min_density != 0 or isinstance(min_density, bool):
        check_ratio('min_density', min_density)
    return Shapes(
        (block[0], block[1]), read_pattern(pattern), float(min_density)
    )


def read_steps(steps: Any, interval: Any, at_once: bool) -> tuple[int, int]:
    """Check the steps in which weights are pruned.

    Args:
        steps (Any): Value of the config.
        interval (Any): Value of the config.
        at_once (bool): Whether the first step runs before training.

    Returns:
        tuple[int, int]: Number of steps during training, and the interval.

    Raises:
        ValueError: If either is no whole number, or the interval is missing.
    """
    whole('steps', steps)
    waits = steps - at_once
    if interval is not None:
        whole('interval', interval)
    elif waits:
        raise ValueError(
            f'steps={steps} needs interval; expected the optimizer steps '
            'before each step'
            + (' but the first' if at_once else '')
            + ', such as those of an epoch'
        )
    return waits, interval or 0
