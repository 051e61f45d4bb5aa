"""How others collect the same scores: small baselines for the benchmark.

Written from what the methods do, for layers whose rows are images:

- ``Reference``: the paper's code. A forward hook keeps each consumer's input,
  a backward hook multiplies it with the gradient and sums the products; after
  each iteration a loop over the groups squares and adds.
- ``KeepEverything``: MMRazor. Both hooks only keep what they see, and the
  products are made after the backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmgfp.groups import ChannelGroup


class Reference:
    """Products of stored inputs with gradients, in backward hooks.

    Args:
        model (nn.Module): The network that trains.
        groups (Sequence[ChannelGroup]): The groups that can be pruned.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[ChannelGroup]
    ) -> None:
        modules = dict(model.named_modules())
        self.groups = groups
        names = {tap.module for group in groups for tap in group.taps}
        self.consumers = {name: modules[name] for name in sorted(names)}
        self.scores = [torch.zeros(group.size) for group in groups]
        self.inputs: dict[str, list[Tensor]] = {}
        self.sums: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def start(self) -> None:
        """Put the hooks on."""
        for name, module in self.consumers.items():
            self._handles += [
                module.register_forward_hook(self._forward_hook(name)),
                module.register_backward_hook(self._backward_hook(name)),
            ]

    def stop(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.inputs.clear()
        self.sums.clear()

    def begin(self) -> None:
        """Before an iteration: nothing."""

    def _forward_hook(self, name: str) -> Any:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            self.inputs.setdefault(name, []).append(args[0].detach())

        return keep

    def _backward_hook(self, name: str) -> Any:
        def multiply(module: nn.Module, grads: tuple, outputs: Any) -> None:
            source = self.inputs[name].pop()  # calls come back in turn
            grad = grads[_place(module)]
            if grad is not None:
                self._add(name, _by_image(source * grad))

        return multiply

    def _add(self, name: str, sums: Tensor) -> None:
        known = self.sums.get(name)
        self.sums[name] = sums if known is None else known + sums

    def end(self) -> None:
        """After the backward of an iteration: square and add, by group."""
        for group, score in zip(self.groups, self.scores):
            total: Any = 0
            for tap in group.taps:
                sums = self.sums.get(tap.module)
                if sums is not None:
                    mine = torch.from_numpy(tap.unit >= 0)
                    unit = torch.from_numpy(tap.unit[tap.unit >= 0])
                    units = sums.new_zeros(len(sums), group.size)
                    unit, mine = unit.to(sums.device), mine.to(sums.device)
                    total = total + units.index_add_(1, unit, sums[:, mine])
            if isinstance(total, Tensor):
                score += total.square().sum(0).to(score.device)
        self.inputs.clear()
        self.sums.clear()


class KeepEverything(Reference):
    """Inputs and gradients of all calls are kept until the step ends."""

    def __init__(
        self, model: nn.Module, groups: Sequence[ChannelGroup]
    ) -> None:
        super().__init__(model, groups)
        self.gradients: dict[str, list[Tensor]] = {}

    def _backward_hook(self, name: str) -> Any:
        def keep(module: nn.Module, grads: tuple, outputs: Any) -> None:
            grad = grads[_place(module)]
            self.gradients.setdefault(name, []).insert(0, grad)

        return keep

    def end(self) -> None:
        """After the backward of an iteration: make the products."""
        for name, gradients in self.gradients.items():
            for source, grad in zip(self.inputs[name], gradients):
                if grad is not None:
                    self._add(name, _by_image(source * grad))
        super().end()
        self.gradients.clear()

    def stop(self) -> None:
        """Take the hooks off."""
        super().stop()
        self.gradients.clear()


def _place(module: nn.Module) -> int:
    """Where the gradient of the input is among those of the operation.

    Both methods use torch's older kind of backward hook, which sees the
    operation. The newer kind would not let the next one work in place.
    """
    return 1 if isinstance(module, nn.Linear) else 0  # after the bias


def _by_image(products: Tensor) -> Tensor:
    """(N, C, ...) to (N, C)."""
    return products.flatten(2).sum(2) if products.dim() > 2 else products
