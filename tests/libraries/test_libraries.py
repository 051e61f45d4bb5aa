"""Models that are not MMDetection's, by the code in docs/libraries.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from oracles import layout, masked_is_slim, outputs, worst_difference
from processes import ROOT
from stack import require

from mmgfp import Structure
from mmgfp.libraries.channel_groups import demo_groups
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import demo_runner
from mmgfp.libraries.models import LIBRARIES, build_model, load_model
from mmgfp.libraries.samples import _SAMPLES
from mmgfp.slimming.checkpoint import load_plain_checkpoint
from mmgfp.slimming.surgery import cut_model
from mmgfp.tracing.finder import find_groups

PAGE = (ROOT / 'docs' / 'libraries.md').read_text()
LOOP, DEEPLAB, DETECTOR, TIMM, SEGMENTOR, POSE, YOLO = re.findall(
    r'```python\n(.*?)```', PAGE, re.DOTALL
)

# what the page leaves to the base configs, for four small images
TINY = """
work_dir = '{folder}/work'
train_dataloader = dict(
    globals().get('train_dataloader', {{}}), batch_size=2, num_workers=0,
    persistent_workers=False, dataset={dataset})
val_dataloader = None
val_cfg = None
val_evaluator = None
test_dataloader = None
test_cfg = None
test_evaluator = None
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=6)
log_processor = dict(by_epoch=False)
param_scheduler = []
randomness = dict(seed=0)
custom_hooks[-1].update(interval=1, input_shape={shape})
log_level = 'WARNING'
"""

TINY_SEGMENTOR = """
norm = dict(type='BN')
model = dict(
    data_preprocessor=dict(size=(64, 64)), pretrained=None,
    backbone=dict(norm_cfg=norm), decode_head=dict(norm_cfg=norm),
    auxiliary_head=dict(norm_cfg=norm))
default_hooks = dict(checkpoint=None)
"""

TINY_POSE = """
model = dict(backbone=dict(init_cfg=None))
default_hooks = dict(checkpoint=None)
"""

TINY_YOLO = """
size = dict(deepen_factor=0.01, widen_factor=0.125)
model = dict(
    backbone=size, neck=size,
    bbox_head=dict(head_module=dict(widen_factor=0.125)))
default_hooks = dict(checkpoint=None)
"""


def run_blocks(*blocks: str, **given) -> dict:
    names = dict(given)
    for block in blocks:
        exec(compile(block, 'docs/libraries.md', 'exec'), names)
    return names


def check(names: dict) -> None:
    """What the code of the page ends with."""
    assert names['pruner'].net.ratio('flops') <= 0.5
    assert names['pruner'].limits.reachable()['flops'] < 0.5
    found, expected = (
        outputs(names[name], names['run']) for name in ('slim', 'model')
    )
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# -- plain PyTorch -----------------------------------------------------------


def test_torchvision_segmentation():
    names = run_blocks(LOOP, DEEPLAB)
    check(names)
    assert len(layout(names['groups'])) >= 30
    full = names['build']().eval()
    masked_is_slim(full, names['groups'], names['run'], cut_model)


def test_torchvision_detection():
    names = run_blocks(LOOP, DETECTOR)
    check(names)
    producers = {
        p for g in names['groups'] if not g.frozen for p in g.producers
    }
    # one of each part: backbone, pyramid, proposals, RoIs
    for part in ('backbone.body', 'backbone.fpn', 'rpn', 'roi_heads.box_head'):
        assert any(p.startswith(part) for p in producers), part
    full = names['build']().eval()
    full.rpn.nms_thresh = full.roi_heads.nms_thresh = 1.0
    masked_is_slim(full, names['groups'], names['run'], cut_model)


@pytest.mark.parametrize(
    'name, options',
    [
        ('resnet10t', {}),
        ('convnext_atto', {}),
        ('vit_tiny_patch16_224', {'img_size': 64}),
    ],
)
def test_timm(name, options):
    require('timm')
    choice = f'name, options = {name!r}, {options!r}\n'
    code, count = re.subn('(?m)^name, options = .*\n', choice, TIMM)
    assert count == 1
    names = run_blocks(LOOP, code)
    check(names)
    full = names['build']().eval()
    masked_is_slim(full, names['groups'], names['run'], cut_model)


def test_losses_are_run_in_training_mode():
    """But for norms, which would mix images, and dropout."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1),
        torch.nn.BatchNorm2d(4),
        torch.nn.Dropout(),
        torch.nn.Conv2d(4, 2, 1),
    )
    seen = []

    def run(m: torch.nn.Module) -> torch.Tensor:
        seen.append([m.training, *(child.training for child in m)])
        return m(torch.ones(2, 3, 4, 4))

    groups = find_groups(
        model.eval(), lambda m: m(torch.ones(2, 3, 4, 4)), 2, run
    )
    assert [g.frozen for g in groups].count('') == 1
    assert seen
    assert all(modes == [True, True, False, False, True] for modes in seen)
    assert not any(m.training for m in model.modules())


# -- with a runner -----------------------------------------------------------


def segments(folder: Path) -> str:
    """Noise of two sizes, and for each pixel one of 19 classes."""
    rng = np.random.default_rng(0)
    for kind in ('images', 'labels'):
        (folder / kind).mkdir()
    for i in range(4):
        rows = 3 + i % 2
        size = 16 * rows, 64, 3
        picture = rng.integers(0, 256, size, dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), picture)
        labels = np.kron(rng.integers(0, 19, (rows, 4)), np.ones((16, 16)))
        cv2.imwrite(str(folder / 'labels' / f'{i}.png'), labels)
    return f"""dict(
        _delete_=True, type='BaseSegDataset', data_root='{folder}',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        seg_map_suffix='.png', img_suffix='.png',
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='LoadAnnotations'), dict(type='PackSegInputs')])"""


