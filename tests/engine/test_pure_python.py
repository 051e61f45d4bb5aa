"""Configs of pure Python: classes for types, other configs by ``import``.

Each is pruned from, and what pruning writes is fine-tuned in a fresh process,
tested and exported.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.runner import Runner
from processes import run_tool
from shades import CLASSES, write_shades
from stack import CLASSIFICATION, PACK, require

from mmgfp.commands.launching import complete_dataloaders
from mmgfp.libraries.config import load_config
from mmgfp.libraries.models import build_full_model, config_library, load_model
from mmgfp.libraries.pictures import class_names, read_preprocessing
from mmgfp.libraries.pipeline import input_shape

DETECTOR = """
from mmcv.ops import nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation import CocoMetric
from mmdet.models import (
    FPN, DetDataPreprocessor, FocalLoss, L1Loss, ResNet, RetinaHead, RetinaNet)
from mmdet.models.task_modules import (
    AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler)
from mmdet.visualization import DetLocalVisualizer
from torch.nn import BatchNorm2d

model = dict(
    type=RetinaNet,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type=ResNet, depth=18, base_channels=8, num_stages=4,
        out_indices=(0, 1, 2, 3), norm_cfg=dict(type=BatchNorm2d),
        style='pytorch'),
    neck=dict(
        type=FPN, in_channels=[8, 16, 32, 64], out_channels=16, start_level=1,
        add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type=RetinaHead, num_classes=3, in_channels=16, feat_channels=16,
        stacked_convs=2,
        anchor_generator=dict(
            type=AnchorGenerator, octave_base_scale=4, scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(
            type=FocalLoss, use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type=L1Loss)),
    train_cfg=dict(
        assigner=dict(
            type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4,
            min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type=PseudoSampler), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(
        nms_pre=100, min_bbox_size=0, score_thr=0.0,
        nms=dict(type=nms, iou_threshold=0.5), max_per_img=20))
pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=Resize, scale=(96, 96), keep_ratio=False),
    dict(type=PackDetInputs, meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset_type = CocoDataset
dataset = dict(
    type=dataset_type, data_root='{data}',
    metainfo=dict(classes=('dark', 'grey', 'bright')),
    ann_file='boxes.json', data_prefix=dict(img='images'), pipeline=pipeline)
val_evaluator = dict(
    type=CocoMetric, ann_file='{data}/boxes.json', metric='bbox')
visualization = dict(type=DetVisualizationHook)
visualizer = dict(type=DetLocalVisualizer)
"""

CLASSIFIER = """
from mmcv.transforms import LoadImageFromFile, Resize
from {library}.datasets import {pack}, CustomDataset
from {library}.engine import VisualizationHook
from {library}.evaluation import Accuracy
from {library}.models import (
    ClsDataPreprocessor, CrossEntropyLoss, GlobalAveragePooling,
    ImageClassifier, LinearClsHead, ResNet)

model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(type=ClsDataPreprocessor, num_classes=3),
    backbone=dict(type=ResNet, depth=18, base_channels=8, stem_channels=8),
    neck=dict(type=GlobalAveragePooling),
    head=dict(
        type=LinearClsHead, num_classes=3, in_channels=64, topk=(1,),
        loss=dict(type=CrossEntropyLoss)))
pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=Resize, scale=(96, 96)),
    dict(type={pack}),
]
dataset = dict(
    type=CustomDataset, data_root='{data}/crops',
    classes=('dark', 'grey', 'bright'), pipeline=pipeline)
val_evaluator = dict(type=Accuracy, topk=(1,))
visualization = dict(type=VisualizationHook)
"""

# what both have in common, with a file that they inherit from
RUNTIME = """
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from torch.optim import AdamW

default_scope = None
sampler = dict(type=DefaultSampler, shuffle=True)
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=4, val_interval=100)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(
    type=OptimWrapper, optimizer=dict(type=AdamW, lr=0.003))
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))
"""

PRUNE = """
from mmengine.config import read_base

from mmgfp import FisherPruningHook

