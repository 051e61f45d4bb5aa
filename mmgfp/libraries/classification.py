"""Code for MMPretrain, and for MMClassification before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def mmpretrain_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
    """See :func:`mmgfp.libraries.samples.demo_samples`."""
    from mmpretrain.structures import DataSample

    return _classification_samples(DataSample, shape, images)


def mmcls_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
    """See :func:`mmgfp.libraries.samples.demo_samples`."""
    from mmcls.structures import ClsDataSample

    return _classification_samples(ClsDataSample, shape, images)


def _classification_samples(
    kind: Any, shape: Sequence[int], images: int
) -> list[Any]:
    sizes = dict(img_shape=tuple(shape), ori_shape=tuple(shape))
    return [kind(metainfo=sizes).set_gt_label(0) for _ in range(images)]
