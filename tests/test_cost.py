"""Cost: the paper's integers, and brute force."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from mmengine.analysis import ActivationAnalyzer, FlopAnalyzer
from mmengine.config import Config
from nets import NETS, Chain, GroupedConv, InvertedResidual, Net, conv, run
from nets_detection import DETECTION_NETS
from oracles import choose_units, count_by_hooks, kept
from stack import CLASSIFICATION
from torch import nn

from mmgfp.adapt import build_model
from mmgfp.config import load_config
from mmgfp.cost import METRICS, CostModel, count_cost, record_calls
from mmgfp.demo import cost_runner, demo_data, demo_runner
from mmgfp.finder import find_groups
from mmgfp.surgery import slice_model

COCO, IMAGENET = (800, 1280), (224, 224)


def cost_of(config: Config, shape: tuple[int, int]) -> dict[str, int]:
    """Total cost, counted on the meta device: shapes without numbers."""
    model = build_model(config).to('meta')
    demo = demo_runner(shape)
    return count_cost(model, record_calls(model, lambda: demo(model)))['']


# -- the networks of the paper -----------------------------------------------


def imagenet(name: str, **backbone) -> Config:
    config = load_config(f'{CLASSIFICATION}::{name}')
    config.model.backbone.update(backbone)
    return config


def mobilenet(width: float, last: int) -> Config:
    name = 'mobilenet_v2/mobilenet-v2_8xb32_in1k'
    config = imagenet(name, widen_factor=width)
    config.model.head.in_channels = last
    return config


def coco(name: str) -> Config:
    """Without norms in the head, as in the paper."""
    config = load_config(f'mmdet::{name}')
    if config.model.type in ('ATSS', 'PAA'):
        config.model.bbox_head.norm_cfg = None
    return config


def regnet(name: str) -> Config:
    return imagenet(f'regnet/regnetx-{name}')


def regnet_200m() -> Config:
    """The one that MMPretrain has no config of; numbers from its paper."""
    arch = dict(w0=24, wa=36.44, wm=2.49, depth=13, group_w=8, bot_mul=1.0)
    config = imagenet('regnet/regnetx-400mf_8xb128_in1k', arch=arch)
    config.model.head.in_channels = 368
    return config


RESNET50 = 'resnet/resnet50_8xb32_in1k'
RESNEXT50 = 'resnext/resnext50-32x4d_8xb32_in1k'
RETINANET = 'retinanet/retinanet_r50_fpn_1x_coco'

# One learnable factor per level, which the integers leave out.
SCALES = 5

# flops, params, outputs of convolutions, outputs of linear layers
EXACT = {
    'ResNet-50': (
        lambda: imagenet(RESNET50),
        *(4089184256, 25557032, 11113984, 1000),
    ),
    'ResNeXt-50': (
        lambda: imagenet(RESNEXT50),
        *(4230479872, 25028904, 14400512, 1000),
    ),
    'MobileNetV2 2.0x': (
        lambda: mobilenet(2.0, 2560),
        *(1137428224, 11258088, 13356224, 1000),
    ),
    'MobileNetV2 1.0x': (
        lambda: mobilenet(1.0, 1280),
        *(300774272, 3504872, 6678112, 1000),
    ),
    'MobileNetV2 0.7x': (
        lambda: mobilenet(0.7, 1280),
        *(173642400, 2481384, 5245744, 1000),
    ),
    'RegNetX-3.2G': (
        lambda: regnet('3.2gf_8xb64_in1k'),
        *(3176621952, 15296552, 11366432, 1000),
    ),
    'RegNetX-0.8G': (
        lambda: regnet('800mf_8xb128_in1k'),
        *(799699712, 7259656, 5147744, 1000),
    ),
    'RegNetX-0.4G': (
        lambda: regnet('400mf_8xb128_in1k'),
        *(397677568, 5157512, 3142272, 1000),
    ),
    'RetinaNet': (
        lambda: coco(RETINANET),
        *(238536058880, 37968692, 297461800, 0),
    ),
    'ATSS': (
        lambda: coco('atss/atss_r50_fpn_1x_coco'),
        *(204486740480, 32293269 + SCALES, 283149370, 0),
    ),
    'PAA': (
        lambda: coco('paa/paa_r50_fpn_1x_coco'),
        *(204486740480, 32293269 + SCALES, 283149370, 0),
    ),
}


@pytest.mark.parametrize('name', EXACT)
def test_integers(name):
    config, flops, params, convolutions, linears = EXACT[name]
    shape = IMAGENET if linears else COCO
    assert cost_of(config(), shape) == dict(
        flops=flops, params=params, acts=convolutions + linears
    )


# As printed: 1e9 flops, 1e6 params, 1e6 acts. The last digit is sometimes
# cut, sometimes rounded.
PRINTED = {
    'ResNet-101': (
        lambda: imagenet('resnet/resnet101_8xb32_in1k'),
        *('7.801', '44.54', '16.23'),
    ),
    'MobileNetV2 1.4x': (
        lambda: mobilenet(1.4, 1792),
        *('0.58', '6.11', '9.57'),
    ),
    'MobileNetV2 0.5x': (
        lambda: mobilenet(0.5, 1280),
        *('0.10', '1.97', '3.64'),
    ),
    'RegNetX-1.6G': (
        lambda: regnet('1.6gf_8xb128_in1k'),
        *('1.602', '9.19', '7.93'),
    ),
    'RegNetX-0.2G': (regnet_200m, '0.199', '2.68', '2.16'),
    'FSAF': (
        lambda: coco('fsaf/fsaf_r50_fpn_1x_coco'),
        *('205.5', '36.41', '283.1'),
    ),
}


@pytest.mark.parametrize('name', PRINTED)
def test_printed_numbers(name):
    config, *printed = PRINTED[name]
    cost = cost_of(config(), COCO if name == 'FSAF' else IMAGENET)
    for metric, unit, text in zip(METRICS, (1e9, 1e6, 1e6), printed):
        last_digit = 10.0 ** -len(text.partition('.')[2])
        difference = abs(cost[metric] / unit - float(text))
        assert difference < 1.5 * last_digit, (metric, cost[metric])


def test_faster_rcnn(monkeypatch):
    """The paper prints 199.3, 41.75 and 294.6: 512 RoIs are counted."""
    from mmdet.models import SingleRoIExtractor

    def shapes_only(self, features, rois):
        size = self.roi_layers[0].output_size
        return features[0].new_empty(len(rois), self.out_channels, *size)

    # the compiled operation knows no meta device
    monkeypatch.setattr(SingleRoIExtractor, 'forward', shapes_only)
    model = build_model(coco('faster_rcnn/faster-rcnn_r50_fpn_1x_coco'))
    demo = cost_runner(COCO)
    calls = record_calls(model.to('meta'), lambda: demo(model))
    assert count_cost(model, calls)[''] == dict(
        flops=199349875712, params=41753056, acts=293441460 + 1253888
    )


def test_real_numbers_cost_what_shapes_cost():
    """The meta device is no special case: one forward with numbers."""
    config = mobilenet(0.5, 1280)
    model = build_model(config)
    demo = demo_runner((64, 64))
    with_numbers = count_cost(model, record_calls(model, lambda: demo(model)))
    assert with_numbers[''] == cost_of(config, (64, 64))
    assert with_numbers[''] == count_by_hooks(model, demo)


@pytest.mark.parametrize(
    ('name', 'side'),
    [(f'{CLASSIFICATION}::{RESNEXT50}', 64), (f'mmdet::{RETINANET}', 64)],
)
def test_mmengine_counts_the_same(name, side):
    """Its analysers trace the network with torch.jit."""
    model = build_model(load_config(name))
    data = demo_data(model, (side, side))
    demo = demo_runner((side, side))
    cost = count_cost(model, record_calls(model, lambda: demo(model)))['']
    for metric, analyzer in (
        ('flops', FlopAnalyzer),
        ('acts', ActivationAnalyzer),
    ):
        counter = analyzer(model, (data['inputs'],))
        counter.unsupported_ops_warnings(False)
        counter.uncalled_modules_warnings(False)
        counter = counter.by_operator()
        found = sum(counter[kind] for kind in ('conv', 'linear'))
        assert found == cost[metric]


# -- small nets --------------------------------------------------------------


class Products(Net):
    """Linear layers without a module, in both orders of axes."""

    def __init__(self):
        super().__init__()
        self.conv = conv(3, 8)
        self.out_in = nn.Parameter(torch.rand(6, 8))
        self.in_out = nn.Parameter(torch.rand(6, 4))

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return (x @ self.out_in.t()) @ self.in_out


def counted(model, images: int = 2):
    model.eval()
    batch = model.batch(images)
    return record_calls(model, lambda: model(batch), images)


# hooks see modules only
BY_HOOKS = sorted(set(NETS) - {'FunctionalWeight', 'Normalised'})


@pytest.mark.parametrize('name', BY_HOOKS)
def test_small_nets(name):
    model = NETS[name]().eval()
    found = count_cost(model, counted(model))
    assert found[''] == count_by_hooks(model, run, images=2)
    rows = [row for module, row in found.items() if module]
    for metric in METRICS:
        assert sum(row[metric] for row in rows) == found[''][metric]
    # of one image, whatever the batch
    assert count_cost(model, counted(model, images=1)) == found
    assert count_cost(model, counted(model, images=3)) == found


def test_functional_products():
    found = count_cost(Products(), counted(Products()))['']
    assert found == dict(
        flops=3 * 8 * 9 * 256 + 8 * 6 + 6 * 4,
        acts=8 * 256 + 6 + 4,
        params=3 * 8 * 9 + 8 + 8 * 6 + 6 * 4,
    )


def test_functional_weight():
    model = NETS['FunctionalWeight']()
    found = count_cost(model, counted(model))
    assert found['conv2'] == dict(
        flops=8 * 6 * 9 * 256, acts=6 * 256, params=8 * 6 * 9 + 6
    )


@pytest.mark.parametrize(
    ('name', 'outputs', 'inputs'),
    [
        ('Deformable', 6, 8),
        ('DeformableGroups', 12, 2),
        ('Modulated', 6, 8),
        ('TorchDeformable', 12, 2),
    ],
)
def test_compiled_convolutions(name, outputs, inputs):
    """Convolution groups of ``inputs`` channels, 3x3 kernels, 16x16 images."""
    model = DETECTION_NETS[name]().eval()
    row = count_cost(model, counted(model))['dcn']
    assert row['flops'] == outputs * inputs * 9 * 256
    assert row['acts'] == outputs * 256


def test_visible_functions_count_once():
    """An autograd function that calls a convolution that is seen itself."""

    class Convolve(torch.autograd.Function):
        @staticmethod
        def forward(ctx, source, weight):
            return torch.nn.functional.conv2d(source, weight, padding=1)

    class Visible(Chain):
        def forward(self, x):
            return Convolve.apply(x, self.conv1.weight)

    model = Visible()
    row = count_cost(model, counted(model))['conv1']
    assert row['flops'] == 3 * 8 * 9 * 256


# -- as a function of what is left -------------------------------------------


@cache
def modelled(name: str):
    torch.manual_seed(0)
    model = NETS[name]().eval()
    groups = [g for g in find_groups(model, run, images=2) if not g.frozen]
    return model, groups, counted(model)


def after_removal(model, groups, removal) -> dict[str, int]:
    slim = copy.deepcopy(model)
    slice_model(slim, kept(slim, groups, removal))
    return count_by_hooks(slim, run, images=2)


@pytest.mark.parametrize('name', BY_HOOKS)
def test_marginal_is_brute_force(name):
    model, groups, calls = modelled(name)
    cost = CostModel(model, groups, calls)
    whole = count_by_hooks(model, run, images=2)
    assert cost.total() == whole
    for g, found in enumerate(groups):
        slim = after_removal(model, [found], {found.name: [found.size // 2]})
        for metric in METRICS:
            saved = whole[metric] - slim[metric]
            assert cost.marginal(metric)[g] == pytest.approx(saved), metric
            assert saved > 0


@pytest.mark.parametrize('name', BY_HOOKS)
def test_masked_is_recounted(name):
    """After removals the totals and the marginals are those of the rest."""
    model, groups, calls = modelled(name)
    removal = choose_units(groups, share=0.3)
    units = np.array([len(removal[g.name]) for g in groups])
    slim = after_removal(model, groups, removal)

    cost = CostModel(model, groups, calls)
    whole = cost.total()
    assert cost.without(units) == pytest.approx(slim)
    assert cost.total() == whole  # only asked
    cost.remove(units)
    assert cost.total() == pytest.approx(slim)

    for g, found in enumerate(groups):
        left = sorted(set(range(found.size)) - set(removal[found.name]))
        if len(left) < 2:
            continue
        more = {**removal, found.name: [*removal[found.name], left[0]]}
        after = after_removal(model, groups, more)
        for metric in METRICS:
            saved = slim[metric] - after[metric]
            assert cost.marginal(metric)[g] == pytest.approx(saved), metric


@pytest.mark.parametrize(
    ('name', 'side'),
    [
        ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 64),
        (f'{CLASSIFICATION}::regnet/regnetx-400mf_8xb128_in1k', 32),
    ],
)
def test_real_network_recounted(name, side):
    config = load_config(name)
    config.model.backbone.frozen_stages = -1
    model = build_model(config)
    demo = demo_runner((side, side))
    groups = [g for g in find_groups(model, demo) if not g.frozen]
    removal = choose_units(groups)
    cost = CostModel(model, groups, record_calls(model, lambda: demo(model)))
    cost.remove([len(removal[g.name]) for g in groups])
    slice_model(model, kept(model, groups, removal))
    assert cost.total() == pytest.approx(count_by_hooks(model, demo))


def test_marginal_by_the_formulas_of_the_paper():
    """Section 3.3, on a chain of 3x3 convolutions at 16x16."""
    model, groups, calls = modelled('Chain')
    cost = CostModel(model, groups, calls)
    positions = 16 * 16
    first = [g.name for g in groups].index('conv1')
    child = 6 * positions * 9  # conv2 loses an input
    parent = 3 * positions * 9  # conv1 loses an output
    assert cost.marginal('flops')[first] == child + parent
    assert cost.marginal('acts')[first] == positions
    # conv1 kernel, BN scale and shift, conv2 kernels
    assert cost.marginal('params')[first] == 3 * 9 + 2 + 6 * 9
    # the child term counts the outputs that are alive
    removed = np.array([2 if g.name == 'conv2' else 0 for g in groups])
    cost.remove(removed)
    assert cost.marginal('flops')[first] == 4 * positions * 9 + parent
    assert cost.marginal('acts')[first] == positions


@pytest.mark.parametrize(
    ('net', 'layer'),
    [(GroupedConv, 'grouped'), (InvertedResidual, 'depthwise')],
)
def test_grouped_convolutions_shrink_linearly(net, layer):
    """Half of the groups cost half, not a quarter."""
    model, groups, calls = modelled(net.__name__)
    (found,) = (g for g in groups if layer in g.producers)
    whole = count_cost(model, calls)[layer]
    slim = copy.deepcopy(model)
    removal = {found.name: range(found.size // 2)}
    slice_model(slim, kept(slim, [found], removal))
    assert count_cost(slim, counted(slim))[layer] == {
        metric: n // 2 for metric, n in whole.items()
    }
    steps = []
    cost = CostModel(model, [found], calls)
    for _ in range(3):
        before = cost.total()
        cost.remove(np.array([1]))
        steps.append(before['acts'] - cost.total()['acts'])
    assert len(set(steps)) == 1


def test_three_shrinking_axes_are_refused():
    model, groups, calls = modelled('Chain')
    member = groups[0].members[0]
    crowded = replace(
        groups[0],
        members=tuple(replace(member, axis=axis) for axis in range(3)),
    )
    with pytest.raises(ValueError, match='at most two') as error:
        CostModel(model, [crowded], calls)
    assert member.tensor in str(error.value)
    assert 'axes [0, 1, 2]' in str(error.value)


def test_counting_changes_nothing():
    model = Chain().train()
    before = copy.deepcopy(model.state_dict())
    record_calls(model.eval(), lambda: run(model), 2)
    assert all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )
    assert all(p.grad is None for p in model.parameters())
