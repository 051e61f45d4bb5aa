"""How to build a model of each library, and what its config says of it.

Only this file, :mod:`mmgfp.demo` and :mod:`mmgfp.samples` know libraries;
they are imported inside functions, so each may be absent.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from .checkpoint import load_plain_checkpoint, weights_of
from .loading import load_weights
from .structure import KEY, Structure

# The paper counts COCO detectors at this size; MMDetection's test scale
# (1333, 800) with kept aspect ratio means about that.
COCO_SHAPE = (800, 1280)
IMAGENET_SHAPE = (224, 224)

# Libraries of convolutional networks, for which a small image gives the same
# channel groups, and of those that may keep to one size.
CONVOLUTIONAL = ('mmdet', 'mmseg')
CLASSIFICATION = ('mmpretrain', 'mmcls')
LIBRARIES = (*CONVOLUTIONAL, *CLASSIFICATION, 'mmpose')


def build_model(config: Config) -> nn.Module:
    """Build the model of a config, in eval mode on the CPU.

    Args:
        config (Config): Of any library; need not know of mmgfp.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    # a copy all the way down: some models write into their settings
    model_config = copy.deepcopy(config.model)
    if config.get('data_preprocessor') is not None:
        model_config.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(model_config)
    model.eval()  # some return nothing
    return model


def load_model(
    config: Config, checkpoint: str | os.PathLike | None = None
) -> nn.Module:
    """Build a model and load weights, slim ones too.

    Works for each form of a pruned network: the config it was pruned with
    (the checkpoint brings the structure), the generated one, and a network
    that was never pruned.

    Args:
        config (Config): Of any library.
        checkpoint (str | os.PathLike, optional): Weights. Defaults to None.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it cannot be read or does not fit the model.
    """
    model = build_model(config)
    if checkpoint is None:
        return model
    loaded = load_plain_checkpoint(checkpoint)
    if KEY in loaded and not _builds_slim(config):
        where = os.fspath(checkpoint)
        Structure.from_dict(loaded[KEY], where).apply(model)
    load_weights(model, weights_of(loaded, checkpoint), checkpoint)
    return model


def build_full_model(config: Config) -> nn.Module:
    """Build the network that a config's slim one was made of.

    Args:
        config (Config): A generated config, or one of a full network.
    """
    if not _builds_slim(config):
        return build_model(config)
    full = copy.deepcopy(config)
    full.model.type = full.model.pop('architecture')
    full.model.pop('structure')
    return build_model(full)


def _builds_slim(config: Config) -> bool:
    return str(config.model.type).endswith('PrunedModel')


def unwrap(model: nn.Module) -> nn.Module:
    """The user's model inside a distributed wrapper."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def library(model: nn.Module) -> str:
    """Top-level package of the model's OpenMMLab base class, or ''."""
    for base in type(model).__mro__:
        package = base.__module__.partition('.')[0]
        if package in LIBRARIES:
            return package
    return ''


def best_apart(boxes: Tensor, scores: Tensor, limit: float) -> Tensor:
    """Boxes without those that overlap a better one, as MMDetection does it.

    Args:
        boxes (Tensor): (B, 4).
        scores (Tensor): (B,).
        limit (float): Intersection over union from which boxes overlap.

    Returns:
        Tensor: (K,), their indices, best first.
    """
    from mmcv.ops import nms

    if not len(boxes):
        return scores.new_zeros(0, dtype=torch.long)
    return nms(boxes.contiguous(), scores.contiguous(), limit)[1]


def input_shape(config: Config) -> tuple[int, int]:
    """(H, W) that a config's test images have.

    Read from the test pipeline (or the training one where there is none):
    the last crop or resize. MMDetection's COCO scale (1333, 800) with kept
    aspect ratio counts as :data:`COCO_SHAPE`, as in the paper.
    """
    for phase in ('test', 'val', 'train'):
        loader = config.get(f'{phase}_dataloader') or {}
        shape = _pipeline_shape(_pipeline(loader.get('dataset') or {}))
        if shape is not None:
            return shape
    detection = config.get('default_scope') == 'mmdet'
    return COCO_SHAPE if detection else IMAGENET_SHAPE


def _pipeline(dataset: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset.get('pipeline') or ()


def _pipeline_shape(
    pipeline: Sequence[Mapping[str, Any]],
) -> tuple[int, int] | None:
    shape = None
    for step in pipeline:
        kind = str(step.get('type', '')).rpartition('.')[2]
        if kind in ('CenterCrop', 'RandomCrop') and 'crop_size' in step:
            shape = _pair(step['crop_size'])
        elif kind.startswith(('Topdown', 'Bottomup')) and 'input_size' in step:
            width, height = _pair(step['input_size'])
            shape = (height, width)
        elif kind in ('Resize', 'RandomResizedCrop') and 'scale' in step:
            width, height = _pair(step['scale'])
            shape = (height, width)
            if kind == 'Resize' and step.get('keep_ratio') and width != height:
                shape = COCO_SHAPE if shape == (800, 1333) else shape
    return shape


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[1])
