"""Data sets of the experiments, from the folders that users have of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmgfp.files import complete


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


def read(path: Path) -> np.ndarray:
    """Pixels (H, W, 3), BGR."""
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f'{path} is no image that OpenCV reads; delete it')
    return image
