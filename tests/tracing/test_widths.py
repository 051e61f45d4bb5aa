"""Widths that modules store as attributes shrink with what they count."""

from __future__ import annotations

import copy
import json
from functools import cache, lru_cache, partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from nets import Net, conv, run
from nets_widths import WIDTH_NETS, Gated, Heads, Hierarchical, WidthNet
from oracles import (
    attribute,
    choose_units,
    kept,
    layout,
    masked_is_slim,
    outputs,
    worst_difference,
)
from pruning import First, pruner_of
from stack import CLASSIFICATION
from torch import nn

from mmgfp.cost.model import record_calls
from mmgfp.engine.builder import build_pruned_model
from mmgfp.groups import ChannelGroup
from mmgfp.libraries.forward import demo_runner
from mmgfp.slimming.structure import Structure
from mmgfp.slimming.surgery import cut_model
from mmgfp.tracing.finder import find_groups
from mmgfp.tracing.sizes import Size

EVERY_NET = pytest.mark.parametrize('name', WIDTH_NETS)
PRUNABLE = pytest.mark.parametrize(
    'name', [name for name, net in WIDTH_NETS.items() if net.prunable]
)


@cache
def found(name: str) -> tuple[WidthNet, list[ChannelGroup]]:
    torch.manual_seed(0)
    model = WIDTH_NETS[name]().eval()
    return model, find_groups(model, run, images=2)


def widths(groups) -> set[str]:
    return {
        m.tensor
        for g in groups
        if not g.frozen
        for m in g.members
        if m.role == 'width'
    }


def numbers(model: nn.Module) -> dict:
    """All numbers and lists that the modules store."""
    return {
        (name, key): copy.copy(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (int, list, tuple)) and key != 'training'
    }


@EVERY_NET
def test_groups(name):
    _, groups = found(name)
    net = WIDTH_NETS[name]
    assert layout(groups) == net.prunable
    assert widths(groups) == net.widths
    for layer, reason in net.frozen.items():
        reasons = [g.frozen for g in groups if layer in g.producers]
        assert any(r and reason in r for r in reasons), (layer, reasons)


@PRUNABLE
def test_masked_is_slim(name):
    model, groups = found(name)
    for seed in (1, 2):
        masked_is_slim(model, groups, run, cut_model, seed)


@EVERY_NET
def test_finding_leaves_plain_numbers(name):
    torch.manual_seed(0)
    model = WIDTH_NETS[name]()
    before = numbers(model)
    find_groups(model, run, images=2)
    after = numbers(model)
    assert after == before
    flat = [v if isinstance(v, (list, tuple)) else [v] for v in after.values()]
    assert not any(isinstance(n, Size) for values in flat for n in values)
    assert Size.on_equal is None


def slim_and_structure(name: str) -> tuple[WidthNet, Structure]:
    """Pruned by the pruner, as in training."""
    return prune(*found(name))


def prune(model: nn.Module, groups) -> tuple[nn.Module, Structure]:
    model = copy.deepcopy(model)
    pruner = pruner_of(
        model, groups, record_calls(model, lambda: run(model)), 'none'
    )
    pruner.attach()
    for _ in range(2):  # what has been removed before counts, too
        run_and_learn(model)
        pruner.criterion.end_batch()
        pruner.prune(lambda choices: choices == 2)
    pruner.detach()
    return model, pruner.net.structure('net.py', (16, 16))


def run_and_learn(model: nn.Module) -> None:
    model.zero_grad()
    out = run(model)
    out = out if isinstance(out, tuple) else (out,)
    sum(o.square().mean() for o in out).backward()


@PRUNABLE
def test_slim_networks_train_and_round_trip(name, tmp_path):
    slim, structure = slim_and_structure(name)
    run_and_learn(slim)
    structure.save(tmp_path / 'structure.json')
    fresh = WIDTH_NETS[name]().eval()
    Structure.load(tmp_path / 'structure.json').apply(fresh)
    assert numbers(fresh) == numbers(slim)
    fresh.load_state_dict(slim.state_dict())
    for a, b in zip(outputs(slim, run), outputs(fresh, run)):
        assert torch.equal(a, b)