def persons(folder: Path) -> str:
    """Noise, with a person of 17 points in it."""
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir()
    images, annotations = [], []
    for i in range(4):
        picture = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), picture)
        images.append(dict(id=i, file_name=f'{i}.png', width=96, height=96))
        points = np.full((17, 3), 2)
        points[:, :2] = rng.integers(10, 80, (17, 2))
        annotations.append(
            dict(
                id=i,
                image_id=i,
                category_id=1,
                bbox=[5, 5, 80, 80],
                area=6400,
                iscrowd=0,
                num_keypoints=17,
                keypoints=points.ravel().tolist(),
            )
        )
    (folder / 'persons.json').write_text(
        json.dumps(
            dict(
                images=images,
                annotations=annotations,
                categories=[dict(id=1, name='person')],
            )
        )
    )
    return f"""dict(
        data_root='{folder}', ann_file='persons.json',
        data_prefix=dict(img='images/'))"""


def boxes(folder: Path) -> str:
    """Noise, with two boxes in it."""
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir()
    images, annotations = [], []
    for i in range(4):
        picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), picture)
        images.append(dict(id=i, file_name=f'{i}.png', width=64, height=64))
        for left, top in rng.integers(0, 30, (2, 2)).tolist():
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=i,
                    category_id=1,
                    bbox=[left, top, 30, 25],
                    area=750,
                    iscrowd=0,
                )
            )
    (folder / 'boxes.json').write_text(
        json.dumps(
            dict(
                images=images,
                annotations=annotations,
                categories=[dict(id=1, name='person')],
            )
        )
    )
    # as the config has it, but smaller and without Albumentations
    read = """
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True)"""
    return f"""dict(
        data_root='{folder}', ann_file='boxes.json',
        data_prefix=dict(img='images/'), pipeline=[{read},
            dict(type='Mosaic', img_scale=(64, 64), pre_transform=[{read}]),
            dict(type='YOLOv5RandomAffine', max_rotate_degree=0.0,
                 max_shear_degree=0.0, border=(-32, -32)),
            dict(type='YOLOv5HSVRandomAug'),
            dict(type='mmdet.RandomFlip', prob=0.5),
            dict(type='mmdet.PackDetInputs')])"""


def prune(
    text: str,
    shape: tuple[int, int],
    folder: Path,
    data: str,
    tolerance: float = 1e-5,
) -> None:
    """Train with the config of the page and compare what comes of it."""
    path = folder / 'prune.py'
    path.write_text(
        text + TINY.format(folder=folder, dataset=data, shape=shape)
    )
    config = load_config(path)
    run = demo_runner(shape, images=2)
    full = build_model(config)
    masked_is_slim(full, demo_groups(full, shape), run, cut_model)

    runner = Runner.from_cfg(config)
    runner.train()
    stem = folder / 'work' / 'flops_0.50'
    structure = Structure.load(f'{stem}.json')
    assert (
        structure.cost_after['flops'] <= 0.5 * structure.cost_before['flops']
    )
    averages = [h.ema_model for h in runner.hooks if hasattr(h, 'ema_model')]
    saved = averages[0].module if averages else runner.model
    expected = outputs(saved.eval(), run)
    structure.apply(full)
    full.load_state_dict(load_plain_checkpoint(f'{stem}.pth')['state_dict'])
    by_config = [
        load_model(Config.fromfile(source), f'{stem}.pth')
        for source in (path, f'{stem}_finetune.py')
    ]
    for slim in (full, *by_config):
        assert type(slim) is type(full)
        assert worst_difference(expected, outputs(slim, run)) < tolerance
        losses = demo_runner(shape, images=2, mode='loss')(slim)
        assert all(torch.isfinite(v).all() for v in losses.values())


def test_segmentor(tmp_path):
    require('mmseg')
    prune(SEGMENTOR + TINY_SEGMENTOR, (64, 64), tmp_path, segments(tmp_path))


@pytest.mark.parametrize('search', ['DCSS', 'Knapsack', 'ITPruner'])
def test_searches_of_a_segmentor(tmp_path, search):
    require('mmseg')
    hook = dict(
        type='mmgfp.SearchHook',
        search=dict(type=search),
        target=dict(flops=0.5),
    )
    text = f'{SEGMENTOR}custom_hooks = [{hook}]\n{TINY_SEGMENTOR}'
    prune(text, (64, 64), tmp_path, segments(tmp_path))


def test_pose_estimator(tmp_path):
    require('mmpose')
    try:
        import xtcocotools.mask  # noqa: F401
    except ValueError as error:  # the wheel is for numpy 1
        pytest.skip(f'xtcocotools was not compiled for this numpy: {error}')
    prune(POSE + TINY_POSE, (256, 192), tmp_path, persons(tmp_path))


def test_yolo(tmp_path):
    require('mmyolo')
    # averages change once more after the target is reached and saved
    prune(YOLO + TINY_YOLO, (64, 64), tmp_path, boxes(tmp_path), 1e-2)


def test_every_library_has_samples():
    assert set(LIBRARIES) == set(_SAMPLES)
