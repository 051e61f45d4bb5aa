"""Channel groups of small nets and of the networks of the paper."""

from __future__ import annotations

import copy
import random
from functools import cache

import numpy as np
import pytest
import torch
from nets import NETS as PLAIN_NETS
from nets import Net, run
from nets_detection import DETECTION_NETS
from nets_kernels import KERNEL_NETS
from oracles import choose_units, kept, layout, masked_is_slim, member
from shortcuts import remember
from stack import CLASSIFICATION
from torch import nn

from mmgfp.groups import ChannelGroup
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import demo_runner
from mmgfp.libraries.models import build_model
from mmgfp.slimming.surgery import cut_model
from mmgfp.tracing.finder import find_groups
from mmgfp.utils.trees import tree_leaves

NETS: dict[str, type[Net]] = {
    **PLAIN_NETS,
    **DETECTION_NETS,
    **KERNEL_NETS,
}
EVERY_NET = pytest.mark.parametrize('name', NETS)


def by_producer(groups, layer: str) -> list[ChannelGroup]:
    return [g for g in groups if layer in g.producers]


# -- small nets --------------------------------------------------------------


@cache
def found(name: str) -> tuple[nn.Module, list[ChannelGroup]]:
    torch.manual_seed(0)
    model = NETS[name]().eval()
    return model, find_groups(model, run, images=2)


@EVERY_NET
def test_groups(name):
    _, groups = found(name)
    assert layout(groups) == NETS[name].prunable
    for layer, reason in NETS[name].frozen.items():
        reasons = [g.frozen for g in by_producer(groups, layer)]
        assert any(r and reason in r for r in reasons), (layer, reasons)


@EVERY_NET
def test_masked_is_slim(name):
    model, groups = found(name)
    if not NETS[name].prunable:
        pytest.skip('nothing can be pruned')
    for seed in (1, 2):
        masked_is_slim(model, groups, run, cut_model, seed)


# One overwrites what its backward needs, older torch releases cannot
# differentiate the operation of the other.
@pytest.mark.parametrize(
    'name', sorted(set(NETS) - {'InPlace', 'ShuffleOperation'})
)
def test_slim_nets_train(name):
    model, groups = found(name)
    slim = copy.deepcopy(model).train()
    cut_model(slim, kept(slim, groups, choose_units(groups)))
    outputs = [t for t in tree_leaves(run(slim)) if torch.is_tensor(t)]
    sum(t.square().mean() for t in outputs).backward()
    gradients = {n: p.grad for n, p in slim.named_parameters()}
    tensors = [member.tensor for member in groups[0].members]
    first = next(name for name in tensors if name in gradients)
    assert gradients[first] is not None
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)


@EVERY_NET
def test_finding_changes_nothing(name):
    torch.manual_seed(0)
    model = NETS[name]().train()
    next(iter(model.children())).eval()
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    find_groups(model, run, images=2)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(p.grad is None for p in model.parameters())


ORDERED = (nn.Sequential, nn.ModuleList)


def shuffle_registration(module: nn.Module, order: random.Random) -> None:
    """Register parameters, buffers and children in another order."""
    for table in (module._modules, module._parameters, module._buffers):
        if table is module._modules and isinstance(module, ORDERED):
            continue  # the order is what they do
        items = list(table.items())
        order.shuffle(items)
        table.clear()
        table.update(items)
    for child in module.children():
        shuffle_registration(child, order)


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize(
    'name', sorted(set(NETS) - {'TiedProducers'})
)  # of tied weights, the first one registered gives the name
def test_order_of_registration_does_not_matter(name, seed):
    model, groups = found(name)
    model = copy.deepcopy(model)
    shuffle_registration(model, random.Random(seed))
    again = find_groups(model, run, images=2)
    assert describe(again) == describe(groups)


def describe(groups) -> list:
    """Names, members and taps in order; what logs and files depend on."""
    return [
        (
            g.name,
            g.size,
            g.frozen,
            {(m.tensor, m.axis, m.role, str(m.index)) for m in g.members},
            [(t.module, str(t.position), str(t.unit)) for t in g.taps],
        )
        for g in groups
        if g.producers
    ]


