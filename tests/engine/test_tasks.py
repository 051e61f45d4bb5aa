"""Pruning and searches on networks of every kind, with two processes (gloo).

Killed and resumed runs equal uninterrupted ones bit for bit, and what is
saved can be loaded in the three ways.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from processes import ROOT, launch, run_tool
from shades import write_shades
from stack import CLASSIFICATION, PACK, require
from toy import load, raw_outputs

from mmgfp import Structure
from mmgfp.libraries.config import load_config
from mmgfp.libraries.models import build_model, load_model

DETECTION = """
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(depth=18, base_channels=8, frozen_stages=-1, norm_eval=False,
                  norm_cfg=dict(requires_grad=True), style='pytorch',
                  init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16))
dataset = dict(
    type='CocoDataset', data_root='{data}', ann_file='boxes.json',
    metainfo=dict(classes=('dark', 'grey', 'bright')),
    data_prefix=dict(img='images'), pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(96, 96), keep_ratio=False),
        dict(type='PackDetInputs', meta_keys=(
            'img_id', 'img_path', 'ori_shape', 'img_shape',
            'scale_factor'))])
evaluator = dict(type='CocoMetric', ann_file='{data}/boxes.json')
"""
FCOS = (
    "_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'\n"
    + DETECTION
    + """
model.update(bbox_head=dict(
    num_classes=3, in_channels=16, feat_channels=16, stacked_convs=2,
    norm_on_bbox=True, norm_cfg=dict(type='GN', num_groups=4)))
"""
)
RETINANET = (
    "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
    + DETECTION
    + """
model.update(bbox_head=dict(
    num_classes=3, in_channels=16, feat_channels=16, stacked_convs=2))
"""
)
FASTER_RCNN = (
    "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
    + DETECTION
    + """
model.update(
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=3)))
"""
)
CLASSIFIER = """
_base_ = '{library}::resnet/resnet18_8xb32_in1k.py'
model = dict(
    backbone=dict(base_channels=8, stem_channels=8, init_cfg=None),
    head=dict(num_classes=3, in_channels=64, topk=(1,)))
data_preprocessor = dict(num_classes=3)
dataset = dict(
    type='CustomDataset', data_root='{data}/crops',
    classes=('dark', 'grey', 'bright'), pipeline=[
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96)),
        dict(type='{pack}')])
evaluator = dict(type='Accuracy', topk=(1,))
"""
SEGMENTOR = """
_base_ = 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'
norm = dict(type='BN', requires_grad=True)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(stem_channels=8, base_channels=8, norm_cfg=norm),
    decode_head=dict(
        in_channels=64, channels=16, num_classes=3, norm_cfg=norm),
    auxiliary_head=dict(
        in_channels=32, channels=8, num_classes=3, norm_cfg=norm))
dataset = dict(
    type='BaseSegDataset', data_root='{data}', seg_map_suffix='.png',
    img_suffix='.png', metainfo=dict(classes=('dark', 'grey', 'bright')),
    data_prefix=dict(img_path='images', seg_map_path='labels'), pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
        dict(type='PackSegInputs')])
evaluator = dict(type='IoUMetric')
"""
SUPER_RESOLUTION = """
import sys
sys.path.append('{harness}')
model = dict(type='SmallEDSR', scale=2, width=8, blocks=1)
data_preprocessor = dict(
    type='ImgDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255])
dataset = dict(
    type='ReducedPictures', data_root='{data}', folders=['images'], scale=2,
    crop=24)
collate = dict(type='default_collate')
evaluator = dict(type='PSNR', border=2)
del sys
"""
RUN = """
custom_imports = dict(imports=['mmgfp', 'toy', *{modules}])
train_dataloader = dict(
    {anew}batch_size={batch}, num_workers=0, drop_last=True,
    dataset=dict(dataset, **{subset}),
    sampler=dict(type='DefaultSampler', shuffle={shuffle}),
    collate_fn=dict(type='{collate}'))
test_dataloader = dict(
    {anew}batch_size=2, num_workers=0, dataset=dataset,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='{collate}'))
val_dataloader = val_cfg = val_evaluator = None
test_evaluator = evaluator
test_cfg = dict()
train_cfg = dict({anew}by_epoch=True, max_epochs=4)
optim_wrapper = dict(
    {anew}type='OptimWrapper', clip_grad=dict(max_norm=10),
    optimizer=dict(type='AdamW', lr=0.003))
param_scheduler = []
randomness = dict(seed=0)
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=True, interval=1))
work_dir = '{work_dir}'
custom_hooks = [
    dict(**{hook}, input_shape={shape}, after_target='train'),
    *{hooks}]
