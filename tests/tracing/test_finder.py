"""From a model to groups: what is frozen and why, and bad input."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from nets import (
    OUTPUT,
    Chain,
    InvertedResidual,
    Net,
    Residual,
    conv,
    group,
    run,
)
from nets_kernels import by_hook
from oracles import layout
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from mmgfp.slimming.structure import Axis, Structure
from mmgfp.tracing.finder import NoOutputsError, find_groups, restrict_groups


def reasons(groups) -> dict[str, str]:
    return {g.name: g.frozen for g in groups if g.producers}


def test_forward_that_fails():
    with pytest.raises(RuntimeError) as error:
        find_groups(Chain(), lambda model: model(torch.zeros(1, 4, 8, 8)))
    message = str(error.value)
    assert 'Chain does not run on the demo input' in message
    assert 'to have 3 channels, but got 4' in message
    assert 'input_shape=(H, W)' in message


def test_mode_is_restored_when_the_forward_fails():
    model = Chain().train()
    with pytest.raises(RuntimeError):
        find_groups(model, lambda model: model(torch.zeros(1, 4, 8, 8)))
    assert all(m.training for m in model.modules())


def test_what_forwards_write_is_taken_back():
    class Writing(Chain):
        def __init__(self):
            super().__init__()
            self.register_buffer('queue', torch.zeros(4, 5))
            self.momentum = conv(6, 5)

        def forward(self, x, losses=False):
            out = super().forward(x)
            with torch.no_grad():
                self.queue[:2] = out.mean((2, 3))
                if losses:
                    mine = self.momentum.weight.data
                    mine.mul_(0.5).add_(self.conv3.weight.data, alpha=0.5)
            return out

    def losses(model):
        return model(model.batch(), losses=True)

    model = Writing()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # layers take no part
        find_groups(model, run, 2, losses)
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_frozen_stages():
    model = Residual()
    model.stem.requires_grad_(False)
    model.a.requires_grad_(False)
    found = reasons(find_groups(model, run, images=2))
    # what the stem makes goes into `a` and on: no score of it is complete
    assert 'no gradient reaches the input of a.conv1' in found['stem']
    assert 'frozen_stages=-1' in found['a.conv1']
    assert found['b.conv1'] == ''


def test_single_unit():
    class Narrow(Net):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, 4)
            self.conv2 = conv(4, 2)

        def forward(self, x):
            x = self.conv1(x)  # halves go in step, so do neighbours
            x = torch.cat([x[:, ::2] + x[:, 1::2], x[:, :2] * x[:, 2:]], 1)
            return self.conv2(x)

    found = reasons(find_groups(Narrow(), run, images=2))
    assert 'only one unit' in found['conv1']


def test_norm_over_all_channels():
    class Normed(Net):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, 4)
            self.norm = nn.GroupNorm(1, 4)
            self.conv2 = conv(4, 2)

        def forward(self, x):
            return self.conv2(self.norm(self.conv1(x)))

    found = reasons(find_groups(Normed(), run, images=2))
    assert 'GroupNorm of one group in norm' in found['conv1']


def test_no_layer_to_prune():
    class Single(Net):
        def __init__(self):
            super().__init__()
            self.conv = conv(3, 4)

        def forward(self, x):
            return self.conv(x)

    groups = find_groups(Single(), run, images=2)
    assert all(g.frozen for g in groups)


class Normalised(Chain):
    """Its images are normalised before, as preprocessors do, by buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.rand(3, 1, 1))
        self.large = conv(5, 40)
        self.spectrum = Spectrum()
        self.last = conv(40, 4)

    def forward(self, images):
        features = super().forward(images)
        return self.last(self.spectrum(self.large(features)))


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x, dim=1).real  # which has no rule


@pytest.mark.parametrize('named', [False, True])
def test_reasons_where_buffers_normalised_the_images(named):
    """They name the layer where it is, not one with a large weight."""

    def with_mean(model):
        images = torch.arange(6 * 64).view(2, 3, 8, 8) / 384 - model.mean
        return model(images=images) if named else model(images)

    found = reasons(find_groups(Normalised(), with_mean, images=2))
    assert 'which has no rule, in spectrum' in found['large']


def test_ignore():
    groups = find_groups(Residual(), run, images=2)
    found = reasons(restrict_groups(groups, ignore=['a.*', 'stem']))
    assert found == {
        'stem': "ignored by the pattern 'a.*'",  # a.conv2 makes it too
        'a.conv1': "ignored by the pattern 'a.*'",
        'b.conv1': '',
        'head': 'reaches an output of the network',
    }


