"""ONNX files, against the models that they are made from."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from digit_models import MODELS, SHAPE, Case, maker
from mmengine.config import Config
from mmengine.dataset import Compose
from processes import ROOT, run_tool
from stack import CLASSIFICATION, require

from mmgfp.export.check import CheckError, batches_of, check_file
from mmgfp.export.decoding import suppress
from mmgfp.export.onnx import (
    INPUT,
    example_images,
    make_network,
    metadata,
    write_onnx,
)
from mmgfp.libraries.config import load_config
from mmgfp.libraries.models import build_model, load_model
from mmgfp.libraries.pictures import (
    Preprocessing,
    class_names,
    read_preprocessing,
)

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

from mmgfp.commands import export as tool  # noqa: E402

DETECTORS = sorted({*MODELS} - {'resnet'})


@pytest.fixture(scope='module')
def cases(tmp_path_factory):
    return maker(tmp_path_factory.mktemp)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    """Three pictures of different sizes."""
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate([(60, 90), (96, 70), (120, 150)]):
        blocks = rng.integers(0, 256, (h // 10, w // 10, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'), cv2.resize(blocks, (w, h)))
    return folder


def export(case: Case, form: str, out: Path, *options: object) -> dict:
    """Run the tool in this process; returns its result."""
    config, checkpoint = case.pair(form)
    result = out.with_suffix('.json')
    given = [config, checkpoint, '--out', out, '--json', result, *options]
    if '--shape' not in options:
        given += ['--shape', *case.shape]
    tool.main([str(x) for x in given])
    return json.loads(result.read_text())


# -- what is written ---------------------------------------------------------


@pytest.mark.parametrize('form', ['full', 'slim', 'generated'])
@pytest.mark.parametrize('name', sorted(MODELS))
def test_raw_outputs(cases, pictures, tmp_path, name, form):
    out = tmp_path / 'model.onnx'
    result = export(cases(name), form, out, '--check', '--images', pictures)
    assert result['check']['images'] == 3
    assert max(result['check']['relative'].values()) < 1e-2
    if name != 'fcos':  # whose norm of a 1x1 level magnifies rounding
        assert max(result['check']['relative'].values()) < 1e-5
    assert result['size'] == out.stat().st_size

    # the standard's operators alone, and weights as slim as the model's
    graph = onnx.load(str(out)).graph
    assert {node.domain for node in graph.node} == {''}
    config, checkpoint = cases(name).pair(form)
    model = load_model(load_config(config), checkpoint)
    shapes = {tuple(p.shape) for p in model.parameters()}
    kernels = {tuple(i.dims) for i in graph.initializer if len(i.dims) == 4}
    assert kernels and kernels <= shapes
    assert [i.name for i in graph.input] == [INPUT]


@pytest.mark.parametrize('form', ['full', 'slim'])
@pytest.mark.parametrize('name', DETECTORS)
def test_boxes(cases, pictures, tmp_path, name, form):
    """As the model itself predicts them."""
    out = tmp_path / 'model.onnx'
    options = ['--decode', '--check', '--images', pictures]
    result = export(cases(name), form, out, *options)
    check = result['check']
    assert check['boxes'] > 30
    assert check['matched'] == check['boxes'] and not check['unmatched']
    assert result['outputs'].keys() == {'boxes', 'scores', 'labels'}
    assert result['metadata']['outputs'] == 'decoded'


@pytest.mark.parametrize('decode', [False, True])
@pytest.mark.parametrize('name', sorted(MODELS))
def test_any_size(cases, pictures, tmp_path, name, decode):
    out = tmp_path / 'model.onnx'
    options = ['--dynamic', '--check', '--images', pictures]
    if decode and name == 'resnet':
        pytest.skip('has no boxes')
    if decode:
        options.append('--decode')
    result = export(cases(name), 'slim', out, *options)
    assert result['metadata']['dynamic'] == 'true'
    # not the size that it was traced with, and three images
    session = onnxruntime.InferenceSession(str(out))
    images = np.random.default_rng(0).normal(size=(3, 3, 128, 160))
    outputs = session.run(None, {INPUT: images.astype(np.float32)})
    assert {len(x) for x in outputs} == {3}
    if decode:
        assert (outputs[0][..., 2] <= 160).all()
        assert outputs[0][..., 2].max() > 96


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn', 'resnet'])
def test_half_precision(cases, pictures, tmp_path, name):
    if torch.__version__ < '2.1':
        pytest.skip('this torch has no convolutions in half precision on CPUs')
    case = cases(name)
    single = export(case, 'slim', tmp_path / 'single.onnx')
    options = ['--half', '--check', '--images', pictures]
    half = export(case, 'slim', tmp_path / 'half.onnx', *options)
    saved = single['size'] - half['size']
    assert saved == pytest.approx(2 * single['params'], rel=0.1)
    assert half['metadata']['dtype'] == 'float16'
    (given,) = onnx.load(str(tmp_path / 'half.onnx')).graph.input
    kind = given.type.tensor_type.elem_type
    assert kind == onnx.TensorProto.FLOAT16
    if name == 'retinanet':
        out = tmp_path / 'boxes.onnx'
        check = export(case, 'slim', out, '--decode', *options)['check']
        assert check['matched'] > 0.9 * check['boxes'] > 0


@pytest.mark.parametrize('name', sorted(MODELS))
def test_files_shrink_with_the_parameters(cases, tmp_path, name):
    full = export(cases(name), 'full', tmp_path / 'full.onnx')
    slim = export(cases(name), 'slim', tmp_path / 'slim.onnx')
    assert slim['params'] < 0.6 * full['params']
    saved = full['size'] - slim['size']
    assert saved == pytest.approx(
        4 * (full['params'] - slim['params']), rel=0.1
    )


# -- metadata ----------------------------------------------------------------


def test_metadata(cases, tmp_path):
    out = tmp_path / 'model.onnx'
    export(cases('retinanet'), 'slim', out, '--shape', 60, 90)
    facts = {p.key: p.value for p in onnx.load(str(out)).metadata_props}
    assert json.loads(facts['classes']) == list('0123456789')
    assert json.loads(facts['input_size']) == [64, 96]  # padded
    assert json.loads(facts['mean']) == [127.5] * 3
    assert json.loads(facts['std']) == [64.0] * 3
    assert json.loads(facts['resize']) == dict(mode='fit')
    assert json.loads(facts['pad_size_divisor']) == 32
    assert facts['color_order'] == 'RGB'
    assert facts['layout'] == 'NCHW'
    assert facts['dtype'] == 'float32'
    assert facts['task'] == 'detection'
    assert facts['architecture'] == 'RetinaNet'
    assert facts['outputs'] == 'raw'
    assert facts['producer'].startswith('mmgfp ')


def test_names_of_classes():
    config = Config(dict(test_dataloader=dict(dataset=dict())))
    meta = dict(dataset_meta=dict(classes=('a', 'b')))
    assert class_names(config, meta, 2) == ['a', 'b']
    assert class_names(config, meta, 3) == []  # of another head
    config.metainfo = dict(classes=('c', 'd', 'e'))
    assert class_names(config, meta, 3) == ['c', 'd', 'e']


def test_names_of_coco():
    require('mmdet')
    config = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert class_names(config, {}, 80)[:2] == ['person', 'bicycle']


def through_pipeline(config: Config, path: str) -> np.ndarray:
    """The input as the config's own pipeline and model make it."""
    steps = config.test_dataloader.dataset.pipeline
    steps = [s for s in steps if s['type'] != 'LoadAnnotations']
    packed = Compose(steps)(dict(img_path=path, img_id=0))
    model = build_model(config)
    data = dict(inputs=[packed['inputs']])
    if config.default_scope == 'mmdet':
        data['data_samples'] = [packed['data_samples']]
    return model.data_preprocessor(data)['inputs'].numpy()


