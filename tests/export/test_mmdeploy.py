"""MMDeploy, unchanged, exports what pruning left, as docs/deploy.md shows."""

from __future__ import annotations

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from digit_models import SHAPE, maker
from processes import ROOT, environment
from stack import require

from mmgfp.libraries.config import load_config
from mmgfp.libraries.models import load_model


@pytest.fixture(scope='module')
def cases(tmp_path_factory):
    require('mmdeploy')
    return maker(tmp_path_factory.mktemp)


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp('picture') / 'demo.png'
    blocks = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(blocks, (120, 80)))
    return path


def deploy(case, form, picture, folder, classifier: bool = False):
    """Run what docs/deploy.md shows; returns a session of ONNX Runtime."""
    onnx = pytest.importorskip('onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    text = (ROOT / 'docs/deploy.md').read_text()
    (code,) = (
        block
        for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL)
        if 'torch2onnx(' in block
    )
    config, checkpoint = case.pair(form)
    code = code.replace("'demo.jpg', 'deployed'", f'{str(picture)!r}, "."')
    code = re.sub(r"config = '.*'", f'config = {str(config)!r}', code)
    code = re.sub(r"checkpoint = '.*'", f"checkpoint = '{checkpoint}'", code)
    if classifier:
        code = re.sub(
            r"output_names=\['dets', 'labels'\]",
            "output_names=['output']",
            code,
        )
        code = re.sub(r'dets=\{.*?\}, labels=\{.*?\}', "output={0: 'b'}", code)
        code = re.sub(
            r'codebase_config=dict\(.*\)\)\)\)',
            "codebase_config=dict(type='mmpretrain', task='Classification')))",
            code,
            flags=re.DOTALL,
        )
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    path = folder / 'end2end.onnx'
    graph = onnx.load(str(path)).graph
    assert {node.domain for node in graph.node} == {''}
    return onnxruntime.InferenceSession(str(path)), path.stat().st_size


LAST = dict(
    retinanet=('retina_cls', 'retina_reg'),
    fcos=('conv_cls', 'conv_reg', 'conv_centerness'),
)


@pytest.mark.parametrize('name', LAST)
def test_what_heads_put_out(cases, picture, tmp_path, name):
    """Of the last convolutions, which MMDeploy leaves as they are."""
    import onnx
    import onnxruntime

    case = cases(name)
    deploy(case, 'generated', picture, tmp_path)
    config, checkpoint = case.pair('generated')
    model = load_model(load_config(config), checkpoint)
    expected, images = (
        [],
        torch.randn(1, 3, 256, 256, generator=torch.manual_seed(0)),
    )
    layers = [getattr(model.bbox_head, layer) for layer in LAST[name]]
    for layer in layers:
        layer.register_forward_hook(lambda *a: expected.append(a[2].numpy()))
    with torch.no_grad():
        model(images)

    network = onnx.load(str(tmp_path / 'end2end.onnx'))
    weights = {
        i.name: onnx.numpy_helper.to_array(i)
        for i in network.graph.initializer
    }
    outputs = [
        node.output[0]
        for node in network.graph.node
        for layer in layers
        if node.op_type == 'Conv'
        and np.array_equal(
            weights[node.input[1]], layer.weight.detach().numpy()
        )
    ]
    assert len(outputs) == len(expected) == 5 * len(layers)
    network.graph.output.extend(onnx.ValueInfoProto(name=o) for o in outputs)
    session = onnxruntime.InferenceSession(network.SerializeToString())
    found = session.run(outputs, {'input': images.numpy()})
    for array in expected:  # their order differs
        nearest = min(
            abs(array - other).max() / abs(array).max()
            for other in found
            if other.shape == array.shape
        )
        assert nearest < 1e-4


@pytest.mark.parametrize('name', LAST)
def test_detectors(cases, picture, tmp_path, name):
    from mmdet.structures import DetDataSample

    case = cases(name)
    session, size = deploy(case, 'generated', picture, tmp_path)
    whole = tmp_path / 'whole'
    whole.mkdir()
    assert size < 0.6 * deploy(case, 'full', picture, whole)[1]

    config, checkpoint = case.pair('generated')
    model = load_model(load_config(config), checkpoint)
    images = torch.randn(6, 3, *SHAPE, generator=torch.manual_seed(0))
    dets, labels = session.run(None, {'input': images.numpy()})
    seen = 0
    for image, boxes, classes in zip(images, dets, labels):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=SHAPE, ori_shape=SHAPE, scale_factor=(1.0, 1.0)
            )
        )
        with torch.no_grad():
            (found,) = model.predict(image[None], [sample], rescale=False)
        found = found.pred_instances
        scores = found.scores.numpy()
        # MMDetection leaves out what is empty, MMDeploy does not; so their
        # lists of the best may end at other scores
        there = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        least = max(boxes[:, 4].min(), scores.min()) + 1e-4
        there &= boxes[:, 4] > least
        boxes, classes = boxes[there], classes[there]
        assert len(boxes) == (scores > least).sum()
        np.testing.assert_allclose(
            np.sort(boxes[:, 4])[::-1], scores[: len(boxes)], rtol=1e-4
        )
        for i, label in enumerate(found.labels[: len(boxes)].numpy()):
            apart = abs(boxes[:, :4] - found.bboxes[i].numpy()).max(1)
            assert apart[classes == label].min() < 0.01
        seen += len(boxes)
    assert seen > 10


def test_classifier(cases, picture, tmp_path):
    case = cases('resnet')
    session, _ = deploy(case, 'generated', picture, tmp_path, True)
    config, checkpoint = case.pair('generated')
    model = load_model(load_config(config), checkpoint)
    images = torch.randn(3, 3, *case.shape, generator=torch.manual_seed(0))
    (found,) = session.run(None, {'input': images.numpy()})
    with torch.no_grad():
        expected = model(images).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
