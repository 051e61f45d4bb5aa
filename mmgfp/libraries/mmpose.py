"""Code for MMPose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn


def pose_samples(
    model: nn.Module, shape: Sequence[int], images: int
) -> list[Any]:
    """See :func:`mmgfp.libraries.samples.demo_samples`."""
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
    """Returns the training targets of a pose head, encoded by its codec."""
    if codec is None:
        return {}
    names = ('keypoints', 'keypoints_visible', *codec.auxiliary_encode_keys)
    targets = codec.encode(**{name: given.get(name) for name in names})
    for table in ('field', 'instance', 'label'):
        mapping = getattr(codec, f'{table}_mapping_table')
        if mapping:
            targets[f'{table}_mapping_table'] = mapping
    return targets
