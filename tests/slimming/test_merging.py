"""Slim blocks of libraries are merged as those of the full network are.

Re-parameterisable blocks are several branches while they train, and one layer
after it: a network that is pruned first, and then merged, computes the same.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from oracles import (
    choose_units,
    kept,
    outputs,
    randomize,
    worst_difference,
)
from processes import ROOT
from pruning import pruner_of
from stack import CLASSIFICATION, require
from torch import nn

from mmgfp.cost.model import record_calls
from mmgfp.libraries.forward import demo_runner
from mmgfp.libraries.models import build_model
from mmgfp.slimming.structure import KEY
from mmgfp.slimming.surgery import cut_model
from mmgfp.tracing.finder import find_groups


@pytest.fixture(autouse=True)
def in_double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def check(
    model: nn.Module,
    run: Callable[[nn.Module], Any],
    merge: Callable[[nn.Module], nn.Module],
) -> None:
    groups = find_groups(model.eval(), run, images=2)
    randomize(model)
    removal = choose_units(groups)
    assert removal, 'nothing to remove'
    cut_model(model, kept(model, groups, removal))
    slim = outputs(model, run)
    merged = merge(copy.deepcopy(model))
    assert len(merged.state_dict()) < len(model.state_dict())
    assert worst_difference(slim, outputs(merged, run)) < 1e-9


# -- MMPretrain --------------------------------------------------------------

BACKBONES: dict[str, dict[str, Any]] = {
    'RepVGG': dict(
        arch=dict(
            num_blocks=[2, 2, 1, 1],
            width_factor=[0.25] * 4,
            group_layer_map={2: 4, 3: 2},
            se_cfg=None,
            stem_channels=16,
        ),
        out=128,
    ),
    'MobileOne': dict(
        arch=dict(
            num_blocks=[1, 2, 1, 1],
            width_factor=[0.25] * 4,
            num_conv_branches=[2, 2, 1, 1],
            num_se_blocks=[0] * 4,
        ),
        out=128,
    ),
    'RepMLPNet': dict(
        arch=dict(channels=[8, 16], depths=[1, 1], sharesets_nums=[1, 4]),
        img_size=32,
        patch_size=4,
        reparam_conv_kernels=(1, 3),
        out_indices=(1,),
        out=16,
    ),
    'RepLKNet': dict(
        arch=dict(
            large_kernel_sizes=[7, 5],
            layers=[1, 1],
            channels=[8, 16],
            small_kernel=3,
            dw_ratio=1.5,
        ),
        strides=(2, 2),
        dilations=(1, 1),
        out_indices=(1,),
        out=16,
    ),
    'RIFormer': dict(
        arch=dict(layers=[1] * 4, embed_dims=[8, 16, 24, 32]), out=32
    ),
    'LeViT': dict(arch='tiny', img_size=32, out_indices=(1,), out=48),
}
TINY_LEVIT = dict(
    embed_dims=[32, 48], num_heads=[2, 3], depths=[1, 1], key_dims=[8, 8]
)


def classifier(name: str) -> dict[str, Any]:
    options = copy.deepcopy(BACKBONES[name])
    head = 'LeViTClsHead' if name == 'LeViT' else 'LinearClsHead'
    return dict(
        default_scope=CLASSIFICATION,
        model=dict(
            type='ImageClassifier',
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type=head, num_classes=4, in_channels=options.pop('out')
            ),
            backbone=dict(type=name, **options),
            data_preprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3),
        ),
    )


def switch_to_deploy(model: nn.Module) -> nn.Module:
    """As the library's tool does; a head, too."""
    for part in (model.backbone, model.head):
        if hasattr(part, 'switch_to_deploy'):
            part.switch_to_deploy()
    return model


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones(name, monkeypatch):
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(CLASSIFICATION)
    backbones = import_module(f'{CLASSIFICATION}.models.backbones')
    if not hasattr(backbones, name):
        pytest.skip(f'this stack has no {name}')
    if name == 'LeViT':  # no other sizes than those of its class
        monkeypatch.setitem(backbones.LeViT.arch_zoo, 'tiny', TINY_LEVIT)
    model = MODELS.build(classifier(name)['model'])
    check(model, demo_runner((32, 32), images=2), switch_to_deploy)


