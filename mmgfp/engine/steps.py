"""Skips optimiser steps of batches whose gradients are not finite.

MMEngine skips them in mixed precision only. Otherwise one bad batch makes all
weights NaN, and pruning steps are counted in steps that were taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..slimming.surgery import Keep, cut_tensor, cuts_of

# This number of skipped batches in a row ends the run. Mixed precision with a
# dynamic loss scale skips a few at the beginning.
MAX_SKIPPED = 20


class StepGuard:
    """Skips steps of bad batches, whose gradients are NaN or infinite.

    On a CPU a bad batch takes no optimiser step: no decay, no momentum. On
    other devices reading the gradients would make the host wait in every
    iteration. There a bad batch takes a step with gradients of zero, and
    :meth:`num_skipped` counts it later.

    All ranks must skip the same batches, or they would not prune at the same
    time. Under DDP the gradients are the same on all ranks; all ranks have to
    agree on everything else that :meth:`end_batch` is given.

    Args:
        model (nn.Module): The network that trains.
        optimizers (Sequence[Optimizer]): The network's optimisers.
        waits (bool, optional): Whether to read the gradients in every
            iteration. Defaults to true on a CPU only.
        counted (Sequence[Optimizer], optional): Optimisers whose steps set
            ``stepped``. By default all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        waits: bool | None = None,
        *,
        counted: Sequence[torch.optim.Optimizer] | None = None,
    ) -> None:
        device = next(model.parameters()).device
        self.waits = device.type == 'cpu' if waits is None else waits
        self.stepped = False  # whether this batch took a counted step
        self._refused = False  # whether a step was skipped
        self._ended = False  # whether it ended a step, taken or skipped
        self._model = model
        self._optimizers = optimizers
        self._counted = optimizers if counted is None else counted
        self._is_finite = torch.ones((), dtype=torch.bool, device=device)
        # bad batches since the last num_skipped(), current and longest streak
        self._counts = torch.zeros(3, dtype=torch.long, device=device)
        self._statistics: dict[torch.dtype, tuple[list[Tensor], Tensor]] = {}
        self._begins = True  # a step: with accumulation, several batches
        self._handles = [
            handle
            for optimizer in optimizers
            for handle in (
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            )
        ]

    def begin(self) -> None:
        """Start a batch; copy the norms' statistics at the first of a step."""
        self.stepped = self._refused = self._ended = False
        self._is_finite = torch.ones_like(self._is_finite)
        if self._begins:
            self._note_statistics()
            self._begins = False

    def is_finite(self) -> Tensor:
        """Returns whether the gradients of the batch's step are finite, ()."""
        return self._is_finite

    def end_batch(self, is_finite: Tensor) -> bool:
        """End a batch; if it was bad, restore the norms' statistics.

        Gradients that were accumulated before it are dropped, too, because
        they cannot be separated.

        Args:
            is_finite (Tensor): Whether gradients and scores are finite, ().

        Returns:
            bool: False for a bad batch; True if that is not known without
            waiting.
        """
        self._begins = self._ended
        bad = (~is_finite).long()
        skipped, in_a_row, most = self._counts.unbind()
        in_a_row = (in_a_row + bad) * bad
        self._counts = torch.stack(
            [skipped + bad, in_a_row, torch.maximum(most, in_a_row)]
        )
        if not self.waits:
            self._restore_statistics(is_finite)
            return True
        if is_finite:
            return True
        self._restore_statistics(is_finite)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        self._begins = True
        return False

    def cut(self, keep: Keep) -> None:
        """Cut the copied statistics like the network.

        The network may be cut between the batches of a step.

        Args:
            keep (Keep): Kept positions of each axis, see
                :mod:`mmgfp.slimming.surgery`.
        """
        names = {id(b): name for name, b in self._model.named_buffers()}
        cuts = cuts_of(keep)
        for dtype, (buffers, before) in self._statistics.items():
            parts = before.split([b.numel() for b in buffers])
            left = [
                cut_tensor(part.view_as(b), cuts.get(names[id(b)], {}))
                for b, part in zip(buffers, parts)
            ]
            self._statistics[dtype] = buffers, _flat(left)

    def num_skipped(self) -> tuple[int, int]:
        """Return (skipped since the last call, current streak).

        Raises:
            RuntimeError: If the longest streak reached MAX_SKIPPED.
        """
        skipped, in_a_row, most = self._counts.tolist()
        self._counts = self._counts.new_tensor([0, in_a_row, in_a_row])
        if most >= MAX_SKIPPED:
            raise RuntimeError(
                f'gradients were NaN or infinite in {most} batches in a row; '
                'expected finite losses. Lower the learning rate, clip '
                'gradients, or look for damaged images and boxes.'
            )
        return skipped, in_a_row

    def resume(self, in_a_row: int) -> None:
        """Continue with a current streak of bad batches."""
        self._counts = self._counts.new_tensor([0, in_a_row, in_a_row])

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._statistics.clear()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        gradients = _gradients(optimizer)
        self._is_finite = self._is_finite & are_finite(gradients).to(
            self._is_finite.device
        )
        if self.waits:
            if not self._is_finite:
                self._refused = True
                # without gradients an optimiser applies no decay, either
                optimizer.zero_grad(set_to_none=True)
            return
        for gradient in gradients:
            gradient.masked_fill_(~self._is_finite, 0)

    def _after_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        self._ended = True
        if not self._refused and any(optimizer is o for o in self._counted):
            self.stepped = True

    def _note_statistics(self) -> None:
        """Copy the running statistics, with one operation per dtype."""
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for module in self._model.modules():
            if isinstance(module, _NormBase) and module.training:
                for buffer in module.buffers(recurse=False):
                    by_type.setdefault(buffer.dtype, []).append(buffer)
        self._statistics = {
            dtype: (buffers, _flat(buffers))
            for dtype, buffers in by_type.items()
        }

    def _restore_statistics(self, is_finite: Tensor) -> None:
        for buffers, before in self._statistics.values():
            right = torch.where(is_finite, _flat(buffers), before)
            parts = right.split([b.numel() for b in buffers])
            for buffer, part in zip(buffers, parts):
                buffer.copy_(part.view_as(buffer))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [
        parameter.grad.detach()
        for group in optimizer.param_groups
        for parameter in group['params']
        if parameter.grad is not None and parameter.grad.numel() > 0
    ]


def are_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Returns whether no gradient is NaN or infinite, shape ().

    A sum with such a term is not finite either, and needs no memory. A sum
    that overflows comes from gradients that are useless for training.
    """
    if not gradients:
        return torch.ones((), dtype=torch.bool)
    sums = [gradient.sum(dtype=torch.float32) for gradient in gradients]
    return torch.stack(sums).isfinite().all()
