"""What pruning left, used in fresh processes in each of the three ways.

A tiny RetinaNet and a tiny ResNet are pruned once through the tool. The
process that prunes writes down what the slim network makes of a fixed image;
every use has to make the same of it, and predict and score the same.
"""

from __future__ import annotations

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from processes import run_tool
from shades import CLASSES, write_shades
from stack import CLASSIFICATION, PACK, require

LIMIT = 200  # seconds per process

DETECTOR = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
custom_imports = dict(imports=['mmgfp', 'toy'])
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(base_channels=8, frozen_stages=-1, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(
        num_classes=3, in_channels=16, feat_channels=16, stacked_convs=2),
    test_cfg=dict(score_thr=0.0, nms_pre=100, max_per_img=20))
metainfo = dict(classes=('dark', 'grey', 'bright'))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=False),
    dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(
    _delete_=True, type='CocoDataset', data_root='{data}', metainfo=metainfo,
    ann_file='boxes.json', data_prefix=dict(img='images'), pipeline=pipeline)
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(test_mode=True, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/boxes.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=24, val_interval=100)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.003))
param_scheduler = []
randomness = dict(seed=0)
"""

CLASSIFIER = """
_base_ = '{library}::resnet/resnet18_8xb32_in1k.py'
custom_imports = dict(imports=['mmgfp', 'toy'])
model = dict(
    backbone=dict(base_channels=8, stem_channels=8, init_cfg=None),
    head=dict(num_classes=3, in_channels=64, topk=(1,)))
data_preprocessor = dict(num_classes=3)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96)),
    dict(type='{pack}'),
]
dataset = dict(
    _delete_=True, type='CustomDataset', data_root='{data}/crops',
    classes=('dark', 'grey', 'bright'), pipeline=pipeline)
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dataset)
val_dataloader = dict(batch_size=4, num_workers=0, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=6, val_interval=100)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.003))
param_scheduler = []
randomness = dict(seed=0)
"""

PRUNING = """
work_dir = '{work_dir}'
default_hooks = dict(checkpoint=dict(interval=100))
custom_hooks = [
    dict(
        type='mmgfp.FisherPruningHook', target=dict(flops=0.5), interval=2,
        channels_per_step='auto', input_shape=(96, 96),
        finetune=dict(train_cfg=dict(max_epochs=1))),
    dict(type='SaveOutputs', checkpoint='flops_0.50.pth', shape=(96, 96)),
]
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    return write_shades(tmp_path_factory.mktemp('data'))


def prune(folder: Path, data: Path, text: str) -> Path:
    """Prune through the tool; returns the config."""
    config = folder / 'prune.py'
    text = (text + PRUNING).replace('{data}', str(data))
    config.write_text(text.replace('{work_dir}', str(folder / 'pruned')))
    run('train.py', config)
    for suffix in ('.pth', '.json', '.png', '_finetune.py'):
        assert (folder / 'pruned' / f'flops_0.50{suffix}').is_file()
    return config


def run(tool: str | Path, *args) -> str:
    result = run_tool(tool, *args, timeout=LIMIT)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def saved(config: Path) -> Path:
    return config.parent / 'pruned' / 'flops_0.50.pth'


def finetune_config(config: Path) -> Path:
    return config.parent / 'pruned' / 'flops_0.50_finetune.py'


def test_tool(
    config: Path, checkpoint: Path, work_dir: Path, *options, tool='test.py'
) -> tuple[dict, list]:
    """Metrics and predictions of a test in a fresh process."""
    out = work_dir / 'out.pkl'
    files = ['--work-dir', work_dir, '--out', out]
    run(tool, config, checkpoint, *files, *options)
    (metrics,) = work_dir.glob('*/*.json')
    metrics = json.loads(metrics.read_text().splitlines()[-1])
    metrics = {
        k: v for k, v in metrics.items() if 'time' not in k and k != 'step'
    }
    return metrics, pickle.loads(out.read_bytes())


test_tool.__test__ = False


def script(folder: Path, text: str, *args) -> dict:
    """What a script of a user, who never saw mmgfp's tools, returns."""
    path = folder / 'use.py'
    path.write_text(text)
    run(path, *args, folder / 'result.pth')
    return torch.load(folder / 'result.pth', weights_only=False)


