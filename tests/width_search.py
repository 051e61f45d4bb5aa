"""What tests of searches of widths share: small networks, all their widths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mmgfp import Prunable
from mmgfp.cost.latency import LatencyTable, Measured
from mmgfp.cost.polynomial import Cost
from mmgfp.search.budget import Budget

SHAPE = (2, 3, 8, 8)


def chain(*widths: int) -> nn.Sequential:
    """Convolutions, each of which reads the one before."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), (*widths, 5)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Parts(nn.Module):
    """Convolutions side by side: no layer reads another prunable one."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, width, 1 + 2 * (n % 2), padding=n % 2),
                nn.ReLU(),
                nn.Conv2d(width, 2, 1),
            )
            for n, width in enumerate(widths)
        )

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], 1)


def run(model: nn.Module):
    torch.manual_seed(1)
    return model(torch.randn(SHAPE))


def find(model: nn.Module, **settings) -> Prunable:
    return Prunable.find(model.eval(), run, SHAPE[0], **settings)


def random_scores(net: Prunable, seed: int = 0) -> list[np.ndarray]:
    """Scores that differ between groups and, more, in each of them."""
    rng = np.random.default_rng(seed)
    return [
        rng.uniform(0.5, 2) * rng.exponential(size=size)
        for size in net.units.sizes
    ]


def all_widths(
    net: Prunable, budget: Budget, choices: Sequence[np.ndarray]
) -> np.ndarray:
    """(B, G) all widths within the budget."""
    widths = np.array(list(itertools.product(*choices)))
    cost = Cost(net.cost_model, net.units.sizes)(torch.from_numpy(widths))[
        budget.metric
    ].numpy()
    full = net.cost_before[budget.metric]
    return widths[cost / full <= budget.ratio * (1 + 1e-9)]


def sums_of_greatest(scores: Sequence[np.ndarray], widths: Sequence[int]):
    """What a network keeps of the scores."""
    return sum(np.sort(s)[::-1][:n].sum() for s, n in zip(scores, widths))


def staircase(model: nn.Sequential, step: int = 4) -> LatencyTable:
    """A device that computes channels in multiples of a step."""
    shapes = {
        name: tuple(weight.shape)
        for name, weight in model.named_parameters()
        if weight.dim() > 1
    }
    measured = []
    for outputs, inputs, *_ in shapes.values():
        first, second = (list(range(1, n + 1)) for n in (outputs, inputs))
        ms = [[-(-a // step) * -(-b // step) for b in second] for a in first]
        measured.append(Measured(first, second, ms))
    whole = sum(m.ms[-1][-1] for m in measured)
    calls = {name: [n] for n, name in enumerate(shapes)}
    return LatencyTable(shapes, calls, measured, whole)