# -- the places of units -----------------------------------------------------


def test_positions_of_a_concatenation():
    _, groups = found('Concat')
    (a,) = by_producer(groups, 'a')
    (b,) = by_producer(groups, 'b')
    assert member(b, 'both.weight', 1).index.tolist() == [
        [i] for i in range(6)
    ]
    assert member(a, 'both.weight', 1).index.tolist() == [
        [i] for i in range(6, 10)
    ]
    assert member(a, 'bn.running_var', 0).index.tolist() == [
        [i] for i in range(6, 10)
    ]
    assert member(a, 'only.weight', 1).index.ravel().tolist() == [0, 1, 2, 3]
    (tap,) = (t for t in a.taps if t.module == 'both')
    assert tap.unit.tolist() == [-1] * 6 + [0, 1, 2, 3]
    assert tap.position.tolist() == list(range(10))


def test_positions_behind_a_flatten():
    _, groups = found('FlattenedLinear')
    (group,) = by_producer(groups, 'conv')
    rows = member(group, 'fc1.weight', 1).index
    assert rows.tolist() == np.arange(6 * 49).reshape(6, 49).tolist()
    (tap,) = group.taps
    assert tap.unit.tolist() == np.repeat(np.arange(6), 49).tolist()


def test_positions_of_a_grouped_convolution():
    _, groups = found('GroupedConv')
    (group,) = by_producer(groups, 'grouped')
    weight = member(group, 'grouped.weight', 0)
    assert weight.role == 'grouped'
    assert weight.index.tolist() == np.arange(12).reshape(4, 3).tolist()
    assert member(group, 'conv1.weight', 0).index.tolist() == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
    (tap,) = (t for t in group.taps if t.module == 'grouped')
    assert tap.unit.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_positions_of_two_shuffles():
    """By the letters of the net's docstring."""
    _, groups = found('ShuffleV2')
    (group,) = by_producer(groups, 'stem')
    assert member(group, 'stem.weight', 0).index.tolist() == [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
    ]
    assert member(group, 'second.conv3.weight', 0).index.tolist() == [
        [0, 1],
        [2, 3],
    ]


def test_positions_of_a_zero_padded_shortcut():
    _, groups = found('ZeroPadded')
    (group,) = by_producer(groups, 'stem')
    assert member(group, 'conv2.weight', 0).index.ravel().tolist() == list(
        range(4, 12)
    )


def test_members_of_norms_and_scales():
    """Per-channel tensors of every kind lose slices too."""
    _, groups = found('Scales')
    (group,) = by_producer(groups, 'stem')
    affine = {(m.tensor, m.axis) for m in group.members if m.role == 'affine'}
    assert affine == {
        ('stem.bias', 0),
        ('mix.bias', 0),
        ('gamma', 0),
        ('table', 1),
    }
    _, groups = found('Chain')
    (group,) = by_producer(groups, 'conv1')
    assert {m.tensor for m in group.members} == {
        'conv1.weight',
        'bn.weight',
        'bn.bias',
        'bn.running_mean',
        'bn.running_var',
        'conv2.weight',
    }


def test_internal_groups():
    """One layer makes, one layer reads; a depthwise one may be between."""
    internal = {
        name: {g.name for g in found(name)[1] if not g.frozen and g.internal}
        for name in ('Residual', 'InvertedResidual', 'Concat')
    }
    assert internal == {
        'Residual': {'a.conv1', 'b.conv1'},
        'InvertedResidual': {'expand'},
        'Concat': {'b', 'only'},
    }


# -- the networks of the paper -----------------------------------------------


def unfrozen(config):
    """Let all stages of a backbone train, as the paper does."""
    if 'frozen_stages' in config.model.backbone:
        config.model.backbone.frozen_stages = -1
    return config


@remember
def real(name: str, side: int) -> tuple[nn.Module, list[ChannelGroup]]:
    model = build_model(unfrozen(load_config(name)))
    return model, find_groups(model, demo_runner((side, side), 2), images=2)