def test_pruning_goes_on_from_a_slim_network():
    slim, structure = slim_and_structure('Heads')
    _, groups = found('Heads')
    pruner = pruner_of(
        slim,
        groups,
        record_calls(slim, lambda: run(slim)),
        'none',
        structure=structure,
    )
    pruner.attach()
    run_and_learn(slim)
    pruner.criterion.end_batch()
    twin = copy.deepcopy(slim)
    pruner.prune(lambda choices: choices == 5, copies=[twin])
    assert numbers(twin) == numbers(slim)
    run_and_learn(slim)
    fresh = Heads().eval()
    pruner.net.structure().apply(fresh)
    assert numbers(fresh) == numbers(slim)


def test_which_numbers_change():
    """Not the width of a head, nor the scale computed from it."""
    model, groups = found('Heads')
    model = copy.deepcopy(model)
    (heads,) = (g for g in groups if 'attention.qkv' in g.producers)
    cut_model(model, kept(model, [heads], {heads.name: [1, 2]}))
    attention = model.attention
    assert attention.num_heads == 2
    assert attention.embed_dims == 6
    assert attention.head_dims == 3
    assert attention.scale == 3**-0.5
    assert attention.qkv.out_features == 18
    assert attention.proj.in_features == 6


def test_of_two_equal_numbers_the_right_one_changes():
    model, groups = found('EqualValues')
    model = copy.deepcopy(model)
    cut_model(model, kept(model, groups, {'stem': [0]}))
    assert (model.before, model.width, model.behind) == (4, 3, 4)


class OwnDepthwise(nn.Module):
    """A convolution of the user's own, with its number of groups."""

    def __init__(self):
        super().__init__()
        self.groups = 8
        self.weight = nn.Parameter(torch.randn(8, 1, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight, padding=1, groups=self.groups)


def test_groups_of_functional_convolutions():
    model = nn.Sequential(conv(3, 8), OwnDepthwise(), conv(8, 5)).eval()

    def forward(model):
        return model(Hierarchical.batch())

    groups = find_groups(model, forward, images=2)
    (found,) = (g for g in groups if not g.frozen)
    assert found.size == 8
    assert found.producers == ['0', '1']
    cut_model(model, kept(model, [found], {found.name: [3, 5]}))
    assert model[1].groups == 6
    assert forward(model).shape == (2, 5, 16, 16)


def test_lists_are_not_shared():
    """A config may hold the same list."""
    model = Gated().eval()
    dims = model.dims
    groups = find_groups(model, run, images=2)
    assert model.dims is dims
    cut_model(model, kept(model, groups, choose_units(groups)))
    assert dims == [2, 4]
    assert model.dims != dims


# -- structures --------------------------------------------------------------


def plain() -> dict:
    return slim_and_structure('Hierarchical')[1].to_dict()


def test_structures_hold_attributes():
    data = json.loads(json.dumps(plain()))
    assert data['version'] == 2
    assert data['attributes']['width']['size'] == 4
    model = Hierarchical()
    Structure.from_dict(data).apply(model)
    runs = data['attributes']['width']['keep']
    assert attribute(model, 'width') == sum(b - a for a, b in runs) < 4


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(width=5), 'has width = 5, expected width = 4. Use the config'),
        (dict(width='4'), 'does not store width as a whole number'),
        (dict(width=3), 'The model seems to be pruned already'),
    ],
)
def test_attribute_that_does_not_fit(change, message):
    structure = Structure.from_dict(plain())
    assert len(structure.axes['width', -1].keep) == 3
    model = Hierarchical()
    vars(model).update(change)
    with pytest.raises(ValueError) as error:
        structure.apply(model)
    assert 'the network itself' in str(error.value)
    assert message in str(error.value)
    assert model.stem.out_channels == 12


@pytest.mark.parametrize(
    'name', ['attention.depth', 'attention.missing.width', 'embed_dims[3]']
)
def test_attribute_that_is_not_there(name):
    data = slim_and_structure('Heads')[1].to_dict()
    data['attributes'] = {name: {'size': 4, 'keep': [[0, 2]]}}
    with pytest.raises(ValueError, match='does not store') as error:
        Structure.from_dict(data).apply(Heads())
    for part in name.rsplit('.', 1):
        assert part in str(error.value)


def test_damaged_attributes():
    data = plain()
    data['attributes']['width']['keep'] = [[0, 9]]
    with pytest.raises(ValueError, match='is damaged'):
        Structure.from_dict(data)


# -- networks of the library -------------------------------------------------


def classifier(**backbone) -> dict:
    return dict(
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=4,
            in_channels=backbone.pop('out'),
            loss=dict(type='CrossEntropyLoss'),
        ),
        data_preprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3),
    )


