"""Small networks of MMYOLO's own configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from oracles import masked_is_slim
from stack import require

from mmgfp.commands.groups import flops_shares
from mmgfp.cost.model import METRICS, CostModel, count_cost, record_calls
from mmgfp.libraries.channel_groups import demo_groups
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import cost_runner, demo_runner
from mmgfp.libraries.models import build_model
from mmgfp.libraries.pipeline import input_shape
from mmgfp.slimming.surgery import cut_model
from mmgfp.utils.trees import tree_leaves

SIZE = dict(deepen_factor=0.01, widen_factor=0.125)
SMALL = dict(
    backbone=dict(init_cfg=None, **SIZE),
    neck=SIZE,
    bbox_head=dict(head_module=dict(widen_factor=0.125)),
)
# the neck and head of the smallest YOLOv7 count channels themselves
WIDTHS = [32, 64, 128]
SMALL_YOLOV7 = dict(
    backbone=dict(widen_factor=0.25),
    neck=dict(in_channels=WIDTHS, out_channels=[16, 32, 64]),
    bbox_head=dict(head_module=dict(in_channels=WIDTHS)),
)

# the size of the test images, as each config has it
CONFIGS: dict[str, tuple[str, int, dict[str, Any]]] = {
    'YOLOv5': ('yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco', 640, SMALL),
    'YOLOv6': ('yolov6/yolov6_n_syncbn_fast_8xb32-300e_coco', 640, SMALL),
    'YOLOv7': (
        'yolov7/yolov7_tiny_syncbn_fast_8x16b-300e_coco',
        640,
        SMALL_YOLOV7,
    ),
    'YOLOv8': ('yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco', 640, SMALL),
    'RTMDet': ('rtmdet/rtmdet_tiny_syncbn_fast_8xb32-300e_coco', 640, SMALL),
    'YOLOX': ('yolox/yolox_nano_fast_8xb8-300e_coco', 416, SMALL),
    'PPYOLOE': ('ppyoloe/ppyoloe_plus_s_fast_8xb8-80e_coco', 640, SMALL),
}


def small(name: str) -> Config:
    require('mmyolo')
    path, _, changes = CONFIGS[name]
    config = load_config(f'mmyolo::{path}.py')
    config.merge_from_dict(dict(model=changes))
    return config


@pytest.mark.parametrize('name', CONFIGS)
def test_groups_size_and_cost(name):
    config = small(name)
    side = CONFIGS[name][1]
    assert input_shape(config) == (side, side)

    model = build_model(config)
    groups = demo_groups(model, (side, side))
    prunable = [group for group in groups if not group.frozen]
    assert len(prunable) >= 0.7 * len(groups)
    assert not any('self-check' in group.frozen for group in groups)

    run = cost_runner((side, side))
    calls = record_calls(model, lambda: run(model))
    rows = count_cost(model, calls)
    shares = flops_shares(groups, rows)
    assert all(0 <= share <= 1 for share in shares.values())
    total = CostModel(model, prunable, calls).total()
    assert {m: total[m] for m in METRICS} == {m: rows[''][m] for m in METRICS}

    masked_is_slim(model, groups, demo_runner((64, 64), 2), cut_model)


@pytest.mark.parametrize('name', CONFIGS)
def test_losses_of_made_up_boxes(name):
    """Channels that only training uses are found by them."""
    model = build_model(small(name))
    # a runner tells it; some choose the assigner by it
    MessageHub.get_current_instance().update_info('epoch', 0)
    # some want nine positions in the smallest map
    losses = demo_runner((96, 96), 2, 'loss')(model)
    values = tree_leaves(losses)
    assert len(values) >= 2
    assert all(torch.isfinite(value).all() for value in values)
