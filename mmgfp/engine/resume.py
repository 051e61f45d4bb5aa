"""Random states as plain types, so that a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..utils.random_state import random_state, set_random_state
from .runner import saves_checkpoint


class RandomKeeper:
    """Notes random states where training can be continued from.

    Only the main process writes checkpoints, so the states of all ranks are
    gathered beforehand, at points that all of them pass.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None
        self._to_restore: Mapping[str, Any] | None = None

    def keep(self) -> None:
        """Note the state of every rank; call on all of them."""
        self._states = dist.all_gather_object(random_state())

    def forget(self) -> None:
        """What was noted is out of date: training goes on."""
        self._states = self._to_restore = None

    def states(self) -> list[dict[str, Any]]:
        """By rank, as noted, or else of this rank now."""
        return self._states or [random_state()]

    def resume_from(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over what :meth:`states` gave, when :meth:`restore` says."""
        rank = dist.get_rank()
        self._to_restore = states[rank] if rank < len(states) else None

    def restore(self) -> None:
        """Continue from the states of the checkpoint, if not yet forgotten."""
        if self._to_restore is not None:
            set_random_state(self._to_restore)

    def rewind(self) -> None:
        """Go back to what was noted, as if nothing had been drawn since."""
        if self._states is not None:
            set_random_state(self._states[dist.get_rank()])


class ResumesExactly(Hook):
    """Hooks after which a resumed run draws as an uninterrupted one.

    They put what :attr:`random` tells into checkpoints, and give it back
    before training.
    """

    def __init__(self) -> None:
        self.random = RandomKeeper()

    def before_train_epoch(self, runner: Runner) -> None:
        """Draw on from where a checkpoint was saved."""
        self.random.restore()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """What was noted is out of date."""
        self.random.forget()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Get ready for a checkpoint of this iteration."""
        if saves_checkpoint(runner):
            self.random.keep()

    def after_train_epoch(self, runner: Runner) -> None:
        """Get ready for a checkpoint of this epoch."""
        self.random.keep()

    def before_val(self, runner: Runner) -> None:
        """Note random states; those of training do not count validation.

        A checkpoint of the best network may be saved after it.
        """
        self.random.keep()

    def after_val(self, runner: Runner) -> None:
        """Draw as if there had been no validation, which resuming skips."""
        self.random.rewind()


def separate_loader(loader: DataLoader, seed: int) -> None:
    """Let a loader seed its workers from a generator of its own.

    Otherwise making an iterator draws from the common one, and a resumed run
    makes iterators at other times than an uninterrupted one.
    """
    if getattr(loader, 'generator', loader) is None:
        loader.generator = torch.Generator().manual_seed(seed)
