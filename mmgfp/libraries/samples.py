"""Made-up ground truth as data samples of each library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .classification import mmcls_samples, mmpretrain_samples
from .mmdet import detection_samples
from .mmpose import pose_samples
from .mmseg import segmentation_samples

_Samples = Callable[[nn.Module, Sequence[int], int], list[Any]]
_SAMPLES: dict[str, _Samples] = {
    'mmdet': detection_samples,
    'mmpretrain': mmpretrain_samples,
    'mmcls': mmcls_samples,
    'mmseg': segmentation_samples,
    'mmpose': pose_samples,
}


def demo_samples(
    library: str, model: nn.Module, shape: Sequence[int], images: int
) -> list[Any] | None:
    """Returns a data sample with ground truth for every image.

    Args:
        library (str): Result of :func:`mmgfp.libraries.models.library`.
        model (nn.Module): The model.
        shape (Sequence[int]): (H, W) of the images.
        images (int): Number of images.

    Returns:
        list | None: None if the library is not supported.
    """
    make = _SAMPLES.get(library)
    return None if make is None else make(model, shape, images)