FEATURE_MAP = dict(
    mmpretrain=dict(out_type='featmap'), mmcls=dict(output_cls_token=False)
)[CLASSIFICATION]
REAL = {
    'vit': classifier(
        type='VisionTransformer',
        arch=dict(
            embed_dims=24,
            num_layers=2,
            num_heads=4,
            feedforward_channels=16,
        ),
        img_size=32,
        patch_size=8,
        **FEATURE_MAP,
        out=24,
    ),
    'hornet': classifier(
        type='HorNet',
        arch=dict(
            base_dim=8,
            depths=[1, 1, 1, 1],
            orders=[2, 3, 3, 3],
            dw_cfg=[dict(type='DW', kernel_size=3)] * 4,
        ),
        gap_before_final_norm=False,
        out=64,
    ),
    'res2net': classifier(
        type='Res2Net', depth=50, base_width=8, base_channels=8, out=256
    ),
}
SHRINKS = {
    'vit': 'backbone.layers.0.attn.num_heads',
    'hornet': 'backbone.stages.0.0.gnconv.dims[0]',
    'res2net': 'backbone.layer1.0.width',
}


@pytest.mark.parametrize('name', REAL)
def test_networks_of_the_library(name, tmp_path):
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(CLASSIFICATION)
    config = REAL[name]
    torch.manual_seed(0)
    model = MODELS.build(dict(type='ImageClassifier', **copy.deepcopy(config)))
    runner = demo_runner((32, 32), images=2)
    groups = find_groups(model, runner, images=2)
    assert SHRINKS[name] in widths(groups)
    masked_is_slim(model, groups, runner, cut_model)

    model.eval()
    before = attribute(model, SHRINKS[name])
    pruner = pruner_of(
        *(model, groups, record_calls(model, lambda: runner(model)), 'none'),
        criterion=First(),
    )
    pruner.prune(lambda choices: pruner.net.ratio('params') < 0.3)
    assert attribute(model, SHRINKS[name]) < before
    pruner.net.structure().save(tmp_path / 'structure.json')
    fresh = build_pruned_model(
        'ImageClassifier',
        tmp_path / 'structure.json',
        **copy.deepcopy(config),
    ).eval()
    assert numbers(fresh) == numbers(model)
    fresh.load_state_dict(model.state_dict())
    for a, b in zip(outputs(model, runner), outputs(fresh, runner)):
        assert torch.equal(a, b)
    losses = demo_runner((32, 32), images=2, mode='loss')(fresh)
    losses['loss'].backward()
    assert all(
        p.grad is not None for p in fresh.parameters() if p.requires_grad
    )


class _Pooled(Net):
    """ASPP: what is pooled gets the size of another branch."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.a = conv(8, 6)
        self.b = conv(8, 6)
        self.head = conv(12, 5)

    def forward(self, x):
        x = self.stem(x)
        a, b = self.a(x), self.b(x.mean((2, 3), keepdim=True))
        return self.head(torch.cat([a, self.like(b, a)], 1))

    like = staticmethod(lambda b, a: b.expand_as(a))


class _PooledBySize(_Pooled):
    like = staticmethod(lambda b, a: b.expand(a.size()))


class _PooledByNumbers(_Pooled):
    like = staticmethod(lambda b, a: b.expand(-1, -1, *a.shape[2:]))


@pytest.mark.parametrize('net', [_Pooled, _PooledBySize, _PooledByNumbers])
def test_expanding_to_the_size_of_another(net):
    model = net().eval()
    groups = find_groups(model, run, images=2)
    together = {
        tuple(g.producers) for g in groups if not g.frozen and g.size == 6
    }
    coupled = net is not _PooledByNumbers
    assert together == ({('a', 'b')} if coupled else {('a',), ('b',)})
    masked_is_slim(model, groups, run, cut_model, 1)


class _Copy(nn.Module):
    """Writes into a fresh tensor, as MMDetection's RoI extractors do."""

    def __init__(self, width):
        super().__init__()
        self.out_channels = width

    def forward(self, x):
        out = x.new_zeros(len(x), self.out_channels, *x.shape[2:])
        out[:] = x
        return out


