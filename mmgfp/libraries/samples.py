"""Made-up ground truth, as the data samples of each library hold it.

A library is imported only where its samples are made, so each may be absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

# Boxes as shares of the image: one for every level of a pyramid.
BOXES = (
    (0.0, 0.0, 1.0, 1.0),
    (0.1, 0.2, 0.6, 0.7),
    (0.5, 0.4, 0.8, 0.9),
    (0.3, 0.3, 0.45, 0.4),
)

# Sides of proposals in pixels, as detectors share RoIs among their levels.
_SIDES = (80.0, 160.0, 320.0, 640.0)


def demo_samples(
    library: str, model: nn.Module, shape: Sequence[int], images: int
) -> list[Any] | None:
    """A data sample with ground truth for every image.

    Args:
        library (str): As :func:`mmgfp.libraries.models.library` calls it.
        model (nn.Module): That they are for.
        shape (Sequence[int]): (H, W) of the images.
        images (int): How many.

    Returns:
        list | None: None where the library is not known.
    """
    make = _SAMPLES.get(library)
    return None if make is None else make(model, shape, images)


def demo_boxes(shape: Sequence[int]) -> torch.Tensor:
    """Boxes as (left, top, right, bottom) in pixels, (4, 4)."""
    height, width = shape
    scale = torch.tensor([width, height, width, height])
    return torch.tensor(BOXES) * scale


def _large_boxes() -> torch.Tensor:
    """Boxes for every level that RoIs are read from, however small the image.

    Without a region proposal network, nothing else tells that the levels have
    the same channels.
    """
    sides = torch.tensor(_SIDES)[:, None]
    return torch.cat([torch.zeros(len(_SIDES), 2), sides, sides], 1)


def _detection_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
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
    samples = []
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
        # Fewer than are proposed, and not as many in every image: a layer that
        # is given positives only must not seem to be given all of them.
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
        samples.append(sample)
    return samples


def collated(samples: Sequence[Any]) -> dict[str, Any]:
    """Samples of MMDetection as MMYOLO's heads take them for training.

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


def _mmpretrain_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
    from mmpretrain.structures import DataSample

    return _classification_samples(DataSample, shape, images)


def _mmcls_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
    from mmcls.structures import ClsDataSample

    return _classification_samples(ClsDataSample, shape, images)


def _classification_samples(
    kind: Any, shape: Sequence[int], images: int
) -> list[Any]:
    sizes = dict(img_shape=tuple(shape), ori_shape=tuple(shape))
    return [kind(metainfo=sizes).set_gt_label(0) for _ in range(images)]


def _segmentation_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    height, width = shape
    samples = []
    for _ in range(images):
        sample = SegDataSample(
            metainfo=dict(
                img_path='demo.jpg',
                img_shape=(height, width),
                ori_shape=(height, width),
                pad_shape=(height, width),
                flip=False,
            )
        )
        blank = torch.zeros(1, height, width, dtype=torch.long)
        sample.gt_sem_seg = PixelData(data=blank)
        sample.gt_edge_map = PixelData(data=blank.clone())
        sample.gt_depth_map = PixelData(data=blank.float() + 1)
        samples.append(sample)
    return samples


def _pose_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
    from mmpose.datasets.transforms import PackPoseInputs

    height, width = shape
    size = np.array([width, height], np.float32)
    head = getattr(model, 'head', None)
    names = ('num_keypoints', 'num_joints', 'out_channels')
    counts = (getattr(head, name, None) for name in names)
    count = next((n for n in counts if isinstance(n, int)), 1)
    spread = np.linspace(0.2, 0.8, count, dtype=np.float32)
    box = np.array([[0, 0, width, height]], np.float32)
    samples = []
    for i in range(images):
        given: dict[str, Any] = dict(
            img=np.zeros((height, width, 3), np.uint8),
            img_id=i,
            img_path='demo.jpg',
            category_id=1,
            img_shape=(height, width),
            ori_shape=(height, width),
            input_size=(width, height),
            input_center=size / 2,
            input_scale=size,
            flip_indices=list(range(count)),
            bbox=box,
            bbox_score=np.ones(1, np.float32),
            area=box[:, 2] * box[:, 3],
            keypoints=spread[None, :, None] * size,
            keypoints_visible=np.ones((1, count), np.float32),
        )
        given.update(_encoded(getattr(head, 'decoder', None), given))
        samples.append(PackPoseInputs().transform(given)['data_samples'])
    return samples


def _encoded(codec: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What a pose head learns: the inverse of what it decodes."""
    if codec is None:
        return {}
    names = ('keypoints', 'keypoints_visible', *codec.auxiliary_encode_keys)
    targets = codec.encode(**{name: given.get(name) for name in names})
    for table in ('field', 'instance', 'label'):
        mapping = getattr(codec, f'{table}_mapping_table')
        if mapping:
            targets[f'{table}_mapping_table'] = mapping
    return targets


_Samples = Callable[[nn.Module, Sequence[int], int], list[Any]]
_SAMPLES: dict[str, _Samples] = {
    'mmdet': _detection_samples,
    'mmpretrain': _mmpretrain_samples,
    'mmcls': _mmcls_samples,
    'mmseg': _segmentation_samples,
    'mmpose': _pose_samples,
}