@pytest.mark.parametrize('number', range(3))
@pytest.mark.parametrize(
    'name',
    [
        'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
        'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
        'mmdet::ssd/ssd300_coco.py',
        f'{CLASSIFICATION}::resnet/resnet18_8xb32_in1k.py',
    ],
)
def test_preprocessing_is_that_of_the_pipeline(pictures, name, number):
    require(name.partition('::')[0])
    config = load_config(name)
    model = build_model(config)
    path = str(pictures / f'{number}.png')
    wanted = through_pipeline(config, path)
    # the shape that fits into a fixed input depends on the picture
    dynamic = 'retinanet' in name
    facts = read_preprocessing(config, model, dynamic=dynamic)
    found, _ = facts(cv2.imread(path))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_preprocessing_of_one_size():
    facts = Preprocessing(
        input_size=(64, 96),
        dynamic=False,
        resize=dict(mode='fit'),
        interpolation='bilinear',
        color_order='BGR',
        mean=[100.0] * 3,
        std=[2.0] * 3,
        pad_size_divisor=32,
        pad_value=0.0,
        pad_first=False,
    )
    picture = np.full((128, 64, 3), 110, np.uint8)
    found, factor = facts(picture)
    assert found.shape == (1, 3, 64, 96)
    assert factor == 0.5
    assert (found[..., :32] == 5).all() and (found[..., 32:] == 0).all()
    filled, _ = replace(facts, pad_value=114.0, pad_first=True)(picture)
    assert (filled[..., 32:] == 7).all()
    gray = replace(facts, color_order='GRAY', mean=[100.0], std=[2.0])
    assert gray(picture)[0].shape == (1, 1, 64, 96)


