"""Random weights that let a network work as a trained one does."""

from __future__ import annotations

import torch
from torch import nn

from mmgfp.libraries.random_weights import vary_weights_


class Block(nn.Module):
    """A residual block whose branch starts at zero, with a layer scale."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.gamma = nn.Parameter(1e-6 * torch.ones(8))
        self.offset = nn.Conv2d(8, 4, 1)
        self.unused = nn.BatchNorm2d(8)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.offset.weight)

    def forward(self, x):
        x = self.norm(100 * self.stem(x))
        x = x + self.gamma[:, None, None] * self.conv(x)
        return self.offset(x)


def run(model):
    generator = torch.Generator().manual_seed(0)
    return model(torch.rand(2, 3, 16, 16, generator=generator))


def varied(seed=0):
    torch.manual_seed(0)
    model = Block()
    vary_weights_(model, run, seed)
    return model


def test_nothing_is_hidden():
    model = varied()
    assert model.norm.weight.min() > 0.2
    assert model.gamma.min() > 0.2
    assert model.offset.weight.std() > 0.01
    before = run(model).detach()
    for name in ('stem', 'conv', 'gamma', 'norm'):
        other = varied()
        part = getattr(other, name)
        weight = part if isinstance(part, nn.Parameter) else part.weight
        with torch.no_grad():
            weight[0] = 0
        change = (run(other) - before).abs().max() / before.abs().max()
        assert change > 1e-3, name


def test_statistics_are_those_of_the_input():
    model = varied()
    assert not any(module.training for module in model.modules())
    seen = []
    model.norm.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    run(model)
    spread = seen[0].transpose(0, 1).flatten(1).std(1)
    ratio = model.norm.running_var.sqrt() / spread
    assert ratio.min() > 0.8 and ratio.max() < 1.3
    assert (model.norm.running_var - seen[0].var((0, 2, 3))).abs().max() > 0
    assert model.norm.momentum == 0.1
    assert model.unused.running_var.sub(1).abs().max() < 0.3


def test_seeds():
    first, same, other = varied().stem, varied().stem, varied(1).stem
    assert torch.equal(first.bias, same.bias)
    assert not torch.equal(first.bias, other.bias)


class Derived(nn.Conv2d):
    """Keeps what it needs of the weights that were loaded, as ConvAWS does."""

    def __init__(self):
        super().__init__(3, 2, 1)
        self.register_buffer('scale', torch.full((), -1.0))

    def _load_from_state_dict(self, state, prefix, *rest):
        if f'{prefix}scale' not in state:
            self.scale.fill_(state[f'{prefix}weight'].std())
        super()._load_from_state_dict(state, prefix, *rest)


def test_layers_derive_what_loading_would_give_them():
    model = nn.Sequential(Derived())
    vary_weights_(model, lambda m: m(torch.ones(1, 3, 4, 4)))
    assert model[0].scale == model[0].weight.std()