def test_the_documented_use(tmp_path, monkeypatch, capsys):
    """The Python of docs/deploy.md, with a small network of random weights."""
    from mmengine.config import Config

    text = (ROOT / 'docs/deploy.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    (program,) = (block for block in blocks if 'switch_to_deploy' in block)
    config = Config(classifier('RepVGG'))
    model = build_model(config).eval()
    run = demo_runner((32, 32), images=2)
    groups = find_groups(model, run, images=2)
    calls = record_calls(model, lambda: run(model))
    pruner = pruner_of(model, groups, calls)
    pruner.prune(lambda choices: choices == 9)
    structure = pruner.net.structure(input_shape=(32, 32))

    folder = tmp_path / 'work_dirs/prune_repvgg'
    checkpoint = folder / 'flops_0.50_finetune/epoch_100.pth'
    checkpoint.parent.mkdir(parents=True)
    config.dump(folder / 'flops_0.50_finetune.py')
    state = {'state_dict': model.state_dict(), KEY: structure.to_dict()}
    torch.save(state, checkpoint)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert float(capsys.readouterr().out.splitlines()[-1]) < 1e-9


# -- timm --------------------------------------------------------------------

GHOSTS = [
    [[3, 16, 8, 0, 1]],
    [[3, 24, 16, 0, 2]],
    [[5, 36, 16, 0.25, 1]],
]
FASTVIT = dict(embed_dims=(16, 32, 32, 64), layers=(1, 1, 1, 1))
REPVIT = dict(embed_dim=(8, 16), depth=(2, 2))
LEVIT = dict(
    img_size=64, embed_dim=(32, 48), key_dim=8, num_heads=(2, 3), depth=(1, 1)
)

# by name, smaller than timm has them
TIMM: dict[str, dict[str, Any]] = {
    'efficientvim_m1': dict(embed_dim=(16, 24, 32), depths=(1, 1, 1)),
    'efficientvit_m0': dict(
        img_size=64, embed_dim=(16, 32), depth=(1, 1), key_dim=(4, 4)
    ),
    'fastvit_mci0': FASTVIT,
    'fastvit_sa12': FASTVIT,
    'fastvit_t8': FASTVIT,
    'iformer_t': dict(
        dims=(8, 16, 16, 32), depths=(1, 1, 3, 3), attn_groups=(0, 0, 1, 1)
    ),
    'lcnetv2_base': dict(scale=0.25, depths=(1, 1, 1, 1), head_hidden_size=64),
    'levit_128s': LEVIT,
    'levit_conv_128s': LEVIT,
    'nextvit_small': dict(depths=(1, 1, 5, 1), stem_chs=(8, 8, 8)),
    'repvit_m0_9': REPVIT,
    'repvit_m1': REPVIT,
    'shvit_s1': dict(
        embed_dim=(32, 48, 64), partial_dim=(8, 12, 16), depth=(1, 1, 1)
    ),
    'tiny_vit_5m_224': dict(
        embed_dims=(16, 32),
        depths=(1, 1),
        num_heads=(1, 2),
        window_sizes=(4, 4),
    ),
}


def check_timm(model: nn.Module) -> None:
    from timm.models import reparameterize_model

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    check(model, lambda m: m(images), reparameterize_model)


@pytest.mark.parametrize('name', TIMM)
def test_timm(name):
    require('timm')
    from timm import create_model

    check_timm(create_model(name, num_classes=4, **TIMM[name]))


@pytest.mark.parametrize('kind, group', [('rep', 4), ('one', 1)])
def test_blocks_of_timm(kind, group):
    """RepVGG's and MobileOne's, the second half in groups of channels."""
    require('timm')
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = (
        ByoBlockCfg(kind, d=2, c=8, s=2, gs=0),
        ByoBlockCfg(kind, d=2, c=16, s=2, gs=group),
    )
    config = ByoModelCfg(blocks, stem_type=kind, stem_chs=8)
    check_timm(ByobNet(config, num_classes=4))


def test_ghosts_of_timm():
    require('timm')
    from timm.models.repghost import RepGhostNet

    check_timm(RepGhostNet(GHOSTS, num_classes=4))


def test_ghosts_that_count_channels_between_their_blocks():
    require('timm')
    from timm.models.ghostnet import GhostNet

    check_timm(GhostNet(GHOSTS, num_classes=4, version='v3'))
