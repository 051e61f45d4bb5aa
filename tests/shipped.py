"""The shipped configs."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from processes import ROOT
from stack import require

from mmgfp.libraries.config import load_config

CONFIGS = ROOT / 'configs'
CLASSIFIERS = (
    *('resnet50', 'resnext50', 'mobilenet', 'regnetx', 'resnet18', 'vgg16'),
)


def load(name: str | Path) -> Config:
    """Load a config, a shipped one or what it is based on."""
    stem = Path(name).stem.replace('-', '_')
    words = stem
    for phase in ('prune_', 'finetune_', 'sparsify_', 'search_'):
        words = words.removeprefix(phase)
    if words.startswith(CLASSIFIERS):
        require('mmpretrain')
    else:
        require('mmseg' if words.startswith('fcn') else 'mmdet')
    return load_config(name)


def all_configs() -> list[Path]:
    return [
        file
        for file in sorted(CONFIGS.rglob('*.py'))
        if '_base_' not in file.parts
    ]


def pruning_configs() -> list[Path]:
    """Of every model one: the others prune the same network."""
    return [
        path
        for path in all_configs()
        if path.name.startswith('prune_')
        and not any(other in path.name for other in ('_flops_', '_nap'))
    ]
