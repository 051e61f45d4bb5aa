"""Models that are prepared for quantisation-aware training."""

from __future__ import annotations

import warnings

import pytest
import torch
from pruning import pruner_of
from torch import nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import prepare_qat_fx

from mmgfp.cost.model import record_calls
from mmgfp.tracing.finder import find_groups

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FUSED = quantization.get_default_qat_qconfig('fbgemm')
SEPARATE = quantization.get_default_qat_qconfig('fbgemm', version=0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.first(x)))
        return self.last(torch.relu(self.second(x)).mean((2, 3)))


def eager(qconfig) -> nn.Module:
    net = Net().train()
    net.qconfig = qconfig
    return quantization.prepare_qat(net)


def graph(qconfig) -> nn.Module:
    mapping = quantization.QConfigMapping().set_global(qconfig)
    return prepare_qat_fx(Net().train(), mapping, (IMAGES,))


@pytest.mark.parametrize('prepare', [eager, graph])
@pytest.mark.parametrize(
    ('qconfig', 'operation'),
    [
        (FUSED, 'fused_moving_avg_obs_fake_quant'),
        (SEPARATE, 'fake_quantize_per_channel_affine'),
    ],
)
def test_fake_quantised_layers_stay_and_say_what_to_do(
    prepare, qconfig, operation
):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch moves this to another package
        net = prepare(qconfig)
    net(IMAGES)  # observers see something
    groups = find_groups(net, lambda model: model(IMAGES), images=2)
    reasons = {
        layer: group.frozen for group in groups for layer in group.producers
    }
    advice = 'prune first, then quantise'
    expected = {
        layer: f'the fake quantisation {operation} in {layer}: {advice}'
        for layer in ('first', 'second', 'last')
    }
    assert reasons == {n: f'goes through {r}' for n, r in expected.items()}
    with pytest.raises(ValueError, match=advice) as error:
        pruner_of(net, groups, record_calls(net, lambda: net(IMAGES)))
    assert all(reason in str(error.value) for reason in expected.values())
