"""Code for MMDetection, and for libraries that build on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Boxes as ratios of the image: one for every level of a pyramid.
BOXES = (
    (0.0, 0.0, 1.0, 1.0),
    (0.1, 0.2, 0.6, 0.7),
    (0.5, 0.4, 0.8, 0.9),
    (0.3, 0.3, 0.45, 0.4),
)

# Sides of proposals in pixels, as detectors share RoIs among their levels.
_SIDES = (80.0, 160.0, 320.0, 640.0)

# Model that merges the views of test-time augmentation, and packing step.
TTA_MODEL = dict(
    type='mmdet.models.DetTTAModel',  # registered without scope
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)
PACK_FLIPPED = dict(
    type='mmdet.PackDetInputs',
    meta_keys=(
        *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        *('flip', 'flip_direction'),
    ),
)


def demo_boxes(shape: Sequence[int]) -> torch.Tensor:
    """Returns boxes (left, top, right, bottom) in pixels, (4, 4)."""
    height, width = shape
    scale = torch.tensor([width, height, width, height])
    return torch.tensor(BOXES) * scale


def _large_boxes() -> torch.Tensor:
    """Returns boxes for every RoI level, also for small images.

    Without a region proposal network, no other operation couples the channels
    of the levels.
    """
    sides = torch.tensor(_SIDES)[:, None]
    return torch.cat([torch.zeros(len(_SIDES), 2), sides, sides], 1)


def detection_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
    """See :func:`mmgfp.libraries.samples.demo_samples`."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    height, width = shape
    boxes = demo_boxes(shape)
    with_masks = getattr(model, 'with_mask', False) or getattr(
        model.data_preprocessor, 'pad_mask', True
    )
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    labels = torch.zeros(len(boxes), dtype=torch.long)
    found = []
    for i in range(images):
        sample = DetDataSample(
            metainfo=dict(
                img_id=i,
                img_path='demo.jpg',
                img_shape=(height, width),
                ori_shape=(height, width),
                pad_shape=(height, width),
                batch_input_shape=(height, width),
                scale_factor=(1.0, 1.0),
                border=np.array([0, height, 0, width]),
                flip=False,
                flip_direction=None,
            )
        )
        # Fewer than the proposals, and unequal numbers per image, so that a
        # layer that gets positives only does not seem to get all proposals.
        some = slice(1 + i % 2, None)
        sample.gt_instances = InstanceData(
            bboxes=boxes[some].clone(),
            labels=labels[some].clone(),
        )
        if with_masks:
            sample.gt_instances.masks = BitmapMasks(
                masks[some].copy(), height, width
            )
        sample.ignored_instances = InstanceData(
            bboxes=boxes[:0], labels=labels[:0]
        )
        proposals = torch.cat([boxes, _large_boxes()])
        sample.proposals = InstanceData(
            bboxes=proposals, scores=torch.ones(len(proposals))
        )
        sample.gt_sem_seg = PixelData(
            sem_seg=torch.zeros(1, height, width, dtype=torch.long)
        )
        found.append(sample)
    return found


def collated(samples: Sequence[Any]) -> dict[str, Any]:
    """Returns samples of MMDetection in the training format of MMYOLO.

    Returns:
        dict: ``bboxes_labels``, for every box the image, the class and the
        corners, (boxes, 6), and ``img_metas`` of every image.
    """
    rows = []
    for i, sample in enumerate(samples):
        given = sample.gt_instances
        images = torch.full_like(given.labels, i)
        numbers = torch.stack([images, given.labels], 1)
        rows.append(torch.cat([numbers, given.bboxes], 1))
    return dict(
        bboxes_labels=torch.cat(rows),
        img_metas=[sample.metainfo for sample in samples],
    )


def best_apart(boxes: Tensor, scores: Tensor, limit: float) -> Tensor:
    """Returns the boxes that overlap no better one, as in MMDetection.

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
