"""Measure an iteration of DCSS against two plain training iterations."""

from __future__ import annotations

import copy

import torch
from benchmark_training import Network, Nothing, Training
from beside_training import main
from torch import Tensor

from mmgfp.search.budget import Budget
from mmgfp.search.dcss import DCSS
from mmgfp.utils.modes import buffers_kept


class Searching(Training):
    """Weights and widths learn from a batch each; or weights from both."""

    def __init__(self, network: Network, device: str) -> None:
        super().__init__(network, device)
        net = self.pruner.net
        self.search = DCSS(warmup=0)
        scores = [torch.rand(size).numpy() for size in net.units.sizes]
        self.search.start(net, Budget('flops', 0.5), scores)

    def plain(self) -> float:
        return sum(self.iteration(Nothing()) for _ in range(2))

    def own(self) -> float:
        self.search.attach(1000)
        taken = self.iteration(self)
        self.search.detach()
        return taken

    def once(self) -> dict[str, float]:
        return {}

    def begin(self) -> None:
        """Before the iteration of the weights."""

    def end(self) -> None:
        """After it the widths learn."""
        self.search.step(self.slope)

    def slope(self, values: Tensor) -> Tensor:
        with buffers_kept(self.model):
            losses = self.model(**copy.copy(self.batch))
            loss, _ = self.model.parse_losses(losses)
            (found,) = torch.autograd.grad(loss, values)
        return found


if __name__ == '__main__':
    main({'DCSS': Searching}, __doc__, 'benchmark_search.py')