class _TwoStages(Net):
    """Runs one stage; training runs the other, which has no parameters."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.stages = nn.ModuleList([_Copy(8), _Copy(8)])
        self.head = conv(8, 5)

    def forward(self, x, stage=1):
        return self.head(self.stages[stage](self.stem(x)))


def test_attribute_of_a_module_that_only_training_runs():
    model = _TwoStages().eval()
    groups = find_groups(
        model, run, images=2, train=lambda m: m(torch.ones(2, 3, 8, 8), 0)
    )
    cut_model(model, kept(model, groups, choose_units(groups)))
    assert model.stages[0].out_channels == len(model.stem.weight) < 8
    model(torch.ones(2, 3, 8, 8), 0)


def test_attribute_of_a_module_that_nothing_runs(recwarn):
    def losses(model):
        raise RuntimeError('no ground truth')

    find_groups(_TwoStages().eval(), run, images=2, train=losses)
    assert 'stages.0' in str(recwarn.pop().message)


@pytest.mark.parametrize('name', ['StoredHeads', 'MemorisingHeads'])
def test_networks_that_ran_in_evaluation_with_gradients(name):
    """What they have kept is part of a graph, and of the full size."""
    torch.manual_seed(0)
    model = WIDTH_NETS[name]().eval()
    run(model)
    groups = find_groups(model, run, images=2)
    assert layout(groups) == model.prunable
    run(model)
    cut_model(model, kept(model, groups, choose_units(groups)))
    before = outputs(model, run)
    assert worst_difference(before, outputs(model.train().eval(), run)) == 0


# -- what is remembered from one call to the next -----------------------------


@lru_cache(maxsize=16)
def _by_heads(shape: tuple, heads: int) -> tuple:
    """As einops does: the shape of a reshape, looked up by sizes."""
    return (*shape[:-1], heads, shape[-1] // heads)


def _remembering(compute):
    """A decorator that hides its cache in a closure."""
    cached = lru_cache(compute)
    return lambda *args: cached(*args)


class _CachedHeads(nn.Module):
    """Attention whose sizes come out of one of several kinds of caches."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.heads = kind, 4
        self.of_mine = lru_cache(_by_heads.__wrapped__)
        self.last, self.seen = None, {}
        self.qkv, self.proj = nn.Linear(8, 48), nn.Linear(16, 8)

    @staticmethod
    @lru_cache
    def of_all(shape, heads):
        return _by_heads.__wrapped__(shape, heads)

    in_closure = staticmethod(_remembering(_by_heads.__wrapped__))

    @lru_cache  # noqa: B019 - as networks do
    def of_method(self, shape, heads):
        return _by_heads.__wrapped__(shape, heads)

    def split(self, x):
        find = _by_heads if self.kind == 'plain' else getattr(self, self.kind)
        return x.reshape(find(x.shape, self.heads)).transpose(1, 2)

    def forward(self, x):
        self.last = x.shape[1], [x.shape]
        self.seen[x.shape[1], self.heads] = {'heads': self.heads}
        query, key, value = map(self.split, self.qkv(x).chunk(3, -1))
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return x + self.proj(mixed.transpose(1, 2).flatten(2))


CACHES = ('plain', 'of_mine', 'of_all', 'in_closure', 'of_method')


class _TwoCached(Net):
    kind = 'plain'

    def __init__(self):
        super().__init__()
        self.patch, self.head = conv(3, 8), nn.Linear(8, 4)
        self.blocks = nn.Sequential(
            _CachedHeads(self.kind), _CachedHeads(self.kind)
        )

    def forward(self, x):
        x = self.patch(x).flatten(2).mT[:, :16]
        return self.head(self.blocks(x).mean(1))


class _Around(Net):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize('kind', CACHES)
def test_equal_blocks_behind_a_cache_are_told_apart(kind, monkeypatch):
    monkeypatch.setattr(_TwoCached, 'kind', kind)
    expected = {f'blocks.{i}.qkv': {f'blocks.{i}.heads'} for i in range(2)}

    def attributes(model, prefix=''):
        found = {
            g.producers[0]: widths([g])
            for g in find_groups(model.eval(), run, images=2)
            if g.producers and 'qkv' in g.producers[0] and not g.frozen
        }
        return {
            key.removeprefix(prefix): {v.removeprefix(prefix) for v in values}
            for key, values in found.items()
        }

    assert attributes(_TwoCached()) == expected
    # whatever has been called before, under whatever names
    assert attributes(_Around(_TwoCached()), 'body.') == expected
    model = _TwoCached().eval()
    run(model)
    assert attributes(model) == expected
    assert attributes(model) == expected
    groups = find_groups(model, run, images=2)
    masked_is_slim(model, groups, run, cut_model)