def test_ignore_that_matches_nothing():
    groups = find_groups(Chain(), run, images=2)
    with pytest.raises(ValueError, match=r"ignore='layer1\.\*'"):
        restrict_groups(groups, ignore=['conv1', 'layer1.*'])


def test_internal_scope():
    groups = find_groups(InvertedResidual(), run, images=2)
    found = reasons(restrict_groups(groups, scope='internal'))
    assert found['expand'] == ''
    assert "scope='internal'" in found['stem']
    assert restrict_groups(groups) == groups


def test_stages_are_told():
    told = []
    groups = find_groups(Chain(), run, images=2, log=told.append)
    assert told == [
        'tracing channels',
        'assigning rows of layer inputs to images',
        f'proving {len(groups)} channel groups',
    ]


# -- outputs in objects ------------------------------------------------------


@dataclass
class Output:
    logits: Tensor
    features: Tensor


class Slots:
    __slots__ = ('features', 'logits')

    def __init__(self, logits, features):
        self.logits, self.features = logits, features


class Head:
    """Holds the network, which is no output, and itself."""

    def __init__(self, network, **outputs):
        self.network, self.owner, self._outputs = network, self, outputs

    @property
    def features(self):
        return self._outputs['features']


def listed(logits, features):
    return dict(logits=logits, features=features.tolist())


PACKED = {
    'dataclass': Output,
    'namespace': SimpleNamespace,
    'slots': Slots,
    'nested': lambda **outputs: [dict(a=SimpleNamespace(b=Output(**outputs)))],
    'object': lambda **outputs: Head(nn.Linear(2, 2), **outputs),
    'generator': lambda **outputs: (x for x in outputs.values()),
    'array': lambda logits, features: (logits, features.detach().numpy()),
    'numbers': listed,
}


class Packing(Net):
    """Returns what the second layer makes besides."""

    prunable: ClassVar = {group('conv1', 'conv2', 8), group('fc1', 'fc2', 10)}

    def __init__(self, pack):
        super().__init__()
        self.pack = pack
        self.conv1, self.conv2 = conv(3, 8), conv(8, 12)
        self.fc1, self.fc2 = nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x):
        features = self.conv2(self.conv1(x).relu()).mean((2, 3))
        logits = self.fc2(self.fc1(features).relu())
        return self.pack(logits=logits, features=features)


@pytest.mark.parametrize('kind', PACKED)
def test_outputs_are_seen_in_whatever_holds_them(kind):
    groups = find_groups(Packing(PACKED[kind]), run, images=2)
    assert layout(groups) == Packing.prunable
    left = kind not in ('array', 'numbers')  # torch sees these no more
    assert reasons(groups)['conv2'].startswith(
        OUTPUT if left else 'fails the self-check: output'
    )


NOTHING = {
    'None': lambda x: None,
    'text': lambda x: 'done',
    'empty': lambda x: [],
    'no boxes': lambda x: x.new_zeros(0, 4),
    'numbers alone': lambda x: x.flatten()[:5].tolist(),
    'classes alone': lambda x: SimpleNamespace(label=x.argmax(1)),
    'a network': lambda x: nn.Linear(2, 2),
    'a function': lambda x: lambda: x,
}


@pytest.mark.parametrize('kind', NOTHING)
def test_outputs_that_hold_no_tensor_are_refused(kind):
    with pytest.raises(NoOutputsError) as error:
        find_groups(Chain(), lambda m: NOTHING[kind](run(m)), images=2)
    message = str(error.value)
    assert message.startswith('run(model) returned a value of the type')
    assert '\n' not in message


@pytest.mark.parametrize('wrap', [by_hook, spectral_norm])
def test_weights_that_hooks_keep_need_not_have_run(wrap):
    """They hold a graph until then, which cannot be copied."""

    class Model(Chain):
        def __init__(self):
            super().__init__()
            self.spare = wrap(nn.Conv2d(3, 8, 3))

    model = Model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = find_groups(model, run, images=2)
    assert layout(found) == Chain.prunable
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_lazy_layers_have_to_run_once():
    """Before that, nothing of them is known; afterwards they are ordinary."""

    def make():
        return nn.Sequential(nn.LazyConv2d(6, 3), nn.Conv2d(6, 2, 1)).eval()

    def run(model):
        return model(images)

    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r'0\.weight has no shape yet'):
        find_groups(make(), run)
    model = make()
    run(model)
    groups = find_groups(model, run, images=2)
    assert [group.name for group in groups if not group.frozen] == ['0']
    structure = Structure({('0.weight', 0): Axis(6, np.arange(4))})
    with pytest.raises(ValueError, match='expected a model that has been run'):
        structure.apply(make())
    structure.apply(model)
    assert len(model[0].weight) == 4