"""
_search = dict(type='mmgfp.SearchHook', target=dict(flops=0.5), interval=1)
_curvature = dict(type='KFAC', batches=2)
METHODS = dict(
    DCSS=dict(_search, search=dict(type='DCSS')),
    ITPruner=dict(_search, search=dict(type='ITPruner')),
    NAP=dict(
        type='mmgfp.PruningHook',
        target=dict(flops=0.5),
        interval=3,
        criterion=_curvature,
        channels_per_step='auto',
        normalize_by='none',
        prune_share=0.75,
        save_at=(),
    ),
    NAP_weights=dict(
        type='mmgfp.SparsityHook',
        density=0.3,
        steps=3,
        interval=3,
        criterion=_curvature,
    ),
)
NAP = ('NAP', 'NAP_weights')
SLIM = dict(NAP_weights='density_0.30')
# not killed and resumed: the others of their kind are
ONCE = {
    *(('DCSS', task) for task in ('retinanet', 'faster_rcnn')),
    *(('DCSS', task) for task in ('classifier', 'segmentor')),
    *(('NAP', task) for task in ('retinanet', 'faster_rcnn')),
    ('NAP_weights', 'fcos'),
}
TASKS = dict(
    retinanet=('mmdet', RETINANET),
    fcos=('mmdet', FCOS),
    faster_rcnn=('mmdet', FASTER_RCNN),
    classifier=(CLASSIFICATION, CLASSIFIER),
    segmentor=('mmseg', SEGMENTOR),
    super_resolution=('mmengine', SUPER_RESOLUTION),
)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Pictures with boxes, classes and a label for each pixel."""
    folder = write_shades(tmp_path_factory.mktemp('data'))
    (folder / 'labels').mkdir()
    for path in (folder / 'images').iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        labels = np.searchsorted([100, 200], grey).astype(np.uint8)
        cv2.imwrite(str(folder / 'labels' / path.name), labels)
    return folder


def write(
    task: str,
    method: str,
    work_dir: Path,
    data: Path,
    *hooks: dict,
    indices: list[int] | None = None,
) -> Path:
    """A config that prunes, with all images or those of some indices."""
    library, text = TASKS[task]
    require(library)
    ours = library == 'mmengine'
    given = dict(
        data=data,
        library=library,
        pack=PACK,
        harness=ROOT / 'benchmarks' / 'accuracy',
        modules=['superres'] if ours else [],
        collate='default_collate' if ours else 'pseudo_collate',
        anew='' if ours else '_delete_=True, ',
        # the search compares the features of at least four images
        batch=4 if method == 'ITPruner' else 2,
        subset={} if indices is None else dict(indices=indices),
        shuffle=indices is None,
        hook=METHODS[method],
        shape=(24, 24) if ours else (96, 96),
        work_dir=work_dir,
        hooks=list(hooks),
    )
    text += RUN
    for name, value in given.items():
        text = text.replace(f'{{{name}}}', str(value))
    path = work_dir.with_suffix(f'.{len(hooks)}.py')
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    'method, task',
    [
        *(('DCSS', task) for task in TASKS),
        *((nap, d) for nap in NAP for d in ('retinanet', 'fcos')),
        ('NAP', 'faster_rcnn'),
    ],
)
def test_resumed_equals_uninterrupted(method, task, tmp_path, data):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    config = write(task, method, whole, data)
    launch(config)
    slim = SLIM.get(method, 'flops_0.50')
    check_files(task, config, whole / f'{slim}.pth')
    if (method, task) in ONCE:
        return
    # NAP has pruned once by then
    at = 4 if method in NAP else 7
    stop = dict(type='Stop', iteration=at, kill=True)
    launch(write(task, method, killed, data, stop), expected=None)
    assert not (killed / f'{slim}.pth').exists()
    launch(write(task, method, killed, data), '--resume')
    for name in (f'{slim}.pth', 'epoch_4.pth'):
        expected = load(whole / name)['state_dict']
        found = load(killed / name)['state_dict']
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert tensor.isfinite().all() and found[key].equal(tensor), key


@pytest.mark.parametrize('task', TASKS)
def test_itpruner(task, tmp_path, data):
    """Two processes that see the same images decide as one does."""
    one, two = tmp_path / 'one', tmp_path / 'two'
    if task == 'super_resolution':  # parts at random places
        config = write(task, 'ITPruner', two, data)
        launch(config)
        check_files(task, config, two / 'flops_0.50.pth')
        return
    # the processes take images in turn
    twice = [index for index in range(8) for _ in range(2)]
    launch(write(task, 'ITPruner', two, data, indices=twice))
    single = write(task, 'ITPruner', one, data, indices=list(range(8)))
    done = run_tool('train.py', single)
    assert done.returncode == 0, done.stderr[-4000:]
    found, expected = (
        Structure.load(folder / 'flops_0.50.json').to_dict()['tensors']
        for folder in (two, one)
    )
    assert found == expected and found


def check_files(task: str, config: Path, slim: Path) -> None:
    """The three ways to load a slim network, and a test of it."""
    full = load_config(config)
    structure = Structure.load(slim.with_suffix('.json'))
    assert structure.axes or structure.density
    finetune = slim.with_name(f'{slim.stem}_finetune.py')
    generated = load_config(finetune)
    built = build_model(full)
    structure.apply(built)
    built.load_state_dict(load(slim)['state_dict'])
    expected = outputs(task, built)
    assert any(tensor.std() > 0 for tensor in expected)
    for model in (load_model(full, slim), load_model(generated, slim)):
        for a, b in zip(outputs(task, model), expected, strict=True):
            torch.testing.assert_close(a, b)
    done = run_tool(
        *('test.py', finetune, slim),
        *('--work-dir', slim.parent / 'test'),
    )
    assert done.returncode == 0, done.stderr[-4000:]


def outputs(task: str, model: torch.nn.Module) -> list[torch.Tensor]:
    """Those for an image; a second stage wants to know the image's size."""
    samples = []
    if task == 'faster_rcnn':
        from mmdet.structures import DetDataSample

        size = dict(img_shape=(64, 64), scale_factor=(1.0, 1.0))
        samples = [[DetDataSample(metainfo=size)]]
    return raw_outputs(model, (64, 64), *samples)
