"""Networks of every kind, pruned at random: slim equals masked.

What ``tools/zoo.py`` does with all families, for those that together meet
every rule for labels; small ones, on small images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / 'tools'))

import zoo_families
import zoo_report
import zoo_trial

CONFIGS = {
    family.name: family.config for family in zoo_families.all_families()
}

# name, side of the image (None: as in the sweep), least share of the flops
# that pruning must be able to remove
SUBSET = (
    ('mmdet/retinanet', 64, 0.9),
    ('mmdet/fcos', 64, 0.9),
    ('mmdet/faster_rcnn', 64, 0),
    ('mmdet/centernet:dcnv2', 64, 0),
    ('mmdet/detr', 64, 0),
    ('mmdet/rtmdet', 64, 0.9),
    ('mmdet/ssd', 128, 0),
    ('mmdet/yolox', 64, 0.9),
    ('mmdet/yolo', 64, 0.9),
    ('mmpretrain/cspnet', 64, 0.5),
    ('mmpretrain/convnext_v2', 64, 0.5),
    ('mmpretrain/deit', None, 0),
    ('mmpretrain/densenet', 64, 0.5),
    ('mmpretrain/edgenext', 64, 0),
    ('mmpretrain/efficientnet', 64, 0.5),
    ('mmpretrain/hornet', 64, 0),
    ('mmpretrain/lenet', 32, 0.5),
    ('mmpretrain/levit', None, 0),
    ('mmpretrain/mlp_mixer', None, 0),
    ('mmpretrain/mobilenet_v3', 64, 0.5),
    ('mmpretrain/mobileone', 64, 0.5),
    ('mmpretrain/mobilevit', 64, 0),
    ('mmpretrain/poolformer', 64, 0),
    ('mmpretrain/regnet', 64, 0.5),
    ('mmpretrain/repvgg', 64, 0.5),
    ('mmpretrain/res2net', 64, 0.5),
    ('mmpretrain/resnet:cifar', 32, 0.9),
    ('mmpretrain/shufflenet_v1', 64, 0.5),
    ('mmpretrain/shufflenet_v2', 64, 0.5),
    ('mmpretrain/swin_transformer', None, 0),
    ('mmpretrain/van', 64, 0),
    ('mmpretrain/vgg', None, 0.5),
)


@pytest.mark.parametrize(
    'name, side, reach', SUBSET, ids=[name for name, _, _ in SUBSET]
)
def test_family(name, side, reach, tmp_path):
    size = None if side is None else (side, side)
    zoo_trial.prune(CONFIGS[name], tmp_path, input_size=size)
    result = zoo_trial.check(tmp_path)
    assert zoo_report.verdict(result) == 'ok'
    assert result['reach'] >= reach