def test_no_size_outlives_its_trace(monkeypatch):
    def sizes(value):
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, (list, tuple)):
            return [s for v in value for s in sizes(v)]
        return [value] if isinstance(value, Size) else []

    model = _TwoCached().eval()
    seen = model.blocks[0].seen
    find_groups(model, run)
    assert model.blocks[0].seen is seen
    assert seen == {(16, 4): {'heads': 4}}
    assert model.blocks[0].last[0] == 16
    assert not any(sizes(vars(m)) for m in model.modules())
    # nor does one that is kept where nobody looks mean anything later
    kept = SimpleNamespace(sizes=[])
    monkeypatch.setattr(
        _CachedHeads, 'split', lambda self, x: _keep(self, x, kept.sizes)
    )
    find_groups(_Around(_TwoCached()).eval(), run, images=2)
    assert any(isinstance(size, Size) for size in kept.sizes)
    assert not widths(find_groups(_TwoCached().eval(), run, images=2))


def _keep(self, x, kept):
    kept = kept or kept.append(self.heads) or kept
    return x.reshape(*x.shape[:-1], kept[0], -1).transpose(1, 2)


_MEMO: dict = {}
_LAST: list = []


def _in_dict(memo, shape, heads):
    key = tuple(shape), heads
    if key not in memo:
        memo[key] = _by_heads.__wrapped__(shape, heads)
    return memo[key]


def _with_closure():
    memo: dict = {}

    def find(shape, heads):
        return _in_dict(memo, shape, heads)

    find.memo = memo
    return find


_in_closed_dict = _with_closure()


def _in_default(shape, heads, memo={}):  # noqa: B006 - as networks do
    return _in_dict(memo, shape, heads)


class _Memorising(_CachedHeads):
    """Keeps what it computed in a dict of its own making."""

    of_class: ClassVar = {}
    shape: ClassVar = ()

    def split(self, x):
        find = {
            'of_class': partial(_in_dict, self.of_class),
            'of_file': partial(_in_dict, _MEMO),
            'of_function': _in_closed_dict,
            'default': _in_default,
        }[self.kind]
        type(self).shape = x.shape[:1] + x.shape[2:]
        _LAST[:] = [x.shape]
        return x.reshape(find(x.shape, self.heads)).transpose(1, 2)


@pytest.mark.parametrize(
    ('kind', 'memo'),
    [
        ('of_class', _Memorising.of_class),
        ('of_file', _MEMO),
        ('of_function', _in_closed_dict.memo),
        ('default', _in_default.__defaults__[0]),
    ],
)
def test_no_size_outlives_its_trace_in_a_dict(kind, memo):
    model = _TwoCached()
    model.blocks = nn.Sequential(_Memorising(kind), _Memorising(kind))
    groups = find_groups(model.eval(), run, images=2)
    assert memo[(2, 16, 16), 4] == (2, 16, 4, 4)
    left = [memo, _Memorising.shape, _LAST]
    assert not any(isinstance(n, Size) for n in _leaves(left))
    masked_is_slim(model, groups, run, cut_model)


def _leaves(value):
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        return [leaf for v in value for leaf in _leaves(v)]
    return [value]


def test_other_caches_are_left_alone():
    calls = []

    @lru_cache
    def load(name):
        calls.append(name)
        return name

    load('weights')
    find_groups(_TwoCached().eval(), run)
    load('weights')
    assert calls == ['weights']


# -- numbers that no forward reads --------------------------------------------


