"""Super-resolution: a network, data from folders of pictures, and a metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DATASETS, METRICS, MODELS
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss, pixel_shuffle, relu


class Block(BaseModule):
    """Two convolutions and a shortcut; no norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(relu(self.conv1(x)))


@MODELS.register_module()
class SmallEDSR(BaseModel):
    """EDSR (Lim et al., 2017) that adds to a bicubic enlargement.

    Adding to it, as VDSR does, needs far less training. One convolution makes
    ``scale ** 2`` times as many channels, and the pixels of an enlarged
    channel are those of ``scale ** 2`` of them (pixel shuffle).

    Args:
        scale (int): Factor by which height and width grow. Defaults to 2.
        width (int): Channels of each convolution. Defaults to 32.
        blocks (int): Residual blocks. Defaults to 4.
    """

    def __init__(
        self,
        scale: int = 2,
        width: int = 32,
        blocks: int = 4,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.scale = scale
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.after = nn.Conv2d(width, width, 3, padding=1)
        self.enlarge = nn.Conv2d(width, width * scale**2, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Mapping[str, Any] | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Enlarge pictures.

        Args:
            inputs (Tensor): (N, 3, h, w), from 0 to 1.
            data_samples (Mapping, optional): ``target``, bytes
                (N, 3, scale * h, scale * w); in the mode 'predict' also
                ``folder``, the N names of the folders.
            mode (str): 'tensor', 'loss' or 'predict'. Defaults to 'tensor'.
        """
        x = self.first(inputs)
        x = x + self.after(self.blocks(x))
        x = self.last(pixel_shuffle(self.enlarge(x), self.scale))
        enlarged = x + interpolate(
            inputs, scale_factor=self.scale, mode='bicubic'
        )
        if mode == 'tensor':
            return enlarged
        if data_samples is None:
            raise ValueError(f'data_samples=None: expected a target in {mode}')
        target = data_samples['target']
        if mode == 'loss':
            return dict(loss=l1_loss(enlarged, target / 255))
        pixels = (enlarged * 255).round().clamp(0, 255)
        return [
            dict(pixels=p, target=t, folder=f)
            for p, t, f in zip(pixels, target, data_samples['folder'])
        ]


@DATASETS.register_module()
class ReducedPictures(BaseDataset):
    """Pictures, and the small ones that bicubic reduction makes of them.

    Pillow's averages over the pixels that a small one covers, as that of
    MATLAB does, with which the field's results are made.

    Args:
        folders (Sequence[str]): Have ``*.png``, in ``data_root``.
        scale (int): Factor of the reduction; pictures are cut to a multiple.
        crop (int, optional): Height and width of a part of a small picture
            that is cut out at random, and turned and mirrored at random. By
            default pictures are whole.
    """

    def __init__(
        self,
        folders: Sequence[str],
        scale: int,
        crop: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._folders = folders
        self._scale = scale
        self._crop = crop
        # pixels are not to be pickled
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """RGB pixels (H, W, 3), large and small, and the folder's name."""
        found = []
        for folder in self._folders:
            paths = sorted(Path(self.data_root, folder).glob('*.png'))
            if not paths:
                raise FileNotFoundError(
                    f'there are no pictures {Path(self.data_root, folder)}/'
                    f'*.png; expected --data-root with the folder {folder!r}'
                )
            for path in paths:
                large = np.asarray(Image.open(path).convert('RGB'))
                h, w = (n - n % self._scale for n in large.shape[:2])
                large = np.ascontiguousarray(large[:h, :w])
                small = reduced(large, self._scale)
                found.append(dict(small=small, large=large, folder=folder))
        return found

    def prepare_data(self, idx: int) -> dict[str, Any]:
        """Bytes: ``inputs`` (3, h, w) and the ``target``."""
        info = self.get_data_info(idx)
        small, large = info['small'], info['large']
        if self._crop is not None:
            small, large = self._random_part(small, large)
        return dict(
            inputs=channels_first(small),
            data_samples=dict(
                target=channels_first(large), folder=info['folder']
            ),
        )

    def _random_part(
        self, small: np.ndarray, large: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        size, scale = self._crop, self._scale
        assert size is not None
        top, left = (np.random.randint(n - size + 1) for n in small.shape[:2])
        turns, way = np.random.randint(4), np.random.choice([-1, 1])
        parts = (
            pixels[top * s : (top + size) * s, left * s : (left + size) * s]
            for pixels, s in ((small, 1), (large, scale))
        )
        one, other = (np.rot90(part, turns)[:, ::way] for part in parts)
        return one, other


def reduced(pixels: np.ndarray, scale: int) -> np.ndarray:
    """A picture of bytes (H, W, 3) at 1 / scale of its size."""
    height, width = (n // scale for n in pixels.shape[:2])
    picture = Image.fromarray(pixels)
    return np.asarray(
        picture.resize((width, height), Image.Resampling.BICUBIC)
    )


def channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@METRICS.register_module()
class PSNR(BaseMetric):
    """Peak signal-to-noise ratio of luma in dB, the mean of each folder.

    As the field measures it: on Y of ITU-R BT.601 without the border.

    Args:
        border (int): Pixels left out at each side; usually the scale.
    """

    default_prefix = 'psnr'

    def __init__(self, border: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._border = border

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the ratio of each picture."""
        for sample in data_samples:
            pair = sample['pixels'], sample['target']
            ratio = psnr(*map(luma, pair), self._border)
            self.results.append((sample['folder'], ratio))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Means by folder."""
        ratios = defaultdict(list)
        for folder, ratio in results:
            ratios[folder].append(ratio)
        return {folder: mean(found) for folder, found in ratios.items()}


def luma(pixels: Tensor) -> Tensor:
    """Y, (H, W) from 16 to 235, of RGB (3, H, W) from 0 to 255."""
    weights = pixels.new_tensor([65.481, 128.553, 24.966], dtype=torch.float64)
    return 16 + torch.einsum('c,chw->hw', weights, pixels.double()) / 255


def psnr(one: Tensor, other: Tensor, border: int) -> float:
    """In dB, of (H, W) pictures from 0 to 255 without their border."""
    inner = slice(border, -border or None)
    error = (one - other)[inner, inner].square().mean()
    return float(10 * torch.log10(255**2 / error))
