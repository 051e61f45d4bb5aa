"""Scores of a real Mask R-CNN against one image at a time."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from masked import assert_scores
from oracles import masked_is_slim, randomize
from pruning import pruner_of
from stack import require
from torch import Tensor, nn

from mmgfp.cost.model import record_calls
from mmgfp.libraries.channel_groups import demo_groups
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import demo_data, demo_runner
from mmgfp.libraries.models import build_model
from mmgfp.slimming.surgery import cut_model

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (96, 96)
HEADS = ('roi_head.bbox_head.fc_cls', 'roi_head.mask_head.conv_logits')


def detector(shared_extractor: bool = False) -> nn.Module:
    """Small, and without random choices in its losses."""
    require('mmdet')
    config = load_config(ROOT / 'configs/quickstart/mask_rcnn_r18_digits.py')
    model = config.model
    model.backbone.update(base_channels=4, norm_eval=True)
    model.neck.update(in_channels=[4, 8, 16, 32], out_channels=6)
    model.rpn_head.update(in_channels=6, feat_channels=5)
    heads = model.roi_head
    heads.bbox_roi_extractor.out_channels = 6
    heads.mask_roi_extractor.out_channels = 6
    heads.bbox_head.update(in_channels=6, fc_out_channels=7)
    heads.mask_head.update(in_channels=6, conv_out_channels=5)
    if shared_extractor:
        heads.mask_roi_extractor = None
        model.train_cfg.rcnn.mask_size = 14
    model.train_cfg.rpn.sampler.num = 10**6
    model.train_cfg.rpn.assigner.neg_iou_thr = 0.7  # no anchor is left out
    model.train_cfg.rcnn.sampler.num = 10**4
    return randomize(build_model(config)).train()


def batch(model: nn.Module) -> dict:
    """Four images: all boxes, some, none, one."""
    data = demo_data(model, SHAPE, 4, 'loss')
    for sample, count in zip(data['data_samples'], (4, 2, 0, 1), strict=True):
        sample.gt_instances = sample.gt_instances[:count]
    return data


def losses(model: nn.Module, data: dict) -> tuple[dict[str, Tensor], list]:
    """By part of the detector, and the rows that each is the mean of."""
    rows = [0, 0]
    modules = dict(model.named_modules())

    def count(i: int):
        def hook(module, args):
            rows[i] = len(args[0])

        return hook

    handles = [
        modules[name].register_forward_pre_hook(count(i))
        for i, name in enumerate(HEADS)
    ]
    found = model(**copy.deepcopy(data))
    for handle in handles:
        handle.remove()
    parts = dict(rpn=torch.zeros(()), box=torch.zeros(()), mask=0)
    for name, loss in found.items():
        if 'loss' in name:
            part = next((p for p in ('rpn', 'mask') if p in name), 'box')
            for value in loss if isinstance(loss, list) else [loss]:
                parts[part] = parts[part] + value
    return parts, rows


def test_masked_is_slim():
    model = detector().eval()
    groups = demo_groups(model, SHAPE)
    found = {g.name: g for g in groups if not g.frozen}
    assert found['neck.fpn_convs.0.conv'].consumers == [
        'rpn_head.rpn_conv',
        'roi_head.bbox_head.shared_fcs.0',
        'roi_head.mask_head.convs.0.conv',
    ]
    masked_is_slim(model, groups, demo_runner(SHAPE, 2), cut_model)


def test_equals_one_image_at_a_time():
    model = detector()
    groups = [g for g in demo_groups(model, SHAPE) if not g.frozen]
    assert 'neck.fpn_convs.0.conv' in {g.name for g in groups}
    observed = {
        t.layout.extractor: t.layout.order for g in groups for t in g.taps
    }
    assert observed == {
        '': 'images',
        'roi_head.bbox_roi_extractor': 'rois',
        'roi_head.mask_roi_extractor': 'rois',
    }
    data = batch(model)
    parts, rows = losses(model, data)
    assert rows[0] > 30 > rows[1] > 4

    parameters = dict(model.named_parameters())
    expected = {g.name: torch.zeros(g.size).double() for g in groups}
    seen = [0, 0]
    for i, sample in enumerate(data['data_samples']):
        model.zero_grad()
        mine, my_rows = losses(
            model,
            dict(
                data, inputs=data['inputs'][i : i + 1], data_samples=[sample]
            ),
        )
        seen = [a + b for a, b in zip(seen, my_rows, strict=True)]
        loss = (
            mine['rpn']
            + mine['box'] * 4 * my_rows[0] / rows[0]
            + mine['mask'] * 4 * my_rows[1] / rows[1]
        )
        loss.backward()
        for group in groups:
            expected[group.name] += mask_gradient(group, parameters).square()
    assert seen == rows
    assert all(scores.any() for scores in expected.values())

    calls = record_calls(model, lambda: demo_runner(SHAPE)(model))
    model.train()
    pruner = pruner_of(model, groups, calls)
    pruner.attach()
    parts, _ = losses(model, data)
    sum(parts.values()).backward()
    assert pruner.criterion.end_batch()
    assert_scores(pruner, expected, 1e-3)  # mmcv computes in float32


def mask_gradient(group, parameters: dict[str, nn.Parameter]) -> Tensor:
    """Scaling a consumer's input is scaling the weights that read it."""
    gradient = torch.zeros(group.size).double()
    for member in group.members:
        weight = parameters.get(member.tensor)
        if member.role in ('consumer', 'grouped') and weight.grad is not None:
            product = weight.detach() * weight.grad
            sums = product.transpose(0, member.axis).flatten(1).sum(1)
            gradient += sums[torch.from_numpy(member.index)].sum(1)
    return gradient


def test_positives_picked_from_all_rois_are_frozen():
    """As in detectors without a pyramid, whose heads share an extractor."""
    groups = demo_groups(detector(shared_extractor=True), SHAPE)
    frozen = {g.name: g.frozen for g in groups if g.producers}
    assert 'rows were selected' in frozen['roi_head.mask_head.convs.0.conv']
    assert 'rows were selected' in frozen['neck.fpn_convs.0.conv']
    assert frozen['roi_head.bbox_head.shared_fcs.0'] == ''