def test_padding_on_all_sides_is_refused_with_what_to_do():
    """The steps that the message names are described."""
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='YOLOv5KeepRatioResize', scale=(96, 64)),
        dict(type='mmyolo.LetterResize', scale=(96, 64), pad_val=114),
    ]
    config = Config(dict(test_dataloader=dict(dataset=dict(pipeline=steps))))
    with pytest.raises(ValueError, match='YOLOv5KeepRatioResize and Let') as e:
        read_preprocessing(config, torch.nn.Identity())
    found = re.search(r'put (dict\(.*\)) in their place', str(e.value))
    config.test_dataloader.dataset.pipeline[1:] = eval(found[1])
    facts = read_preprocessing(config, torch.nn.Identity())
    assert (facts.input_size, facts.resize) == ((64, 96), dict(mode='fit'))
    assert (facts.pad_value, facts.pad_first) == (114, True)


def test_the_documented_use(cases, pictures, tmp_path, monkeypatch, capsys):
    """The Python of docs/deploy.md, word for word."""
    out = tmp_path / 'model.onnx'
    export(cases('fcos'), 'slim', out, '--decode')
    picture = cv2.imread(str(pictures / '0.png'))
    cv2.imwrite(str(tmp_path / 'demo.jpg'), picture)
    text = (ROOT / 'docs/deploy.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    (program,) = (block for block in blocks if 'InferenceSession' in block)
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(program, scope)
    assert len(capsys.readouterr().out.splitlines()) > 0
    config = load_config(cases('fcos').config)
    facts = read_preprocessing(config, build_model(config), SHAPE)
    wanted, _ = facts(cv2.imread('demo.jpg'))
    np.testing.assert_allclose(scope['images'], wanted, atol=0.05)


def test_the_documented_quantisation(cases, pictures, tmp_path, monkeypatch):
    """Kernels of the slim network become bytes; it says about the same."""
    monkeypatch.chdir(tmp_path)
    case = cases('retinanet')
    export(case, 'slim', tmp_path / 'model.onnx')
    config = load_config(case.config)
    facts = read_preprocessing(config, build_model(config), SHAPE)
    images, _ = facts(cv2.imread(str(pictures / '0.png')))
    text = (ROOT / 'docs/deploy.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    (program,) = (block for block in blocks if 'quantize_static' in block)
    exec(program, dict(images=images))
    found = [
        onnxruntime.InferenceSession(name).run(None, {'images': images})
        for name in ('model.onnx', 'model_int8.onnx')
    ]
    weights = onnx.load('model_int8.onnx').graph.initializer
    integers = [w for w in weights if w.data_type == onnx.TensorProto.INT8]
    before = onnx.load('model.onnx').graph.initializer
    kernels = sum(np.prod(w.dims) for w in before if len(w.dims) == 4)
    assert sum(np.prod(w.dims) for w in integers) >= kernels > 10_000
    assert len(found[0]) == len(found[1]) > 0
    for single, quantised in zip(*found):
        if single.shape[-1] > 2:  # of the others, bytes tell little
            alike = np.corrcoef(single.ravel(), quantised.ravel())[0, 1]
            assert alike > 0.98


# -- checking ----------------------------------------------------------------


@pytest.fixture
def written(cases, tmp_path):
    """A file, the network in it and inputs for both."""
    config = load_config(cases('retinanet').config)
    model = load_model(config, cases('retinanet').full)
    facts = read_preprocessing(config, model, SHAPE)

    def write(decode: bool) -> tuple:
        example = example_images(facts)
        network = make_network(model, example, False, decode)
        path = tmp_path / 'model.onnx'
        write_onnx(
            network,
            example,
            path,
            metadata(network, model, facts, [], False),
        )
        return path, network, [example.numpy()]

    return write


def tamper(path: Path, name: str, factor: float) -> None:
    file = onnx.load(str(path))
    (tensor,) = (i for i in file.graph.initializer if i.name.endswith(name))
    values = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(file, str(path))


@pytest.mark.parametrize('decode', [False, True])
def test_other_weights_are_noticed(written, decode):
    path, network, inputs = written(decode)
    found = check_file(path, network, inputs)
    assert found.images == 1
    assert found.boxes > 0 or not decode
    tamper(path, 'retina_cls.weight', 1.02)
    words = 'no match' if decode else 'cls_scores_0 differs from PyTorch'
    with pytest.raises(CheckError, match=words):
        check_file(path, network, inputs)


def test_not_a_number_is_noticed(written):
    path, network, inputs = written(False)
    tamper(path, 'retina_reg.bias', np.nan)
    with pytest.raises(CheckError, match=r'bbox_preds_0 differs.* nan'):
        check_file(path, network, inputs)


def test_a_comparison_of_nothing_is_no_agreement(written):
    path, network, _ = written(False)
    with pytest.raises(CheckError, match='no images were compared'):
        check_file(path, network, [])


def test_files_that_do_not_run(written):
    path, network, inputs = written(False)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckError, match='does not run the file'):
        check_file(path, network, inputs)


def test_a_failed_check_leaves_no_file(
    cases, pictures, tmp_path, monkeypatch, capsys
):
    def wrong(*args: object) -> object:
        exported = write_onnx(*args)
        tamper(args[2], 'fc.weight', 1.1)
        return exported

    monkeypatch.setattr(tool, 'write_onnx', wrong)
    out = tmp_path / 'model.onnx'
    with pytest.raises(SystemExit) as info:
        export(cases('resnet'), 'slim', out, '--check', '--images', pictures)
    assert str(info.value).startswith('error: ')
    assert 'scores differs from PyTorch' in str(info.value)
    assert '\n' not in str(info.value)  # python prints it, with status 1
    assert not list(tmp_path.glob('model*'))


def test_noise_is_called_so(cases, tmp_path, capsys):
    out = tmp_path / 'model.onnx'
    export(cases('resnet'), 'slim', out, '--check')
    assert 'random noise (8 inputs)' in capsys.readouterr().out


def test_batches_of_two_sizes():
    inputs = [np.ones((1, 3, h, w), np.float32) for h, w in ((4, 8), (8, 4))]
    assert [b.shape for b in batches_of(inputs, True)] == [(2, 3, 8, 8)]
    assert batches_of(inputs, False) == inputs


def test_suppression_without_onnx():
    boxes = torch.tensor(
        [[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]]
    )[None].float()
    scores = torch.tensor([[0.5, 0.9, 0.7, -1.0]])
    groups = torch.tensor([[0, 0, 1, 0]])
    settings = dict(type='nms', iou_threshold=0.5)
    kept, best, labels = suppress(boxes, scores, groups, settings, 3)
    torch.testing.assert_close(best, torch.tensor([[0.9, 0.7, 0.0]]))
    assert labels.tolist() == [[0, 1, -1]]
    assert kept[0, :, 0].tolist() == [1, 0, 0]
    agnostic = dict(settings, class_agnostic=True)
    _, best, _ = suppress(boxes, scores, groups, agnostic, 3)
    torch.testing.assert_close(best, torch.tensor([[0.9, 0.0, 0.0]]))


# -- bad input ---------------------------------------------------------------


def refused(capsys, *options: object) -> str:
    with pytest.raises(SystemExit) as info:
        tool.main([str(x) for x in options])
    assert info.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_input(cases, tmp_path, capsys):
    case = cases('resnet')
    good = [case.config, case.full, '--out', tmp_path / 'model.onnx']
    text = refused(capsys, *good[:3], 'model.pth')
    assert "--out: 'model.pth': expected a file that ends in .onnx" in text
    text = refused(capsys, *good[:2], '--full-weights', case.full, *good[2:])
    assert '--full-weights needs --rounding up' in text
    text = refused(capsys, *good, '--images', tmp_path)
    assert '--images needs --check' in text
    text = refused(capsys, *good, '--check', '--images', tmp_path)
    assert 'error: there is no picture in' in text
    text = refused(capsys, *good, '--check', '--images', tmp_path / 'gone')
    assert 'error: there is no folder' in text
    text = refused(capsys, *good, '--shape', 0, 32)
    assert "--shape: '0': expected a whole number from 1" in text
    text = refused(capsys, case.config, 'gone.pth', *good[2:])
    assert 'gone.pth does not exist' in text
    text = refused(capsys, *good, '--decode')
    assert '--decode is for detectors, but ImageClassifier is' in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'name, decode, words',
    [
        ('paa/paa_r50_fpn_1x_coco', True, 'PAAHead has a predict_by_feat'),
        (
            'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
            False,
            'CascadeRoIHead has a',
        ),
        ('detr/detr_r50_8xb2-150e_coco', False, 'does not run on plain'),
        ('detr/detr_r50_8xb2-150e_coco', True, 'does not run on plain'),
    ],
)
def test_models_that_are_refused(name, decode, words):
    require('mmdet')
    config = load_config(f'mmdet::{name}.py')
    config.model.backbone.depth = 18
    config.model.backbone.init_cfg = None
    detr = 'detr' in name
    config.model.neck.in_channels = [512] if detr else [64, 128, 256, 512]
    model = build_model(config)
    with pytest.raises(ValueError, match=words):
        make_network(model, torch.randn(1, 3, 64, 64), False, decode)