def assert_same_tensors(found, config: Path) -> None:
    expected = torch.load(saved(config).with_name('outputs.pth'))
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert any(t.std() > 0 for t in expected)


# -- detection ---------------------------------------------------------------


@pytest.fixture(scope='module')
def detector(tmp_path_factory, data) -> Path:
    require('mmdet')
    return prune(tmp_path_factory.mktemp('detector'), data, DETECTOR)


@pytest.fixture(scope='module')
def detected(detector) -> tuple[dict, list]:
    """Use (a): the unchanged config and the slim checkpoint."""
    work_dir = detector.parent / 'unchanged'
    work_dir.mkdir()
    return test_tool(detector, saved(detector), work_dir)


def boxes(predictions: list) -> list[torch.Tensor]:
    """Per image (20, 6): corners, score and label."""
    ordered = sorted(predictions, key=lambda p: p['img_id'])
    return [
        torch.cat(
            [
                p['pred_instances'][key].reshape(20, -1).float()
                for key in ('bboxes', 'scores', 'labels')
            ],
            1,
        )
        for p in ordered
    ]


def assert_same_boxes(found: list, expected: list) -> None:
    assert len(found) == len(expected) == 12
    for a, b in zip(boxes(found), boxes(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_detector_with_the_unchanged_config(detected):
    metrics, predictions = detected
    assert metrics['coco/bbox_mAP_50'] > 0
    assert len(predictions) == 12


def test_detector_with_the_generated_config(detector, detected, tmp_path):
    config = finetune_config(detector)
    metrics, predictions = test_tool(config, saved(detector), tmp_path)
    assert metrics == detected[0]
    assert_same_boxes(predictions, detected[1])


def test_detector_is_finetuned(detector, tmp_path):
    config = finetune_config(detector)
    folder = tmp_path / 'finetuned'
    run(
        'train.py',
        config,
        '--work-dir',
        folder,
        '--cfg-options',
        'default_hooks.checkpoint.interval=1',
    )
    before, after = (
        torch.load(path, weights_only=False)['state_dict']
        for path in (saved(detector), folder / 'epoch_1.pth')
    )
    assert before.keys() == after.keys()
    assert any(not before[k].equal(after[k]) for k in before)
    for name in before:
        assert before[name].shape == after[name].shape, name
    metrics, _ = test_tool(config, folder / 'epoch_1.pth', tmp_path)
    assert metrics['coco/bbox_mAP_50'] > 0
    # it is no less at home in the config that was pruned
    (tmp_path / 'unchanged').mkdir()
    again, _ = test_tool(
        detector, folder / 'epoch_1.pth', tmp_path / 'unchanged'
    )
    assert again == metrics


def test_detector_without_our_tools(detector, detected, data, tmp_path):
    result = script(
        tmp_path,
        """
import sys
import torch
from mmdet.apis import inference_detector, init_detector
from toy import raw_outputs

config, checkpoint, folder, out = sys.argv[1:]
model = init_detector(config, checkpoint, device='cpu')
results = [
    inference_detector(model, f'{folder}/{i}.png').to_dict()
    for i in range(12)
]
torch.save(dict(
    kind=type(model).__module__ + '.' + type(model).__name__,
    channels=len(model.backbone.layer1[0].conv1.weight),
    classes=model.dataset_meta['classes'],
    raw=raw_outputs(model, (96, 96)),
    results=[dict(r, img_id=i) for i, r in enumerate(results)]), out)
""",
        finetune_config(detector),
        saved(detector),
        data / 'images',
    )
    assert result['kind'] == 'mmdet.models.detectors.retinanet.RetinaNet'
    assert tuple(result['classes']) == CLASSES
    assert_same_tensors(result['raw'], detector)
    assert_same_boxes(result['results'], detected[1])


def mmdetections_tool() -> Path:
    package = Path(find_spec('mmdet').submodule_search_locations[0])
    tool = package / '.mim' / 'tools' / 'test.py'
    if not tool.is_file():
        pytest.skip('this mmdet does not bring its tools')
    return tool


def test_detector_with_mmdetections_tool(detector, detected, tmp_path):
    config, tool = finetune_config(detector), mmdetections_tool()
    metrics, predictions = test_tool(
        config, saved(detector), tmp_path, tool=tool
    )
    assert metrics == detected[0]
    assert_same_boxes(predictions, detected[1])


def test_detector_in_several_views(detector, detected, tmp_path):
    """As MMDetection's own tool does it, with each of the configs."""
    found = []
    for config, tool in (
        (detector, 'test.py'),
        (finetune_config(detector), mmdetections_tool()),
    ):
        folder = tmp_path / config.stem
        folder.mkdir()
        found.append(
            test_tool(config, saved(detector), folder, '--tta', tool=tool)
        )
    assert found[0][0] == found[1][0] != detected[0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        for key, value in one['pred_instances'].items():
            expected = other['pred_instances'][key]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-4)


# -- classification ----------------------------------------------------------


@pytest.fixture(scope='module')
def classifier(tmp_path_factory, data) -> Path:
    require(CLASSIFICATION)
    text = CLASSIFIER.replace('{library}', CLASSIFICATION)
    text = text.replace('{pack}', PACK)
    return prune(tmp_path_factory.mktemp('classifier'), data, text)


@pytest.fixture(scope='module')
def classified(classifier) -> tuple[dict, list]:
    work_dir = classifier.parent / 'unchanged'
    work_dir.mkdir()
    return test_tool(classifier, saved(classifier), work_dir)


def scores(predictions: list) -> torch.Tensor:
    if CLASSIFICATION == 'mmcls':
        predictions = [
            dict(pred_score=p['pred_label']['score']) for p in predictions
        ]
    return torch.stack([p['pred_score'] for p in predictions])


def test_classifier_with_both_configs(classifier, classified, tmp_path):
    assert 0 < classified[0]['accuracy/top1'] <= 100
    config = finetune_config(classifier)
    metrics, predictions = test_tool(config, saved(classifier), tmp_path)
    assert metrics == classified[0]
    assert len(predictions) == 24
    torch.testing.assert_close(
        scores(predictions), scores(classified[1]), rtol=1e-5, atol=1e-6
    )


def test_classifier_in_several_views(classifier, classified, tmp_path):
    found = []
    for config in (classifier, finetune_config(classifier)):
        folder = tmp_path / config.stem
        folder.mkdir()
        found.append(test_tool(config, saved(classifier), folder, '--tta'))
    assert found[0][0] == found[1][0]
    one, other = (scores(predictions) for _, predictions in found)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(one, scores(classified[1]), rtol=1e-3)


def test_classifier_without_our_tools(classifier, classified, data, tmp_path):
    load = dict(mmpretrain='get_model', mmcls='init_model')[CLASSIFICATION]
    result = script(
        tmp_path,
        f'from {CLASSIFICATION}.apis import {load} as load_model\n'
        f'from {CLASSIFICATION} import ImageClassificationInferencer\n'
        """
import os
import sys
import torch
from mmengine.config import Config
from toy import raw_outputs

path, checkpoint, folder, out = sys.argv[1:]
model = load_model(Config.fromfile(path), checkpoint)
images = [f'{folder}/{kind}/{i}.png' for kind in ('dark', 'grey', 'bright')
          for i in range(12)]
images = [i for i in images if os.path.exists(i)]
inferencer = ImageClassificationInferencer(path, checkpoint)
inferencer.show_progress = False  # which mmcls forgets to set
results = inferencer(images)
torch.save(dict(
    kind=type(model).__module__ + '.' + type(model).__name__,
    raw=raw_outputs(model, (96, 96)),
    scores=[r['pred_score'] for r in results]), out)
""",
        finetune_config(classifier),
        saved(classifier),
        data / 'crops',
    )
    assert result['kind'].endswith('classifiers.image.ImageClassifier')
    assert_same_tensors(result['raw'], classifier)
    found = sorted(result['scores'])
    expected = sorted(scores(classified[1]).max(1).values.tolist())
    assert found == pytest.approx(expected, rel=1e-4)


def test_generated_configs_need_nothing_else(detector):
    """The work dir can be moved; the model section names its own files."""
    config = Config.fromfile(finetune_config(detector))
    assert config.model.type == 'mmgfp.PrunedModel'
    assert Path(config.model.structure).parent == saved(detector).parent
    assert [h.type for h in config.custom_hooks] == [
        *('SaveOutputs', 'mmgfp.StructureHook')
    ]
    assert config.train_cfg.max_epochs == 1
