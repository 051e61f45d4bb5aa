"""Batch norms of slim networks are fused into the convolutions before."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import choose_units, kept, randomize
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmgfp.slimming.surgery import cut_model
from mmgfp.tracing.finder import find_groups

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Plain, depthwise and residual convolutions with batch norms."""

    def __init__(self):
        super().__init__()
        self.first = block(3, 8)
        self.depthwise = block(8, 8, groups=8)
        self.second = block(8, 6)
        self.third = block(6, 6)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.second(self.depthwise(self.first(x).relu()).relu()).relu()
        return self.last((x + self.third(x)).relu())


def block(inputs: int, outputs: int, **kwargs) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, **kwargs)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def by_torch(model: nn.Module) -> nn.Module:
    for layers in (model.first, model.depthwise, model.second, model.third):
        layers[0] = fuse_conv_bn_eval(layers[0], layers[1])
        layers[1] = nn.Identity()
    return model


def by_mmcv(model: nn.Module) -> nn.Module:
    return pytest.importorskip('mmcv.cnn').fuse_conv_bn(model)


@pytest.mark.parametrize('fuse', [by_torch, by_mmcv])
def test_fused_slim_network_computes_the_same(fuse):
    slim = randomize(Net()).eval()
    groups = find_groups(slim, lambda model: model(IMAGES), images=2)
    cut_model(slim, kept(slim, groups, choose_units(groups)))
    assert slim.first[0].out_channels < 8 and slim.third[0].out_channels < 6
    with torch.no_grad():
        expected = slim(IMAGES)
        fused = fuse(copy.deepcopy(slim))
        torch.testing.assert_close(fused(IMAGES), expected)
    norms = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not norms
    for name in ('first', 'depthwise', 'second', 'third'):
        conv = fused.get_submodule(name)[0]
        assert conv.weight.shape[0] == conv.out_channels == len(conv.bias)
