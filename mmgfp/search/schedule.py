"""Number of removals in each pruning step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..cost.model import Metric


@dataclass(frozen=True)
class Schedule:
    """Number of removals in each pruning step.

    With a number, this many choices per step (in the paper 1). With ``'auto'``
    the remaining ratio of the target's metric falls by equal amounts per
    pruning step, from its start to the target over the first ``prune_share``
    of the training iterations.

    Attributes:
        metric (str): Metric of the target.
        target (float): Remaining ratio to stop at.
        interval (int): Optimiser steps per pruning step.
        channels_per_step (int | str): Choices per step, or 'auto'.
        prune_share (float): Part of the training for 'auto'.
    """

    metric: Metric
    target: float
    interval: int
    channels_per_step: int | Literal['auto']
    prune_share: float

    def goal(
        self,
        iteration: int,
        max_iterations: int,
        start: float = 1.0,
        accumulation: int = 1,
    ) -> float:
        """Returns the remaining ratio to reach after an iteration.

        Args:
            iteration (int): Completed iterations, from 1.
            max_iterations (int): Iterations of the whole training.
            start (float): Remaining ratio when pruning started. Defaults
                to 1.
            accumulation (int): Iterations per optimiser step. Defaults to 1.
        """
        if self.channels_per_step != 'auto':
            return self.target
        window, pause, steps = self._steps(max_iterations, accumulation)
        step = max(1, iteration // pause)
        # a skipped batch delays all later steps; the last possible step
        # must reach the target
        if step >= steps or iteration + pause > window:
            return self.target  # exactly, without rounding
        return start - (start - self.target) * step / steps

    def last_step(
        self, max_iterations: int, accumulation: int = 1
    ) -> int | None:
        """Returns the iteration of the last step; None if it is not known.

        It is known with 'auto'. Skipped batches may delay it.

        Args:
            max_iterations (int): Iterations of the whole training.
            accumulation (int): Iterations per optimiser step. Defaults to 1.
        """
        if self.channels_per_step != 'auto':
            return None
        _, pause, steps = self._steps(max_iterations, accumulation)
        return pause * steps

    def _steps(
        self, max_iterations: int, accumulation: int
    ) -> tuple[int, int, int]:
        """Returns iterations for pruning, those of a step, and the steps."""
        window = max(1, int(self.prune_share * max_iterations))
        pause = self.interval * accumulation
        return window, pause, max(1, window // pause)

    def step_is_done(self, choices: int, ratio: float, goal: float) -> bool:
        """Returns whether a pruning step has removed enough.

        Args:
            choices (int): Choices made in the step.
            ratio (float): Current remaining ratio.
            goal (float): Result of :meth:`goal`.
        """
        if ratio <= max(goal, self.target):
            return True
        return (
            self.channels_per_step != 'auto'
            and choices >= self.channels_per_step
        )


def left_after(step: int, steps: int, start: float, target: float) -> float:
    """Returns the ratio that remains after a step.

    Every step keeps the same ratio of the previous cost.

    Args:
        step (int): Number of the step, from 1.
        steps (int): Number of all steps.
        start (float): Ratio before the first one.
        target (float): Ratio after the last one.
    """
    if step == steps:
        return target
    return start * (target / start) ** (step / steps)
