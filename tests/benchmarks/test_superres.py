"""Super-resolution in the comparison of methods, on a few made-up pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from oracles import masked_is_slim
from processes import ROOT
from stack import CLASSIFICATION

from mmgfp import Structure
from mmgfp.libraries.channel_groups import demo_groups
from mmgfp.libraries.forward import demo_runner
from mmgfp.libraries.models import build_model, load_model
from mmgfp.slimming.surgery import cut_model

if CLASSIFICATION != 'mmpretrain':
    pytest.skip('the experiments need mmpretrain', allow_module_level=True)

HARNESS = ROOT / 'benchmarks' / 'accuracy'
sys.path.append(str(HARNESS))

import methods  # noqa: E402
import superres  # noqa: E402

LIST = HARNESS / 'configs' / '_methods' / 'superres.py'
NAMES = list(Config.fromfile(LIST, import_custom_modules=False).experiments)


def test_psnr_reckoned_by_hand():
    dark = torch.full((3, 8, 9), 100, dtype=torch.uint8)
    light = dark + 10
    light[:, :2] = light[:, -2:] = light[:, :, :2] = light[:, :, -2:] = 255
    # Y of grey goes from 16 to 235: 10 steps of RGB are 10 * 219 / 255 of Y
    expected = 20 * np.log10(255 / (10 * 219 / 255))
    metric = superres.PSNR(border=2)
    for other, folder in ((light, 'a'), (dark + 1, 'b'), (dark + 10, 'a')):
        metric.process(
            None, [dict(pixels=dark.float(), target=other, folder=folder)]
        )
    found = metric.evaluate(3)
    assert found == {
        'psnr/a': pytest.approx(expected),
        'psnr/b': pytest.approx(expected + 20),
    }
    # one colour alone
    red = dark.clone()
    red[0] += 20
    pair = superres.luma(dark), superres.luma(red)
    assert superres.psnr(*pair, 0) == pytest.approx(
        20 * np.log10(255 / (20 * 65.481 / 255))
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Smooth pictures in the folders of the list."""
    folder = tmp_path_factory.mktemp('superres')
    rng = np.random.default_rng(0)
    for name, count in dict(t91=16, set5=2, set14=2).items():
        (folder / name).mkdir()
        for i in range(count):
            coarse = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
            # with sides that are no multiples of 2
            picture = cv2.resize(coarse, (39, 37))
            cv2.imwrite(str(folder / name / f'{i}.png'), picture)
    return folder


def test_a_part_is_the_reduced_part(folder):
    np.random.seed(0)
    dataset = superres.ReducedPictures(
        folders=['t91', 'set5'], scale=2, crop=12, data_root=str(folder)
    )
    assert len(dataset) == 18
    for sample in (dataset[i] for i in range(18)):
        small, large = sample['inputs'], sample['data_samples']['target']
        assert small.shape == (3, 12, 12) and large.shape == (3, 24, 24)
        again = superres.reduced(large.permute(1, 2, 0).numpy(), 2)
        again = torch.from_numpy(again.copy()).permute(2, 0, 1)
        # pixels at the border of a part were made with those around it
        inner = slice(2, -2)
        difference = (again.int() - small.int())[:, inner, inner]
        assert difference.abs().max() <= 1
    assert dataset[17]['data_samples']['folder'] == 'set5'


def test_whole_pictures_are_cut_to_a_multiple(folder):
    dataset = superres.ReducedPictures(
        folders=['set14'], scale=2, data_root=str(folder)
    )
    sample = dataset[0]
    assert sample['inputs'].shape == (3, 18, 19)
    assert sample['data_samples']['target'].shape == (3, 36, 38)


def test_folders_without_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder 'set5'"):
        superres.ReducedPictures(
            folders=['set5'], scale=2, data_root=str(tmp_path)
        )


@pytest.mark.parametrize('scale', [2, 3])
def test_slim_equals_masked(scale):
    """Channels that a pixel shuffle puts into one go together."""
    torch.manual_seed(0)
    model = superres.SmallEDSR(scale=scale, width=6, blocks=2).eval()
    groups = demo_groups(model, (10, 12))
    sizes = {group.name: group.size for group in groups if not group.frozen}
    assert sizes == dict.fromkeys(
        ['first', 'blocks.0.conv1', 'blocks.1.conv1', 'enlarge'], 6
    )
    run = demo_runner((10, 12), images=2)
    masked_is_slim(model, groups, run, cut_model)


@pytest.fixture(scope='module')
def narrow(folder):
    """The list with a network and a schedule of a few iterations."""
    path = folder / 'narrow.py'
    path.write_text(
        f'_base_ = [{str(LIST)!r}]\n'
        'model = dict(width=8, blocks=1)\n'
        'train_dataloader = dict(batch_size=8, dataset=dict(crop=8))\n'
        'input_shape = (16, 16)\n'
        'baseline = dict(epochs=1)\n'
        'prune = dict(epochs=6)\n'
        'finetune = dict(epochs=1)\n'
        'experiments = {\n'
        '    name: dict(prune=dict(interval=1, input_shape=input_shape))\n'
        '    for name in _base_.experiments if name != "unpruned"\n'
        '}\n'
    )
    return path


@pytest.mark.parametrize('name', NAMES)
def test_every_method_runs(name, folder, narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, 'LISTS', folder)
    methods.main(
        [
            *('narrow', '--data-root', str(folder), '--filter', name),
            *('--seeds', '0', '--out', str(tmp_path)),
            *('--work-dir', str(tmp_path / 'work')),
        ]
    )
    result = json.loads((tmp_path / 'narrow.jsonl').read_text())
    for metrics in (result['baseline'], result['pruned'], result['finetuned']):
        assert metrics.keys() == {'psnr/set5', 'psnr/set14'}
    if name == 'unpruned':
        assert result['shares']['flops'] == 1
        return
    assert 0.3 < result['shares']['flops'] <= 0.5
    files = tmp_path / 'work' / 'narrow' / f'{name}_seed0' / 'prune'
    check_files(files, narrow)


def check_files(folder: Path, full: Path) -> None:
    """The three ways to load what pruning saved give the same network."""
    stem = folder / 'flops_0.50'
    plain = load_model(Config.fromfile(full), f'{stem}.pth')
    generated = Config.fromfile(f'{stem}_finetune.py')
    from_config = load_model(generated, f'{stem}.pth')
    built = build_model(Config.fromfile(full))
    Structure.load(f'{stem}.json').apply(built)
    built.load_state_dict(plain.state_dict())
    pixels = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        expected = plain(pixels)
        for model in (from_config, built):
            torch.testing.assert_close(model(pixels), expected)
