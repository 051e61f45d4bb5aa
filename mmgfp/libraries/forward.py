"""Forwards on random images, run as the model's own library does it.

Channel groups and cost are found from them, without the user's data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from mmengine.model import BaseModel
from torch import nn

from ..utils.draws import same_draws
from ..utils.modes import training
from ..utils.trees import tree_leaves
from .mmdet import BOXES, collated, demo_boxes
from .models import CLASSIFICATION, library, packages_of
from .samples import demo_samples

Mode = Literal['tensor', 'predict', 'loss']

# RoIs per image for two-stage detectors, as in the paper.
_COUNTED_PROPOSALS = 512


def cost_runner(
    shape: Sequence[int], images: int = 1
) -> Callable[[nn.Module], Any]:
    """Returns ``run(model)``, the forward that cost is counted from.

    A two-stage detector gets 512 proposals per image, as in the paper
    (Section 4.1), independent of its weights.

    Args:
        shape (Sequence[int]): (H, W).
        images (int): Images in the batch. Defaults to 1.
    """
    return demo_runner(shape, images, proposals=_COUNTED_PROPOSALS)


def demo_runner(
    shape: Sequence[int],
    images: int = 1,
    mode: Mode = 'tensor',
    proposals: int = len(BOXES),
) -> Callable[[nn.Module], Any]:
    """Returns ``run(model)``, a forward on the same random images each time.

    The images go through the model's own data preprocessor; the ground truth
    has a few boxes with masks, all of the first class.

    Args:
        shape (Sequence[int]): (H, W).
        images (int): Images in the batch. Defaults to 1.
        mode (str): 'tensor' for the network's raw outputs, 'predict' for
            results, 'loss' for the losses, with the model in training mode
            except for norms and dropout. Defaults to 'tensor'.
        proposals (int): Boxes per image that replace the proposals of an RPN,
            whose raw outputs are then outputs of the network. Not used in
            the mode 'predict'. Defaults to 4.
    """

    def run(model: nn.Module) -> Any:
        if not isinstance(model, BaseModel):
            return model(_demo_batch(model, shape, images))
        data = demo_data(model, shape, images, mode)
        with same_draws():
            if mode == 'predict':
                return model(**data)
            with _proposing(model, shape, proposals) as raw:
                if mode == 'loss':
                    with training(model):
                        return model(**data)
                outputs = model(**data)
            return (outputs, raw) if raw else outputs

    return run


def demo_data(
    model: BaseModel,
    shape: Sequence[int],
    images: int = 1,
    mode: Mode = 'tensor',
) -> dict[str, Any]:
    """Returns keyword arguments for a forward of an mmengine model.

    Args:
        model (BaseModel): A model of a library supported by
            :mod:`mmgfp.libraries.samples`, or one that takes a batch of
            images as ``inputs``.
        shape (Sequence[int]): (H, W).
        images (int): Images in the batch. Defaults to 1.
        mode (str): As in :func:`demo_runner`. Defaults to 'tensor'.
    """
    origin = library(model)
    if not origin:
        return dict(inputs=_demo_batch(model, shape, images), mode=mode)
    data: dict[str, Any] = dict(inputs=_demo_pixels(model, shape, images))
    if mode != 'tensor' or origin not in CLASSIFICATION:
        data['data_samples'] = demo_samples(origin, model, shape, images)
    with unaugmented(model.data_preprocessor, shape) as preprocess:
        if mode == 'loss' and 'mmyolo' in packages_of(type(preprocess)):
            # for training, these need what MMYOLO's collate function makes
            data = preprocess(data)
            data['data_samples'] = collated(data['data_samples'])
        else:
            data = preprocess(data, mode == 'loss')
        return dict(data, mode=mode)


def _demo_pixels(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (_colours(model), *shape)
    return [
        torch.randint(256, size, generator=generator, dtype=torch.uint8)
        for _ in range(images)
    ]


def _colours(model: nn.Module) -> int:
    """Returns the images' channels: those of the first convolution, if few."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels if module.in_channels <= 4 else 3
    return 3


def _demo_batch(
    model: nn.Module, shape: Sequence[int], images: int
) -> torch.Tensor:
    pixels = _demo_pixels(model, shape, images)
    batch = torch.stack(pixels).float() / 128 - 1
    return batch.to(next(model.parameters()).device)


@contextmanager
def unaugmented(
    preprocess: nn.Module, shape: Sequence[int] | None = None
) -> Iterator[nn.Module]:
    """Disable augmentation of training batches in a preprocessor.

    Args:
        preprocess (nn.Module): Of a model.
        shape (Sequence[int], optional): (H, W) to pad to, instead of the size
            of the training crops. Defaults to None.
    """
    wanted: dict[str, Any] = dict(batch_augments=None)
    if shape is not None:
        wanted['size'] = tuple(shape)
    before = {
        key: value
        for key in wanted
        if (value := getattr(preprocess, key, None)) is not None
    }
    # not through vars(): some are modules
    for key in before:
        setattr(preprocess, key, wanted[key])
    try:
        yield preprocess
    finally:
        for key, value in before.items():
            setattr(preprocess, key, value)


@contextmanager
def _proposing(
    model: nn.Module, shape: Sequence[int], count: int
) -> Iterator[list[Any]]:
    """Let region proposal networks propose fixed boxes.

    Random weights may propose nothing, or boxes that depend on rounding
    errors. Yields the real outputs of the networks.
    """
    raw: list[Any] = []
    head = getattr(model, 'rpn_head', None)
    heads = [
        m
        for m in (head.modules() if isinstance(head, nn.Module) else ())
        if hasattr(m, 'predict_by_feat')
    ]
    for module in heads:
        vars(module)['predict_by_feat'] = _Proposals(shape, count, raw)
    try:
        yield raw
    finally:
        for module in heads:
            del vars(module)['predict_by_feat']


class _Proposals:
    """Replaces ``predict_by_feat`` of a region proposal network."""

    def __init__(
        self, shape: Sequence[int], count: int, raw: list[Any]
    ) -> None:
        self.boxes = demo_boxes(shape).repeat(-(-count // len(BOXES)), 1)[
            :count
        ]
        self.raw = raw

    def __call__(
        self, *outputs: Any, batch_img_metas: Sequence[Any], **kwargs: Any
    ) -> list[Any]:
        from mmengine.structures import InstanceData

        self.raw.append(outputs)
        boxes = self.boxes.to(next(t for t in tree_leaves(outputs)).device)
        return [
            InstanceData(
                bboxes=boxes.clone(),
                scores=boxes.new_ones(len(boxes)),
                labels=boxes.new_zeros(len(boxes), dtype=torch.long),
            )
            for _ in batch_img_metas
        ]
