"""Layers that read pruned channels, with other weights adapted.

The oracle is the least-squares solution that NumPy finds from the inputs.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from torch import nn
from toy import make_config, pruning_hook, train

from mmgfp import Prunable, Pruner
from mmgfp.criteria.kfac import KFAC
from mmgfp.engine.runner import averaged_models

KINDS = ['linear', 'conv', 'flattened', 'no bias']
HOOK = dict(
    criterion=dict(type='KFAC', batches=2, fisher='empirical'),
    normalize_by='none',
    compensate=True,
    interval=4,
)


def chain(kind: str) -> tuple[nn.Sequential, torch.Tensor]:
    """Two layers; the second reads the channels of the first."""
    torch.manual_seed(0)
    x = torch.randn(60, 3, 4, 4).double()
    first = nn.Conv2d(3, 6, 3, padding=1)
    layers = [first, nn.ReLU()]
    if kind == 'linear':
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    elif kind == 'flattened':
        layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 4)]
    else:
        layers += [nn.Conv2d(6, 4, 3, padding=1, bias=kind != 'no bias')]
    return nn.Sequential(*layers).double().eval(), x


def inputs(layer: nn.Module, x: torch.Tensor) -> np.ndarray:
    """The rows (R, d) that a layer multiplies with its weight."""
    if isinstance(layer, nn.Conv2d):
        patches = nn.functional.unfold(x, 3, padding=1)
        x = patches.transpose(1, 2).flatten(0, 1)
    if layer.bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    return x.numpy()


@pytest.mark.parametrize('kind', KINDS)
def test_least_squares(kind):
    model, x = chain(kind)
    average = copy.deepcopy(model)
    with torch.no_grad():  # an average that differs
        for parameter in average.parameters():
            parameter += 0.5
    before = copy.deepcopy(model)
    net = Prunable.find(model, lambda m: m(x), len(x))
    criterion = KFAC(fisher='empirical', strength=0.0)
    pruner = Pruner(net, criterion, 'none', compensate=True)
    with criterion.observing():
        (model(x) ** 2).sum().div(len(x)).backward()
        criterion.end_batch()
    pruner.prune(lambda n: n == 2, copies=[average])
    kept = net.structure().axes['0.weight', 0].keep
    reader = before[-1]
    with torch.no_grad():
        rows = inputs(reader, before[:-1](x))
        outputs = before(x)
        if kind in ('conv', 'no bias'):
            outputs = outputs.permute(0, 2, 3, 1).flatten(0, 2)
    each = rows.shape[1] // 6  # rows of a channel
    columns = (kept[:, None] * each + np.arange(each)).ravel()
    if reader.bias is not None:
        columns = np.append(columns, rows.shape[1] - 1)
    best, *_ = np.linalg.lstsq(rows[:, columns], outputs.numpy(), rcond=None)
    found = model[-1].weight.flatten(1)
    if reader.bias is not None:
        found = torch.cat([found, model[-1].bias[:, None]], 1)
    np.testing.assert_allclose(found.detach(), best.T, atol=1e-8)
    # the average changes by as much
    torch.testing.assert_close(average[-1].weight - 0.5, model[-1].weight)
    torch.testing.assert_close(model[0].weight, before[0].weight[kept])
    torch.testing.assert_close(average[0].weight, before[0].weight[kept] + 0.5)


def without_three(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    """Prunes three channels, compensated; the kept ones of layer 0."""
    net = Prunable.find(model.eval(), lambda m: m(x), len(x))
    criterion = KFAC(fisher='empirical')
    pruner = Pruner(net, criterion, 'none', compensate=True)
    with criterion.observing():
        (model(x) ** 2).sum().div(len(x)).backward()
        criterion.end_batch()
    pruner.prune(lambda n: n == 3)
    kept = net.structure().axes['0.weight', 0].keep
    return kept


def test_depthwise_readers_keep_their_weights():
    """Their channels are pruned; those that stay read nothing else."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)
    ).double()
    x = torch.randn(40, 3, 5, 5).double()
    before = copy.deepcopy(model)
    kept = without_three(model, x)
    assert model[1].weight.equal(before[1].weight[kept])
    assert not model[2].weight.equal(before[2].weight[:, kept])


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class DoubledConv(nn.Conv2d):
    """Its kernel is twice its weight."""

    def forward(self, source: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(source, 2 * self.weight, self.bias)


@pytest.mark.parametrize('kind', [nn.Conv2d, DoubledConv])
def test_readers_that_compute_their_kernel_keep_their_weights(kind):
    """The curvature is that of a kernel, not that of such a weight."""
    torch.manual_seed(0)
    reader = kind(6, 4, 3)
    if kind is nn.Conv2d:
        nn.utils.parametrize.register_parametrization(
            reader, 'weight', Doubled()
        )
    model = nn.Sequential(nn.Conv2d(3, 6, 1), reader).double()
    x = torch.randn(40, 3, 5, 5).double()
    before = dict(copy.deepcopy(model).named_parameters())
    kept = without_three(model, x)
    assert len(kept) == 3
    for name, parameter in model[1].named_parameters():
        old = before[f'1.{name}']
        cut = old.dim() > 1 and old.shape[1] == 6
        assert parameter.equal(old[:, kept] if cut else old)


def test_a_run(tmp_path):
    config = make_config(tmp_path, HOOK)
    config.custom_hooks.append(dict(type='EMAHook'))
    runner = Runner.from_cfg(config)
    runner.train()
    assert pruning_hook(runner).pruner.compensate
    for network in (runner.model, *averaged_models(runner)):
        for value in network.state_dict().values():
            assert value.isfinite().all()


@pytest.mark.parametrize(
    'change, words',
    [
        (
            dict(criterion=dict(type='Fisher')),
            "Fisher.* has no curvature.*'KFAC'",
        ),
        (dict(criterion=None), "'Fisher'.* has no curvature"),
        (dict(compensate='yes'), "compensate='yes'.*True or False"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        train(tmp_path, HOOK | change)