class _Branches(nn.Module):
    """RepVGG's block: merged after training, by numbers that it stores."""

    def __init__(self, in_channels, out_channels, groups=1):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.groups, self.conv = groups, None
        self.large = self.branch(3)
        self.small = self.branch(1)
        same = in_channels == out_channels
        self.norm = nn.BatchNorm2d(in_channels) if same else None

    def branch(self, side):
        return nn.Sequential(
            conv(
                self.in_channels,
                self.out_channels,
                side,
                groups=self.groups,
            ),
            nn.BatchNorm2d(self.out_channels),
        )

    def forward(self, x):
        if self.conv is not None:
            return F.relu(self.conv(x))
        out = self.large(x) + self.small(x)
        return F.relu(out if self.norm is None else out + self.norm(x))

    def merge(self):
        shape = (self.out_channels, self.in_channels // self.groups, 3, 3)
        weight, bias = torch.zeros(shape), torch.zeros(self.out_channels)
        for layer, norm in (self.large, self.small):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            inner = (layer.weight * scale.view(-1, 1, 1, 1)).detach()
            pad = (3 - inner.shape[2]) // 2
            weight += F.pad(inner, [pad] * 4)
            bias += norm.bias + (layer.bias - norm.running_mean) * scale
        if self.norm is not None:
            norm = self.norm
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            each = torch.arange(self.in_channels)
            inside = each % (self.in_channels // self.groups)
            weight[each, inside, 1, 1] += scale
            bias += norm.bias - norm.running_mean * scale
        self.conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            3,
            padding=1,
            groups=self.groups,
        )
        self.conv.weight.data, self.conv.bias.data = weight, bias


class _Merged(Net):
    groups = 1

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(
            _Branches(3, 8),
            _Branches(8, 8, self.groups),
            _Branches(8, 12, self.groups),
        )
        self.head = conv(12, 5)

    def forward(self, x):
        return self.head(self.blocks(x))


@pytest.mark.parametrize('groups', [1, 4, 'depthwise'])
@torch.no_grad()
def test_branches_of_a_slim_network_are_merged(groups, monkeypatch, tmp_path):
    monkeypatch.setattr(_Merged, 'groups', 1 if groups == 1 else 4)

    def build():
        model = _Merged()
        if groups == 'depthwise':
            model.blocks[1] = _Branches(8, 8, 8)
        return model.eval()

    model = build()
    found = find_groups(model, run, images=2)
    masked_is_slim(model, found, run, cut_model)
    with torch.enable_grad():
        slim, structure = prune(model, found)
    for block in slim.blocks:
        layer = block.large[0]
        assert block.in_channels == layer.in_channels
        assert block.out_channels == layer.out_channels
        assert block.groups == layer.groups
    structure.save(tmp_path / 'structure.json')
    fresh = build()
    Structure.load(tmp_path / 'structure.json').apply(fresh)
    assert numbers(fresh) == numbers(slim)
    before = outputs(slim, run)
    for block in slim.blocks:
        block.merge()
    assert worst_difference(before, outputs(slim, run)) < 1e-5


class _Scaled(_Merged):
    """Its second number of a width is read, for something else."""

    def __init__(self):
        super().__init__()
        self.blocks[1].hidden_dim = self.blocks[1].channels = 8

    def forward(self, x):
        x = self.blocks(x) / self.blocks[1].channels ** 0.5
        return self.head(x)


def test_numbers_that_are_read_stay():
    told = []
    groups = find_groups(_Scaled().eval(), run, images=2, log=told.append)
    assert 'blocks.1.in_channels' in widths(groups)
    assert 'blocks.1.channels' not in widths(groups)
    assert any('blocks.1.channels' in stage for stage in told)


class _Ambiguous(Net):
    """As many channels in the middle as at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 8)
        self.head = nn.Conv2d(8, 4, 1)
        self.body = nn.Sequential(self.a, nn.ReLU(), self.b)
        self.channels = 8

    def forward(self, x):
        return self.head(self.body(x))


def test_numbers_that_may_count_either_stay():
    told = []
    groups = find_groups(_Ambiguous().eval(), run, images=2, log=told.append)
    assert not widths(groups)
    assert any('channels' in stage for stage in told)


class _Between(Net):
    """Its number counts channels between blocks that are not layers."""

    def __init__(self):
        super().__init__()
        self.a = nn.ModuleDict(dict(inner=nn.Sequential(conv(3, 8))))
        self.b = _Branches(8, 6)
        self.head = conv(6, 5)
        self.in_channels = 8

    def forward(self, x):
        return self.head(self.b(self.a['inner'](x)))


def test_numbers_that_count_channels_inside_blocks_follow():
    groups = find_groups(_Between().eval(), run, images=2)
    assert {'in_channels', 'b.in_channels'} <= widths(groups)


class _WithNumber(Net):
    """Puts out a single number, as losses are, that is one of a channel."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 5)
        self.embed_dims = 8

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        return x, x[0, 0, 0, 0]


def test_modules_with_widths_may_put_out_single_numbers():
    groups = find_groups(_WithNumber().eval(), run, images=2)
    assert 'embed_dims' in widths(groups)
