"""Predictions of a network on pictures, drawn by its library's visualizer.

The network runs as its library tests it: with the config's test pipeline and
the model's own ``test_step``. This file is independent of pruning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from matplotlib.image import imsave
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import TRANSFORMS, VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import nn

from ..libraries.kinds import kind_names, kind_of
from ..libraries.pictures import read_picture
from ..libraries.pipeline import image_pipeline
from ..utils.atomic import complete

# Pixels of a drawing's longer side: legible, and the page stays small.
SIDE = 600


def predict(
    model: nn.Module, config: Config, paths: Sequence[str]
) -> list[BaseDataElement]:
    """Returns the samples of a network's test step, one per picture.

    Args:
        model (nn.Module): A model of OpenMMLab; set to eval mode.
        config (Config): A config with a test pipeline.
        paths (Sequence[str]): Pictures.

    Raises:
        ValueError: If the config has no test pipeline, or the network
            predicts nothing.
    """
    steps = [
        step
        for step in image_pipeline(config)
        if not any(
            'Annotations' in name for name in kind_names(step, TRANSFORMS)
        )
    ]
    if not steps:
        raise ValueError('the config has no test pipeline for pictures')
    pipeline = Compose(steps)
    model.eval()
    test_step: Any = model.test_step
    found = []
    for path in paths:
        data = pipeline(dict(img_path=path, img_id=0))
        with torch.no_grad():
            (sample,) = test_step(pseudo_collate([data]))
        if not any(key.startswith('pred') for key in sample.keys()):  # noqa: SIM118
            raise ValueError('the network returns samples without predictions')
        found.append(sample)
    return found


def build_visualizer(config: Config, classes: Sequence[str]) -> Visualizer:
    """Build the visualizer of a config, without the backends of a training.

    Args:
        config (Config): A config with a visualizer.
        classes (Sequence[str]): Names by label; empty if not known.

    Raises:
        ValueError: If the config has no visualizer.
    """
    settings = dict(config.get('visualizer') or {})
    kind = kind_of(settings, VISUALIZERS) if settings else None
    if kind is None:
        raise ValueError(
            'the config has no visualizer of an installed library'
        )
    for key in ('type', '_scope_', 'vis_backends', 'save_dir', 'name'):
        settings.pop(key, None)
    # the registry would return the visualizer of a runner of the same name
    visualizer = kind(name='report', **settings)
    if classes:
        visualizer.dataset_meta = dict(classes=tuple(classes))
    return visualizer


def draw_prediction(
    visualizer: Visualizer,
    picture: str,
    sample: BaseDataElement,
    score_thr: float,
    path: str | os.PathLike,
) -> None:
    """Draw the predictions of a network on a picture, as PNG.

    Args:
        visualizer (Visualizer): From :func:`build_visualizer`.
        picture (str): Path of the picture.
        sample (BaseDataElement): From :func:`predict`.
        score_thr (float): Objects with smaller scores are not drawn.
        path (str | os.PathLike): File to write; complete or not at all.
    """
    import cv2

    # MMPretrain's visualizer has a method for each task
    draw = getattr(visualizer, 'visualize_cls', visualizer.add_datasample)
    options = dict(name='', data_sample=sample, draw_gt=False)
    if 'pred_score_thr' in signature(draw).parameters:
        options['pred_score_thr'] = score_thr
    draw(
        image=np.ascontiguousarray(read_picture(picture)[..., ::-1]), **options
    )
    pixels = visualizer.get_image()
    scale = SIDE / max(pixels.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=how)
    with complete(path) as partial:
        imsave(partial, pixels, format='png')
