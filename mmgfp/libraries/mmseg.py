"""Code for MMSegmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def segmentation_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
    """See :func:`mmgfp.libraries.samples.demo_samples`."""
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