RESNET = f'{CLASSIFICATION}::resnet/resnet50_8xb32_in1k'
RESNEXT = f'{CLASSIFICATION}::resnext/resnext50-32x4d_8xb32_in1k'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'


def names(prefix: str, *layers: str) -> frozenset[str]:
    return frozenset(f'{prefix}{layer}' for layer in layers)


def consumers_of_stages(last: set[str] = frozenset()) -> set[frozenset[str]]:
    """Section 3.2 of the paper: layers that share an input mask."""
    stages = [
        {'layer1.0.conv1', 'layer1.0.downsample.0'},
        {'layer1.1.conv1', 'layer1.2.conv1'}
        | {'layer2.0.conv1', 'layer2.0.downsample.0'},
        {f'layer2.{i}.conv1' for i in (1, 2, 3)}
        | {'layer3.0.conv1', 'layer3.0.downsample.0'},
        {f'layer3.{i}.conv1' for i in (1, 2, 3, 4, 5)}
        | {'layer4.0.conv1', 'layer4.0.downsample.0'},
        {'layer4.1.conv1', 'layer4.2.conv1'},
    ]
    result = [{f'backbone.{layer}' for layer in stage} for stage in stages]
    result[-1] |= last
    return {frozenset(stage) for stage in result}


BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}


def internal_layers(*convs: str) -> set[frozenset[str]]:
    return {
        frozenset({f'backbone.layer{stage}.{block}.{conv}'})
        for stage, blocks in BLOCKS.items()
        for block in range(blocks)
        for conv in convs
    }


def test_resnet50():
    _, groups = real(RESNET, 64)
    prunable = [g for g in groups if not g.frozen]
    assert {frozenset(g.consumers) for g in prunable} == (
        consumers_of_stages({'head.fc'}) | internal_layers('conv2', 'conv3')
    )
    internal = sum(g.size for g in prunable if g.internal)
    coupled = [g.size for g in prunable if not g.internal]
    assert internal == 7552
    assert coupled == [64, 256, 512, 1024, 2048]
    assert sum(g.size for g in prunable) == 11456
    assert all(g.width == 1 for g in prunable)


def test_resnext50():
    """22 groups in the paper's sense: sets of layers that share an input.

    The paper counts the stem's input, the image, as one of them; it cannot be
    pruned. The grouped convolution of a block shares its units with the layer
    behind: 16 of those, the stem's output and the outputs of four stages.
    """
    _, groups = real(RESNEXT, 64)
    prunable = [g for g in groups if not g.frozen]
    assert len(prunable) == 21
    consumers = {frozenset(g.consumers) for g in groups if g.consumers}
    assert len(consumers) == 22
    assert frozenset({'backbone.conv1'}) in consumers
    blocks = {
        frozenset({f'{prefix}.conv2', f'{prefix}.conv3'})
        for stage, blocks in BLOCKS.items()
        for prefix in (f'backbone.layer{stage}.{i}' for i in range(blocks))
    }
    assert consumers == (
        consumers_of_stages({'head.fc'})
        | blocks
        | {frozenset({'backbone.conv1'})}
    )
    grouped = [g for g in prunable if len(g.consumers) == 2 and g.internal]
    assert len(grouped) == 16
    assert {g.size for g in grouped} == {32}
    assert {g.width for g in grouped} == {4, 8, 16, 32}


@cache
def retinanet(add_extra_convs: str):
    config = unfrozen(load_config(RETINANET))
    config.model.neck.add_extra_convs = add_extra_convs
    model = build_model(config)
    return model, find_groups(model, demo_runner((64, 64), 2), images=2)


def retinanet_consumers(groups) -> set[frozenset[str]]:
    return {frozenset(g.consumers) for g in groups if not g.frozen}


def pyramid(*layers: str) -> frozenset[str]:
    long = {
        'fpn': 'neck.fpn_convs',
        'lateral': 'neck.lateral_convs',
        'cls': 'bbox_head.cls_convs',
        'reg': 'bbox_head.reg_convs',
    }
    return frozenset(
        f'{long[layer[:-1]]}.{layer[-1]}.conv' for layer in layers
    )


