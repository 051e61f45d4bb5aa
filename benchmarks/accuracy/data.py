"""Data sets of the experiments, from the folders that users have of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, FUNCTIONS
from mmpretrain.structures import DataSample

from mmgfp.utils.atomic import complete


@DATASETS.register_module()
class ImageFolders(BaseDataset):
    """Small images in a folder for each class, held in memory.

    They are decoded once and kept beside the folder (``train.npz``), and once
    more after images came or went.

    Args:
        folder (str): Has ``<class>/*.jpg`` or ``*.png``.
    """

    def __init__(self, folder: str, **kwargs: Any) -> None:
        self._folder = Path(folder)
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Pixels (H, W, 3), BGR, and the number of the class."""
        kept = self._folder.with_suffix('.npz')
        if not kept.exists() or self._changed() > kept.stat().st_mtime:
            self._decode(kept)
        with np.load(kept) as arrays:
            pairs = zip(arrays['images'], arrays['labels'])
            self._metainfo['classes'] = tuple(arrays['classes'].tolist())
            return [dict(img=i, gt_label=int(label)) for i, label in pairs]

    def _changed(self) -> float:
        """When the last image came or went; 0 if there is no folder."""
        classes = self._folder.glob('*/')
        return max((path.stat().st_mtime for path in classes), default=0.0)

    def _decode(self, kept: Path) -> None:
        classes = sorted(p.name for p in self._folder.glob('*') if p.is_dir())
        if not classes:
            raise FileNotFoundError(
                f'there are no folders of classes in {self._folder}; expected '
                '--data-root with train/<class>/*.jpg and test/<class>/*.jpg'
            )
        files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((self._folder / name).glob('*.*'))
        ]
        images = [read(path) for path, _ in files]
        with complete(kept) as partial, open(partial, 'wb') as file:
            np.savez(
                file,
                images=np.stack(images),
                labels=np.array([label for _, label in files]),
                classes=np.array(classes),
            )

    def prepare_data(self, idx: int) -> Any:
        """The pipeline gets a copy that it may change."""
        info = self.get_data_info(idx)
        info['img'] = info['img'].copy()
        info['img_shape'] = info['ori_shape'] = info['img'].shape[:2]
        return self.pipeline(info)


@DATASETS.register_module()
class CroppedBatches(ImageFolders):
    """Batches for training, made at once: a GPU would wait for single images.

    As ``RandomCrop`` and ``RandomFlip`` would do it; a loader needs
    ``collate_fn=dict(type='as_it_is')``.

    Args:
        padding (int): Black pixels around an image, before one of its size is
            cropped at random.
    """

    def __init__(self, folder: str, padding: int, **kwargs: Any) -> None:
        self._padding = padding
        # they are read from an array of their own
        super().__init__(folder, serialize_data=False, **kwargs)

    def full_init(self) -> None:
        """Also put all pixels into one array."""
        super().full_init()
        side = self._padding
        images = np.stack([info['img'] for info in self.data_list])
        around = ((0, 0), (side, side), (side, side), (0, 0))
        self._images = np.pad(images, around)
        self._labels = torch.tensor([i['gt_label'] for i in self.data_list])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Inputs (N, 3, H, W), and one sample that has the labels of all.

        Losses put the labels of samples together, whoever has them.
        """
        side = self._padding
        height, width = (size - 2 * side for size in self._images.shape[1:3])
        corners = np.random.randint(0, 2 * side + 1, (len(indices), 2))
        ways = np.random.choice([-1, 1], len(indices))  # mirrored or not
        crops = [
            self._images[i, top : top + height, left : left + width][:, ::way]
            for i, (top, left), way in zip(indices, corners, ways)
        ]
        # channels are last in memory, as the network wants them
        inputs = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        labels = self._labels[torch.as_tensor(indices)]
        sample = DataSample().set_gt_label(labels)
        return dict(inputs=inputs, data_samples=[sample])


@FUNCTIONS.register_module()
def as_it_is(batch: Any) -> Any:
    """For a dataset that makes batches."""
    return batch


def read(path: Path) -> np.ndarray:
    """Pixels (H, W, 3), BGR."""
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f'{path} is no image that OpenCV reads; delete it')
    return image
