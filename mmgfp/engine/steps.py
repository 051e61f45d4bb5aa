"""Keeps batches without finite gradients away from the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..slimming.surgery import Keep, cut_tensor, cuts_of

# So many batches in a row end the run. Mixed precision with a dynamic loss
# scale skips a few at first.
MAX_SKIPPED = 20


class StepGuard:
    """Watches optimiser steps; batches with NaN or infinite gradients are bad.

    A bad batch takes no optimiser step: no decay, no momentum. That asks what
    the gradients are, which costs nothing on a CPU. On other devices it would
    make the host wait for every iteration; there a bad batch takes a step
    with gradients of zero, and is told of when :meth:`news` is asked for.

    All ranks have to judge alike, or they would not prune at the same time.
    Under DDP the gradients are the same on all ranks when a step is taken;
    whatever else is judged must be agreed on before.

    Args:
        model (nn.Module): The network that trains.
        optimizers (Sequence[Optimizer]): Its optimisers.
        waits (bool, optional): Whether to ask in every iteration. By default
            on a CPU only.
        counted (Sequence[Optimizer], optional): Those whose steps are told of
            in ``stepped``. By default all.
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
        self.stepped = False  # whether this batch ended in a counted step
        self._refused = False  # whether one was kept from being taken
        self._ended = False  # whether it ended in any, taken or not
        self._model = model
        self._optimizers = optimizers
        self._counted = optimizers if counted is None else counted
        self._fine = torch.ones((), dtype=torch.bool, device=device)
        # bad batches since the last news; in a row until now, and at most
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
        """Start a batch; before a step's first, note the norms' statistics."""
        self.stepped = self._refused = self._ended = False
        self._fine = torch.ones_like(self._fine)
        if self._begins:
            self._note_statistics()
            self._begins = False

    def fine(self) -> Tensor:
        """Whether the gradients of this batch's step are finite; ()."""
        return self._fine

    def judge(self, fine: Tensor) -> bool:
        """End a batch; if it was bad, undo its part in the statistics.

        Gradients that were accumulated before it go as well, since they can
        no longer be told apart.

        Args:
            fine (Tensor): Whether all is well, shape ().

        Returns:
            bool: False for a bad batch, as far as can be told without
            waiting.
        """
        self._begins = self._ended
        bad = (~fine).long()
        skipped, in_a_row, most = self._counts.unbind()
        in_a_row = (in_a_row + bad) * bad
        self._counts = torch.stack(
            [skipped + bad, in_a_row, torch.maximum(most, in_a_row)]
        )
        if not self.waits:
            self._restore_statistics(fine)
            return True
        if fine:
            return True
        self._restore_statistics(fine)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        self._begins = True
        return False

    def cut(self, keep: Keep) -> None:
        """Cut the noted statistics as the network is about to be cut.

        That may happen between the batches of a step.

        Args:
            keep (Keep): What stays of each axis, see
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

    def news(self) -> tuple[int, int]:
        """Bad batches since the last call, and in a row until now.

        Raises:
            RuntimeError: If there were too many in a row.
        """
        skipped, in_a_row, most = self._counts.tolist()
        self._counts = self._counts.new_tensor([0, in_a_row, in_a_row])
        if most >= MAX_SKIPPED:
            raise RuntimeError(
                f'gradients were NaN or infinite in {most} batches in a row, '
                'expected finite losses. Lower the learning rate, clip '
                'gradients, or look for damaged images and boxes.'
            )
        return skipped, in_a_row

    def resume(self, in_a_row: int) -> None:
        """Go on after so many bad batches in a row."""
        self._counts = self._counts.new_tensor([0, in_a_row, in_a_row])

    def detach(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._statistics.clear()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        gradients = _gradients(optimizer)
        self._fine = self._fine & are_finite(gradients).to(self._fine.device)
        if self.waits:
            if not self._fine:
                self._refused = True
                # a parameter without gradient is left alone: no decay either
                optimizer.zero_grad(set_to_none=True)
            return
        for gradient in gradients:
            gradient.masked_fill_(~self._fine, 0)

    def _after_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        self._ended = True
        if not self._refused and any(optimizer is o for o in self._counted):
            self.stepped = True

    def _note_statistics(self) -> None:
        """Copy the running statistics, those of a type with one operation."""
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for module in self._model.modules():
            if isinstance(module, _NormBase) and module.training:
                for buffer in module.buffers(recurse=False):
                    by_type.setdefault(buffer.dtype, []).append(buffer)
        self._statistics = {
            dtype: (buffers, _flat(buffers))
            for dtype, buffers in by_type.items()
        }

    def _restore_statistics(self, fine: Tensor) -> None:
        for buffers, before in self._statistics.values():
            right = torch.where(fine, _flat(buffers), before)
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
    """Whether no gradient is NaN or infinite, shape ().

    A sum with such a term is none either, and is read once without writing;
    one that overflows comes of gradients that nothing can be learnt from.
    """
    if not gradients:
        return torch.ones((), dtype=torch.bool)
    sums = [gradient.sum(dtype=torch.float32) for gradient in gradients]
    return torch.stack(sums).isfinite().all()