def test_soft_suppression_is_refused(cases):
    config = load_config(cases('retinanet').config)
    config.model.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(ValueError, match=r'soft_nms.*ONNX has plain nms only'):
        make_network(build_model(config), torch.randn(1, 3, 64, 64), 0, True)


def test_operations_outside_of_the_standard(tmp_path):
    require('mmdet')
    config = load_config(
        'mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py'
    )
    config.model.backbone.init_cfg = None
    model = build_model(config)
    example = torch.randn(1, 3, 160, 160)
    network = make_network(model, example, False, False)
    with pytest.raises(ValueError, match='cannot be exported'):
        write_onnx(
            network,
            example,
            tmp_path / 'model.onnx',
            dict(architecture='FasterRCNN'),
        )


def test_onnx_is_missing(monkeypatch, written):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ValueError, match=r'onnx is not .*mmgfp\[export\]'):
        written(False)


def test_help_and_exit_status(cases, tmp_path):
    done = run_tool('export.py', '--help')
    assert done.returncode == 0
    assert 'standalone ONNX file' in done.stdout
    assert 'example: mmgfp export' in done.stdout
    case = cases('resnet')
    out = tmp_path / 'model.onnx'
    done = run_tool('export.py', case.generated, case.slim, '--out', out)
    assert done.returncode == 0, done.stderr
    assert 'params, input (1, 3, 32, 32)' in done.stdout
