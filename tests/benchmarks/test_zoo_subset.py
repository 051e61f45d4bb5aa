"""Networks of every kind, pruned at random: slim equals masked.

What ``benchmarks/zoo/zoo.py`` does with all families, for those that together
meet every rule for labels; small ones, on small images.
"""

from __future__ import annotations

import pytest
import stack
import zoo_families
import zoo_report
import zoo_trial

CONFIGS = {
    family.name: family.config for family in zoo_families.all_families()
}

# name, side of the image (None: as in the sweep), least share of the flops
# that pruning must be able to remove
DETECTION = (
    ('mmdet/centernet:dcnv2', 64, 0.98),
    ('mmdet/detr', 64, 0.58),
    ('mmdet/faster_rcnn', 64, 0.98),
    ('mmdet/fcos', 64, 0.98),
    ('mmdet/mask_rcnn', 64, 0.98),
    ('mmdet/retinanet', 64, 0.98),
    ('mmdet/rtmdet', 64, 0.98),
    ('mmdet/ssd', 128, 0.98),
    ('mmdet/yolo', 64, 0.98),
    ('mmdet/yolox', 64, 0.97),
)
CLASSIFICATION = (
    ('mmpretrain/convnext', 64, 0.92),
    ('mmpretrain/cspnet', 64, 0.98),
    ('mmpretrain/deit', None, 0.85),
    ('mmpretrain/densenet', 64, 0.98),
    ('mmpretrain/edgenext', 64, 0.83),
    ('mmpretrain/efficientnet', 64, 0.98),
    ('mmpretrain/levit', None, 0.98),
    ('mmpretrain/mobilenet_v3', 64, 0.98),
    ('mmpretrain/mobileone', 64, 0.98),
    ('mmpretrain/mobilevit', 64, 0.93),
    ('mmpretrain/poolformer', 64, 0.85),
    ('mmpretrain/regnet', 64, 0.94),
    ('mmpretrain/repvgg', 64, 0.98),
    ('mmpretrain/resnet:cifar', 32, 0.98),
    ('mmpretrain/shufflenet_v2', 64, 0.96),
    ('mmpretrain/swin_transformer', None, 0.62),
    ('mmpretrain/van', 64, 0.9),
)


def names(rows):
    return [row[0] for row in rows]


def check_family(name, side, reach, folder):
    name = name.replace('mmpretrain/', f'{stack.CLASSIFICATION}/')
    if name not in CONFIGS:
        pytest.skip(f'this stack has no {name}')
    size = None if side is None else (side, side)
    zoo_trial.prune(CONFIGS[name], folder, input_size=size)
    result = zoo_trial.check(folder)
    assert zoo_report.verdict(result) == 'ok'
    assert result['reach'] >= reach, result['frozen']


# classes, so that two processes share the work


class TestDetection:
    @pytest.mark.parametrize(
        'name, side, reach', DETECTION, ids=names(DETECTION)
    )
    def test_family(self, name, side, reach, tmp_path):
        check_family(name, side, reach, tmp_path)


class TestClassification:
    @pytest.mark.parametrize(
        'name, side, reach', CLASSIFICATION, ids=names(CLASSIFICATION)
    )
    def test_family(self, name, side, reach, tmp_path):
        check_family(name, side, reach, tmp_path)