with read_base():
    from .model import *
    from .runtime import *

train_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dataset, sampler=sampler)
val_dataloader = train_dataloader
test_dataloader = val_dataloader
test_evaluator = val_evaluator
default_hooks.update(visualization=visualization)
custom_hooks = [
    dict(type=FisherPruningHook, target=dict(flops=0.5), interval=2,
         channels_per_step='auto', finetune=dict(train_cfg=dict(max_epochs=1)))
]
work_dir = '{folder}/pruned'
"""

KINDS = pytest.mark.parametrize('kind', ['detector', 'classifier'])


@pytest.fixture(scope='module')
def pruned(tmp_path_factory):
    """Makes the folder of a pruned network of each kind, once."""
    data = write_shades(tmp_path_factory.mktemp('data'))
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        require('mmdet' if kind == 'detector' else CLASSIFICATION)
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            model = DETECTOR if kind == 'detector' else CLASSIFIER
            for name, text in (
                ('model', model),
                ('runtime', RUNTIME),
                ('prune', PRUNE),
            ):
                for key, value in (
                    ('data', data),
                    ('folder', folder),
                    ('library', CLASSIFICATION),
                    ('pack', PACK),
                ):
                    text = text.replace(f'{{{key}}}', str(value))
                (folder / f'{name}.py').write_text(text)
            config = load_config(folder / 'prune.py')
            complete_dataloaders(config)
            Runner.from_cfg(config).train()
            made[kind] = folder
        return made[kind]

    return get


def stem(folder: Path) -> str:
    return str(folder / 'pruned' / 'flops_0.50')


@KINDS
def test_what_such_a_config_says(pruned, kind):
    folder = pruned(kind)
    library = 'mmdet' if kind == 'detector' else CLASSIFICATION
    for path in (folder / 'prune.py', f'{stem(folder)}_finetune.py'):
        config = load_config(path)
        assert config_library(config) == library
        assert input_shape(config) == (96, 96)
        assert tuple(class_names(config, {}, 3)) == CLASSES
        model = load_model(config, f'{stem(folder)}.pth')
        resize = read_preprocessing(config, model).resize
        assert resize == dict(mode='stretch')
        full = build_full_model(config).backbone.conv1
        assert full.out_channels == 8 >= model.backbone.conv1.out_channels
        complete_dataloaders(config)
        collate = config.test_dataloader.get('collate_fn')
        assert (collate is None) == (library == 'mmdet')


@KINDS
def test_fine_tuned_and_tested_in_fresh_processes(pruned, kind, tmp_path):
    folder = pruned(kind)
    generated = f'{stem(folder)}_finetune.py'
    done = run_tool('train.py', generated, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    trained = f'{stem(folder)}_finetune/epoch_1.pth'
    out = tmp_path / 'out.pkl'
    more = ['--show-dir', tmp_path / 'shown'] if kind == 'detector' else []
    done = run_tool(
        *('test.py', generated, trained, '--work-dir', tmp_path / 'a'),
        *('--out', out, *more),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert out.is_file()
    if more:
        assert list(tmp_path.glob('shown/**/*.png'))
    # the config that was pruned takes it as well
    config = load_config(folder / 'prune.py')
    complete_dataloaders(config)
    config.update(load_from=trained, experiment_name=f'again_{kind}')
    config.work_dir = str(tmp_path / 'b')
    again = Runner.from_cfg(config).test()
    (log,) = (tmp_path / 'a').glob('*/*.log')
    for name, value in again.items():
        assert f'{name}: {value:.4f}' in log.read_text()


@KINDS
def test_exported(pruned, kind, tmp_path):
    pytest.importorskip('onnxruntime')
    from mmgfp.commands import export as tool

    folder = pruned(kind)
    out = tmp_path / 'model.onnx'
    decode = ['--decode'] if kind == 'detector' else []
    tool.main(
        [
            *(f'{stem(folder)}_finetune.py', f'{stem(folder)}.pth'),
            *('--out', str(out), '--check', *decode),
        ]
    )
    assert out.is_file()
