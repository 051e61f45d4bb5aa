"""Random states in checkpoints, so that a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..utils.random_state import random_state, set_random_state
from .runner import saves_checkpoint


class RandomKeeper:
    """Records random states at points from which training can be resumed.

    Only the main process writes checkpoints, so the states of all ranks are
    gathered before, at points that all ranks reach.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None
        self._to_restore: Mapping[str, Any] | None = None

    def keep(self) -> None:
        """Record the state of every rank; call on all ranks."""
        self._states = dist.all_gather_object(random_state())

    def forget(self) -> None:
        """Discard the recorded states, because training continues."""
        self._states = self._to_restore = None

    def states(self) -> list[dict[str, Any]]:
        """Returns the recorded states by rank, else this rank's current."""
        return self._states or [random_state()]

    def resume_from(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Set the result of :meth:`states` for :meth:`restore`."""
        rank = dist.get_rank()
        self._to_restore = states[rank] if rank < len(states) else None

    @property
    def resumes(self) -> bool:
        """Returns whether there are states to restore."""
        return self._to_restore is not None

    def restore(self) -> None:
        """Restore the states of the checkpoint unless discarded."""
        if self._to_restore is not None:
            set_random_state(self._to_restore)

    def rewind(self) -> None:
        """Restore the recorded state of this rank."""
        if self._states is not None:
            set_random_state(self._states[dist.get_rank()])


class ResumesExactly(Hook):
    """Base class of hooks whose resumed runs draw like uninterrupted ones.

    The states in :attr:`random` are stored in checkpoints and restored before
    training. It is no hook of its own, because pruning draws numbers: states
    are recorded after the pruning step of the same hook.

    Attributes:
        batch (int, optional): Index of the current batch in its epoch; None
            before the first batch of the run.
    """

    def __init__(self) -> None:
        self.random = RandomKeeper()
        self.batch: int | None = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Restore the random states of a checkpoint."""
        loop = runner.train_loop
        if (
            self.random.resumes
            and isinstance(loop, EpochBasedTrainLoop)
            and loop.iter % len(loop.dataloader)
        ):
            runner.logger.warning(
                'the checkpoint was saved within an epoch, which the '
                'epoch-based loop starts again: the result differs from that '
                'of an uninterrupted run. For an exact resume save at the end '
                'of epochs, or use IterBasedTrainLoop'
            )
        self.random.restore()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Discard the recorded random states."""
        self.batch = batch_idx
        self.random.forget()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Record random states if this iteration saves a checkpoint."""
        if saves_checkpoint(runner):
            self.random.keep()

    def after_train_epoch(self, runner: Runner) -> None:
        """Record random states for a checkpoint of this epoch."""
        self.random.keep()

    def before_val(self, runner: Runner) -> None:
        """Record random states before validation draws numbers.

        A checkpoint of the best network may be saved after validation.
        """
        self.random.keep()

    def after_val(self, runner: Runner) -> None:
        """Restore random states, because a resumed run skips validation."""
        self.random.rewind()


def separate_loader(loader: DataLoader, seed: int) -> None:
    """Seed the workers of a loader from a separate generator.

    By default, making an iterator draws from the global generator, and a
    resumed run makes iterators at other times than an uninterrupted one.
    """
    if getattr(loader, 'generator', loader) is None:
        loader.generator = torch.Generator().manual_seed(seed)