HEADS = {
    *(pyramid(f'{branch}{i}') for branch in ('cls', 'reg') for i in (1, 2, 3)),
    frozenset({'bbox_head.retina_cls'}),
    frozenset({'bbox_head.retina_reg'}),
}


def with_laterals(*extra: str) -> set[frozenset[str]]:
    """The stages of ResNet-50 with the laterals of the neck."""
    joining = {
        'backbone.layer3.0.conv1': pyramid('lateral0'),
        'backbone.layer4.0.conv1': pyramid('lateral1'),
        'backbone.layer4.1.conv1': pyramid('lateral2', *extra),
    }
    return {
        stage.union(*(joining[layer] for layer in stage & joining.keys()))
        for stage in consumers_of_stages()
    }


def test_retinanet_with_p6_from_c5():
    _, groups = retinanet('on_input')
    assert retinanet_consumers(groups) == {
        *with_laterals('fpn3'),
        *internal_layers('conv2', 'conv3'),
        pyramid('fpn0', 'fpn1', 'fpn2'),
        pyramid('cls0', 'reg0', 'fpn4'),
        *HEADS,
    }
    (shared,) = (
        g for g in groups if 'bbox_head.cls_convs.0.conv' in g.consumers
    )
    assert set(shared.producers) == pyramid(
        'fpn0', 'fpn1', 'fpn2', 'fpn3', 'fpn4'
    )


def test_retinanet_with_p6_from_p5():
    _, groups = retinanet('on_output')
    assert retinanet_consumers(groups) == {
        *with_laterals(),
        *internal_layers('conv2', 'conv3'),
        pyramid('fpn0', 'fpn1', 'fpn2'),
        pyramid('cls0', 'reg0', 'fpn3', 'fpn4'),
        *HEADS,
    }
    # the paper's 48 groups with the image as one
    assert len({frozenset(g.consumers) for g in groups if g.consumers}) == 48


# Prunable groups, by hand. Detectors: stem, 32 layers inside blocks, 4 stages,
# laterals, outputs of the neck, 8 layers of the head. MobileNetV2: the stem
# with its depthwise layer, 16 expansions, 7 stages, the last convolution.
# RegNetX-400MF: stem, 22 blocks, 4 stages.
REAL = {
    'retinanet': (RETINANET, 128, 47),
    'fcos': ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 64, 47),
    'atss': ('mmdet::atss/atss_r50_fpn_1x_coco', 64, 47),
    'fsaf': ('mmdet::fsaf/fsaf_r50_fpn_1x_coco', 64, 47),
    'paa': ('mmdet::paa/paa_r50_fpn_1x_coco', 64, 47),
    'resnet50': (RESNET, 64, 37),
    'resnext50': (RESNEXT, 64, 21),
    'mobilenetv2': (
        f'{CLASSIFICATION}::mobilenet_v2/mobilenet-v2_8xb32_in1k',
        *(64, 25),
    ),
    'regnetx': (
        f'{CLASSIFICATION}::regnet/regnetx-400mf_8xb128_in1k',
        *(64, 27),
    ),
}


def test_fcos_loses_whole_norm_groups():
    _, groups = real(*REAL['fcos'][:2])
    for branch in ('cls', 'reg'):
        for i in range(4):
            layer = f'bbox_head.{branch}_convs.{i}'
            (group,) = by_producer(groups, f'{layer}.conv')
            assert (group.size, group.width) == (32, 8)
            norm = member(group, f'{layer}.gn.weight', 0)
            assert norm.index.tolist() == (
                np.arange(256).reshape(32, 8).tolist()
            )


@pytest.mark.parametrize('name', REAL)
def test_masked_is_slim_on_real_networks(name):
    config, side, count = REAL[name]
    model, groups = real(config, side)
    assert sum(not g.frozen for g in groups) == count
    masked_is_slim(
        model, groups, demo_runner((side, side), 1), cut_model, seed=3
    )
