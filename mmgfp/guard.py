"""Keeps batches without finite gradients away from the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .progress import Tally

# So many batches in a row end the run. Mixed precision with a dynamic loss
# scale skips a few at first.
MAX_SKIPPED = 20


class StepGuard:
    """Watches optimiser steps; refuses those with NaN or infinite gradients.

    Under DDP the gradients are the same on all ranks when a step is taken,
    so all ranks refuse the same steps without asking each other.

    Args:
        model (nn.Module): The network that trains.
        optimizers (Sequence[Optimizer]): Its optimisers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.refused = False  # whether this batch was kept from the weights
        self.stepped = False  # whether this batch ended in a step
        self._model = model
        self._optimizers = optimizers
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._handles = [
            handle
            for optimizer in optimizers
            for handle in (
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            )
        ]

    def begin(self) -> None:
        """Start a batch: note the norms' running statistics."""
        self.refused = self.stepped = False
        self._statistics = [
            (buffer, buffer.clone())
            for module in self._model.modules()
            if isinstance(module, _NormBase) and module.training
            for buffer in module.buffers(recurse=False)
        ]

    def skip_batch(self, tally: Tally) -> None:
        """Forget a bad batch: its gradients and its part in statistics.

        Gradients that were accumulated before it go as well, since they can
        no longer be told apart.

        Args:
            tally (Tally): Counts it.

        Raises:
            RuntimeError: If there are too many in a row.
        """
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        for buffer, before in self._statistics:
            buffer.copy_(before)
        tally.skipped += 1
        tally.skipped_in_a_row += 1
        if tally.skipped_in_a_row >= MAX_SKIPPED:
            raise RuntimeError(
                f'gradients were NaN or infinite in {tally.skipped_in_a_row} '
                'batches in a row, expected finite losses. Lower the learning '
                'rate, clip gradients, or look for damaged images and boxes.'
            )

    def detach(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._statistics = []

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        if not gradients_are_finite(optimizer):
            self.refused = True
            # a parameter without gradient is left alone: no decay either
            optimizer.zero_grad(set_to_none=True)

    def _after_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        self.stepped = not self.refused


def gradients_are_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Whether no gradient of an optimiser's parameters is NaN or infinite."""
    largest = [
        parameter.grad.detach().abs().max()
        for group in optimizer.param_groups
        for parameter in group['params']
        if parameter.grad is not None and parameter.grad.numel() > 0
    ]
    return not largest or bool(torch.stack(largest).isfinite().all())
