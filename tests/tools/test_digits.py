"""The digit scenes: reproducible, described rightly, train apart from val."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'make_digits.py'


def make(out: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), '--train', '6', '--val', '4']
    return subprocess.run(
        [*command, '--out', str(out), *args], capture_output=True, text=True
    )


@pytest.fixture(scope='module')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'digits'
    result = make(out)
    assert result.returncode == 0, result.stderr
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob('*'))
        if file.is_file()
    }


def test_same_seed_gives_same_bytes(digits: Path, tmp_path: Path) -> None:
    assert make(tmp_path / 'again').returncode == 0
    assert contents(tmp_path / 'again') == contents(digits)


def test_scenes_do_not_depend_on_how_many(
    digits: Path, tmp_path: Path
) -> None:
    assert make(tmp_path / 'more', '--train', '8').returncode == 0
    few, many = contents(digits), contents(tmp_path / 'more')
    assert all(
        many[f'train/{i:06d}.png'] == few[f'train/{i:06d}.png']
        for i in range(6)
    )


def test_another_seed_gives_other_scenes(digits: Path, tmp_path: Path) -> None:
    assert make(tmp_path / 'other', '--seed', '1').returncode == 0
    name = 'train/000000.png'
    assert contents(tmp_path / 'other')[name] != contents(digits)[name]


def test_train_and_val_share_no_scan(digits: Path) -> None:
    scans = {
        split: {file.stem for file in (digits / 'cls' / split).rglob('*.png')}
        for split in ('train', 'val')
    }
    assert len(scans['train']) + len(scans['val']) == 1797
    assert not scans['train'] & scans['val']


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_and_areas_are_those_of_the_masks(
    digits: Path, split: str
) -> None:
    coco = COCO(str(digits / 'annotations' / f'{split}.json'))
    assert len(coco.anns) > len(coco.imgs)
    for note in coco.anns.values():
        mask = coco.annToMask(note)
        rows, columns = np.nonzero(mask)
        left, top, width, height = note['bbox']
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (
            columns.max() + 1,
            rows.max() + 1,
        )
        assert note['area'] == mask.sum()


def test_images_are_there(digits: Path) -> None:
    coco = json.loads((digits / 'annotations/val.json').read_text())
    for image in coco['images']:
        pixels = cv2.imread(str(digits / 'val' / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3)
    single = next((digits / 'cls/val/7').glob('*.png'))
    assert cv2.imread(str(single)).shape == (32, 32, 3)


def test_an_identical_set_is_left_alone(digits: Path) -> None:
    before = (digits / 'meta.json').stat().st_mtime_ns
    result = make(digits)
    assert 'already there' in result.stdout
    assert (digits / 'meta.json').stat().st_mtime_ns == before


def test_a_set_with_other_arguments_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / 'digits'
    assert make(out).returncode == 0
    assert make(out, '--val', '2').returncode == 0
    assert len(list((out / 'val').iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'precious.txt').write_text('kept')
    result = make(tmp_path)
    assert result.returncode == 1
    assert 'left alone' in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['precious.txt']


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    result = make(tmp_path / 'digits', '--size', '8')
    assert result.returncode == 2
    assert '--size must be at least 64, got 8' in result.stderr
