"""What two networks say about the same pictures, side by side.

Runs them as their library tests them: the config's test pipeline, the model's
own ``test_step``. Knows boxes and classes, nothing of pruning.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import TRANSFORMS
from torch import nn

from ..libraries.kinds import kind_names
from ..libraries.pictures import read_picture
from ..libraries.pipeline import image_pipeline
from .figures import CYCLE, new_figure, save_figure


@dataclass(frozen=True, eq=False)
class Prediction:
    """Objects that a network sees in a picture, or the class it gives it.

    Attributes:
        scores (np.ndarray): (K,), from large to small; one for a class.
        labels (np.ndarray): (K,) indices of classes.
        boxes (np.ndarray | None): (K, 4) left, top, right, bottom in pixels
            of the picture; None for a class.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None


def predict(
    model: nn.Module, config: Config, paths: Sequence[str]
) -> list[Prediction]:
    """What a network says about pictures, as its library would test it.

    Args:
        model (nn.Module): Of MMDetection or MMPretrain; is put into
            evaluation mode.
        config (Config): Has the test pipeline.
        paths (Sequence[str]): Pictures.

    Raises:
        ValueError: If it tells neither boxes nor a class.
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
        found.append(_prediction(sample))
    return found


def _prediction(sample: Any) -> Prediction:
    instances = getattr(sample, 'pred_instances', None)
    if instances is not None and 'bboxes' in instances:
        order = instances.scores.argsort(descending=True)
        return Prediction(
            instances.scores[order].cpu().numpy(),
            instances.labels[order].cpu().numpy(),
            instances.bboxes[order].cpu().numpy(),
        )
    label = getattr(sample, 'pred_label', None)
    if label is None:
        raise ValueError(
            'the network predicts neither boxes nor a class, and other '
            'predictions are not drawn'
        )
    # MMClassification puts both into one object
    scores = getattr(label, 'score', None)
    scores = sample.pred_score if scores is None else scores
    index = torch.as_tensor(getattr(label, 'label', label)).reshape(-1)[:1]
    return Prediction(scores.cpu()[index].numpy(), index.numpy(), None)


def draw_predictions(
    picture: str,
    predictions: Mapping[str, Prediction],
    classes: Sequence[str],
    score_thr: float,
    path: str | os.PathLike,
) -> None:
    """One picture per network with what it predicts, as PNG.

    Args:
        picture (str): Path of the picture.
        predictions (Mapping): Name of each network -> its prediction.
        classes (Sequence[str]): Names by label; empty if not known.
        score_thr (float): Boxes of smaller scores are left out.
        path (str | os.PathLike): Where to write; complete or not at all.
    """
    pixels = read_picture(picture)[..., ::-1]
    height, width = pixels.shape[:2]
    side = 2.8  # inches
    figure = new_figure(
        side * len(predictions), 0.15 + side * min(2.0, height / width)
    )
    for axes, (name, prediction) in zip(
        figure.subplots(1, len(predictions), squeeze=False)[0],
        predictions.items(),
    ):
        axes.imshow(pixels)
        axes.axis('off')
        axes.set_title(name, fontsize=9, loc='left')
        if prediction.boxes is None:
            label, score = prediction.labels[0], prediction.scores[0]
            axes.set_title(
                f'{name}: {class_name(classes, label)} {score:.2f}',
                fontsize=9,
                loc='left',
            )
        else:
            _draw_boxes(axes, prediction, classes, score_thr)
    save_figure(figure, path)


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class, or its number where names are not known."""
    return classes[label] if label < len(classes) else f'class {label}'


def _draw_boxes(
    axes: Axes,
    prediction: Prediction,
    classes: Sequence[str],
    score_thr: float,
) -> None:
    assert prediction.boxes is not None
    height, width = axes.get_images()[0].get_size()
    # about what a label needs, in pixels of the picture
    label_height = 0.06 * max(height, width)
    for box, score, label in zip(
        prediction.boxes, prediction.scores, prediction.labels
    ):
        if score < score_thr:
            continue
        left, top, right, bottom = box
        colour = CYCLE[label % len(CYCLE)]
        axes.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                edgecolor=colour,
                linewidth=1.5,
            )
        )
        axes.text(
            left,
            top,
            f'{class_name(classes, label)} {score:.2f}',
            fontsize=7,
            color='white',
            # inside the box where there is no room above it
            va='bottom' if top >= label_height else 'top',
            clip_on=True,
            bbox=dict(facecolor=colour, edgecolor='none', pad=0.8),
        )
