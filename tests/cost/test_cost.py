"""Cost: the paper's integers, and brute force."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from mmengine.analysis import ActivationAnalyzer, FlopAnalyzer
from mmengine.config import Config
from nets import NETS, Chain, GroupedConv, InvertedResidual, Net, conv, run
from nets_detection import DETECTION_NETS
from nets_kernels import KERNEL_NETS, Standardised
from oracles import choose_units, count_by_hooks, kept
from stack import CLASSIFICATION
from torch import nn
from torch.nn import functional as F  # noqa: N812

from mmgfp.cost.model import METRICS, CostModel, count_cost, record_calls
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import cost_runner, demo_data, demo_runner
from mmgfp.libraries.models import build_model
from mmgfp.slimming.surgery import cut_model
from mmgfp.tracing.finder import find_groups

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


ALL = {**NETS, **KERNEL_NETS}
# hooks see modules only
BY_HOOKS = sorted(set(ALL) - {'FunctionalWeight'})


@pytest.mark.parametrize('name', BY_HOOKS)
def test_small_nets(name):
    model = ALL[name]().eval()
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


# -- kernels that are no parameters ------------------------------------------

PIXELS = 16 * 16


class Sized(Net):
    """A layer with flops and acts that are known, by name of the row."""

    rows: ClassVar[dict[str, tuple[int, int]]]
    left_out: ClassVar[int] = 0


class Experts(Sized):
    """The input says how kernels are mixed."""

    rows: ClassVar = {
        'route': (3 * 4, 4),
        'kernels': (4 * 8 * 3 * 9, 8 * 3 * 9),
        'the network itself (computed kernels)': (
            PIXELS * 8 * 3 * 9,
            PIXELS * 8,
        ),
    }

    def __init__(self):
        super().__init__()
        self.kernels = nn.Parameter(torch.rand(4, 8 * 3 * 9))
        self.route = nn.Linear(3, 4)

    def forward(self, x):
        n = len(x)
        mixed = self.route(x.mean((2, 3))).softmax(1) @ self.kernels
        x = x.reshape(1, n * 3, 16, 16)
        kernel = mixed.view(n * 8, 3, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=n).view(n, 8, 16, 16)


class Modulated(Sized):
    """A kernel of its own for each image, scaled by its input."""

    rows: ClassVar = {
        'scale': (3 * 3, 3),
        'kernel': (PIXELS * 8 * 3 * 9, PIXELS * 8),
    }

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.rand(8, 3, 3, 3))
        self.scale = nn.Linear(3, 3)

    def forward(self, x):
        n = len(x)
        scale = self.scale(x.mean((2, 3))).view(n, 1, 3, 1, 1)
        kernel = (self.kernel * scale).view(n * 8, 3, 3, 3)
        x = x.reshape(1, n * 3, 16, 16)
        return F.conv2d(x, kernel, padding=1, groups=n).view(n, 8, 16, 16)


class Projected(Sized):
    """Distributions, whose means a buffer gives, in a module of its own."""

    rows: ClassVar = {
        'conv': (PIXELS * 3 * 8 * 9, PIXELS * 8),
        'head': (2 * PIXELS * 8, 2 * PIXELS),
    }

    def __init__(self):
        super().__init__()
        self.conv = conv(3, 8)
        self.head = nn.Module()
        self.head.register_buffer('vector', torch.arange(8.0))

    def forward(self, x):
        x = self.conv(x).flatten(2).mT.softmax(-1)
        vector = self.head.vector
        return x @ vector, F.linear(x, vector[None])


class LowRank(Sized):
    """A product of two parameters is added to a third, or used as it is."""

    rows: ClassVar = {
        'weight': (PIXELS * 8 * 3, PIXELS * 8),
        'down': (2 * 8 * 2 * 3, 2 * 8 * 3),
        'the network itself (computed kernels)': (PIXELS * 24, PIXELS * 8),
    }

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 3))
        self.up = nn.Parameter(torch.rand(8, 2))
        self.down = nn.Parameter(torch.rand(2, 3))

    def forward(self, x):
        x = x.flatten(2).mT
        added = F.linear(x, self.weight + self.up @ self.down)
        return added, F.linear(x, self.up @ self.down)


class Views(Sized):
    """Views and transposes, on either side of a product."""

    rows: ClassVar = {
        'left': (PIXELS * 8 * 3, PIXELS * 8),
        'einsum': (PIXELS * 8 * 3, PIXELS * 8),
        'conv': (PIXELS * 8 * 3, PIXELS * 8),
        'parts': (PIXELS * (2 * 3 + 2 * 4 * 3), PIXELS * (2 + 2 * 4)),
    }

    def __init__(self):
        super().__init__()
        self.left = nn.Parameter(torch.rand(8, 3))
        self.einsum = nn.Parameter(torch.rand(8, 3))
        self.conv = nn.Conv1d(3, 8, 1, bias=False)
        self.parts = nn.Parameter(torch.rand(6, 3))

    def forward(self, x):
        rows = x.flatten(2).mT
        small, large = self.parts.split([2, 4])
        return (
            self.left @ x.flatten(2),
            torch.einsum('nchw,oc->nohw', x, self.einsum),
            F.linear(rows, self.conv.weight.squeeze(-1)),
            F.linear(rows, small),
            F.linear(rows, large),
            F.linear(rows, large * 2),
        )


class SelfAttention(Sized):
    """In eval mode torch runs all of it as one operation."""

    rows: ClassVar = {
        'first': (PIXELS * 3 * 8, PIXELS * 8),
        'attention': (PIXELS * 8 * 24, PIXELS * 24),
        'attention.out_proj': (PIXELS * 8 * 8, PIXELS * 8),
    }
    left_out: ClassVar = 2 * PIXELS * PIXELS * 8

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.first(x.flatten(2).mT)
        return self.attention(*self.given(x))[0]

    def given(self, x):
        return x, x, x


class CrossAttention(SelfAttention):
    """Query, key and value have parts of one weight."""

    def given(self, x):
        return x + 1, x + 2, x


class Explicit(SelfAttention):
    """Written out."""

    def forward(self, x):
        x = self.first(x.flatten(2).mT)
        weights = self.attention.in_proj_weight
        q, k, v = F.linear(x, weights).chunk(3, -1)
        return self.attention.out_proj((q @ k.mT).softmax(-1) @ v)


class Recurrent(Sized):
    rows: ClassVar = {
        'rnn': (PIXELS * 2 * 20 * (3 + 5), PIXELS * 2 * 2 * 20),
    }

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 5, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.rnn(x.flatten(2).mT)[0]


class Bilinear(Sized):
    rows: ClassVar = {'pair': (PIXELS * 4 * 3 * 3, PIXELS * 4)}

    def __init__(self):
        super().__init__()
        self.pair = nn.Bilinear(3, 3, 4)

    def forward(self, x):
        x = x.flatten(2).mT
        return self.pair(x, x + 1)


class Inference(Sized):
    """In this mode layers reach the dispatcher in one piece."""

    rows: ClassVar = {
        'conv': (PIXELS * 3 * 8 * 9, PIXELS * 8),
        'linear': (8 * 5, 5),
    }

    def __init__(self):
        super().__init__()
        self.conv = conv(3, 8)
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        with torch.inference_mode():
            return self.linear(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize('images', [1, 2])
@pytest.mark.parametrize(
    'net',
    [
        *(Experts, Modulated, Projected, LowRank, Views, SelfAttention),
        *(CrossAttention, Explicit, Recurrent, Bilinear),
        Inference,
    ],
)
def test_every_kernel_counts(net, images, recwarn):
    model = net().eval()
    calls = counted(model, images)
    found = count_cost(model, calls)
    rows = {
        name: (row['flops'], row['acts'])
        for name, row in found.items()
        if row['flops'] and name
    }
    assert rows == net.rows
    assert calls.left_out == net.left_out
    total = CostModel(model, [], calls).total()
    assert total == found['']
    assert not [w for w in recwarn if 'flop_counter' in str(w.message)]


def test_shares_without_a_weight():
    calls = counted(LowRank())
    flops = count_cost(LowRank(), calls)['']['flops']
    assert calls.unattributed(flops) == dict(
        computed_kernels=PIXELS * 24 / flops, products_of_activations=0
    )
    calls = counted(SelfAttention())
    flops = count_cost(SelfAttention(), calls)['']['flops']
    ratios = calls.unattributed(flops)
    whole = flops + SelfAttention.left_out
    assert ratios['products_of_activations'] == pytest.approx(
        SelfAttention.left_out / whole
    )
    assert ratios['computed_kernels'] == 0


def test_compiled_convolutions_with_computed_kernels():
    """One from a weight of the same shape, one from two matrices."""
    from torchvision.ops import deform_conv2d

    class Deformed(Standardised):
        def forward(self, x):
            offset = x.new_zeros(len(x), 18, 16, 16)
            made = (self.up @ self.down).view(8, 3, 3, 3)
            known = deform_conv2d(x, offset, self.kernel(), padding=1)
            return known + deform_conv2d(x, offset, made, padding=1)

    class Model(Net):
        def __init__(self):
            super().__init__()
            self.layer = Deformed(3, 8, 3, bias=False)
            self.layer.up = nn.Parameter(torch.rand(8, 2))
            self.layer.down = nn.Parameter(torch.rand(2, 27))

        def forward(self, x):
            return self.layer(x)

    model = Model()
    found = count_cost(model, counted(model))
    one = dict(flops=PIXELS * 8 * 27, acts=PIXELS * 8)
    assert found['layer (computed kernels)'] == dict(one, params=0)
    making = 8 * 2 * 27
    assert found['layer']['flops'] == one['flops'] + making


def test_what_torch_counts_besides_is_told(monkeypatch):
    pytest.importorskip('torch.utils.flop_counter')  # torch 2.0 lacks it
    monkeypatch.setattr('mmgfp.cost.model.PRODUCTS', {})
    with pytest.warns(UserWarning, match='flop_counter counts') as caught:
        counted(SelfAttention())
    assert any('0 multiply' in str(w.message) for w in caught)


def test_a_network_that_asks_for_gradients_is_counted():
    class Model(Chain):
        def forward(self, x):
            with torch.enable_grad():
                return super().forward(x * self.conv1.weight.sum())

    model = Model()
    found = count_cost(model, counted(model))
    assert found == count_cost(Chain(), counted(Chain()))


def test_an_unknown_operation_with_a_weight_is_told():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, source, kernel):
            array = source.numpy().sum(1, keepdims=True)
            return torch.from_numpy(array * kernel.numpy().sum())

    class Model(Chain):
        def forward(self, x):
            return Opaque.apply(x, self.conv1.weight)

    with pytest.warns(UserWarning, match='Opaque in the network itself'):
        counted(Model())


# -- as a function of what is left -------------------------------------------


@cache
def modelled(name: str):
    torch.manual_seed(0)
    model = ALL[name]().eval()
    groups = [g for g in find_groups(model, run, images=2) if not g.frozen]
    return model, groups, counted(model)


def after_removal(model, groups, removal) -> dict[str, int]:
    slim = copy.deepcopy(model)
    cut_model(slim, kept(slim, groups, removal))
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
    assert cost.after_cut(units) == pytest.approx(slim)
    assert cost.total() == whole  # only asked
    cost.cut(units)
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
    cost.cut([len(removal[g.name]) for g in groups])
    cut_model(model, kept(model, groups, removal))
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
    cost.cut(removed)
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
    cut_model(slim, kept(slim, [found], removal))
    assert count_cost(slim, counted(slim))[layer] == {
        metric: n // 2 for metric, n in whole.items()
    }
    steps = []
    cost = CostModel(model, [found], calls)
    for _ in range(3):
        before = cost.total()
        cost.cut(np.array([1]))
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
