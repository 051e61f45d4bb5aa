"""Preprocessing of images, read from a config.

The settings are plain values that an exported file can hold.
:class:`Preprocessing` applies them like the library's own pipeline. This file
is independent of ONNX.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from torch import nn

from .kinds import kind_names, kind_of
from .pipeline import image_pipeline, input_shape, test_dataset

# Steps of a pipeline that resize the image.
_RESIZING = ('Resize', 'ResizeEdge', 'CenterCrop', 'EfficientNetCenterCrop')
# MMYOLO's: made of Resize, but they pad on all sides.
_PADDING_ALL_SIDES = ('YOLOv5KeepRatioResize', 'LetterResize')

_PICTURES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


@dataclass(frozen=True)
class Preprocessing:
    """Turns an image into normalised floats (1, C, H, W).

    Attributes:
        input_size (tuple): (H, W) of the input in pixels; of a dynamic
            network the usual one.
        dynamic (bool): Whether the network takes other sizes, too.
        resize (dict): ``mode`` is one of: ``stretch`` to the input size;
            ``fit`` into it and keep the ratio of the sides; ``fit_edges``:
            keep the ratio, the longer side at most ``long`` and the shorter
            at most ``short`` pixels; ``crop``: the shorter side becomes
            ``short`` pixels, then the middle of the input size is cut out.
        interpolation (str): OpenCV's name of the interpolation.
        color_order (str): Order of channels: ``RGB``, ``BGR`` or ``GRAY``.
        mean (list): Subtracted from each channel of an image of bytes.
        std (list): Divides each channel after that.
        pad_size_divisor (int): Height and width are multiples of it.
        pad_value (float): Value of the padding at the right and the bottom.
        pad_first (bool): Whether padding comes before the normalisation.
    """

    input_size: tuple[int, int]
    dynamic: bool
    resize: dict[str, Any]
    interpolation: str
    color_order: str
    mean: list[float]
    std: list[float]
    pad_size_divisor: int
    pad_value: float
    pad_first: bool

    def to_metadata(self) -> dict[str, str]:
        """Returns strings by name; JSON except colour order and names."""
        return {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in asdict(self).items()
        }

    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, float]:
        """Prepare one picture.

        Args:
            picture (np.ndarray): (h, w, 3), bytes, BGR as OpenCV reads it.

        Returns:
            tuple: Floats (1, C, H, W), and the scale of the height. Boxes
            divided by it are in pixels of the picture, unless the mode is
            ``stretch`` or ``crop``.
        """
        resized = self._resize(picture)
        factor = resized.shape[0] / picture.shape[0]
        pixels = self._colours(resized)
        if self.pad_first:
            pixels = self._pad(pixels)
        mean, std = (np.array(x, np.float32) for x in (self.mean, self.std))
        pixels = (pixels - mean) / std
        if not self.pad_first:
            pixels = self._pad(pixels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), factor

    def _resize(self, picture: np.ndarray) -> np.ndarray:
        h, w = picture.shape[:2]
        height, width = self.input_size
        mode = self.resize['mode']
        if mode == 'crop':
            short = self.resize['short']
            size = (
                (short, int(short * h / w))
                if w < h
                else (int(short * w / h), short)
            )
            larger = self._scaled(picture, *size)
            top = max(0, round((larger.shape[0] - height) / 2))
            left = max(0, round((larger.shape[1] - width) / 2))
            return larger[top : top + height, left : left + width]
        if mode == 'stretch':
            return self._scaled(picture, width, height)
        if mode == 'fit':
            factor = min(height / h, width / w)
        else:
            long, short = self.resize['long'], self.resize['short']
            factor = min(long / max(h, w), short / min(h, w))
        return self._scaled(
            picture, int(w * factor + 0.5), int(h * factor + 0.5)
        )

    def _scaled(
        self, picture: np.ndarray, width: int, height: int
    ) -> np.ndarray:
        import cv2

        flag = getattr(cv2, f'INTER_{_CV2.get(self.interpolation, "LINEAR")}')
        return cv2.resize(picture, (width, height), interpolation=flag)

    def _colours(self, picture: np.ndarray) -> np.ndarray:
        if self.color_order == 'GRAY':
            import cv2

            picture = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None]
        elif self.color_order == 'RGB':
            picture = picture[..., ::-1]
        return picture.astype(np.float32)

    def _pad(self, pixels: np.ndarray) -> np.ndarray:
        h, w = pixels.shape[:2]
        height, width = self.input_size
        if self.dynamic:
            height, width = round_up((h, w), self.pad_size_divisor)
        edges = ((0, height - h), (0, width - w), (0, 0))
        return np.pad(pixels, edges, constant_values=self.pad_value)


_CV2 = dict(
    nearest='NEAREST',
    bilinear='LINEAR',
    bicubic='CUBIC',
    area='AREA',
    lanczos='LANCZOS4',
)


def round_up(shape: Sequence[int], divisor: int) -> tuple[int, int]:
    """Returns the next (H, W) that are multiples of a divisor."""
    height, width = (-(-side // divisor) * divisor for side in shape)
    return height, width


def read_preprocessing(
    config: Config,
    model: nn.Module,
    shape: Sequence[int] | None = None,
    dynamic: bool = False,
) -> Preprocessing:
    """Read the preprocessing from a config and its model.

    Args:
        config (Config): A config of any library.
        model (nn.Module): The model built from it.
        shape (Sequence[int], optional): (H, W) instead of the size of the
            config's test images; sides are rounded up to multiples of the
            model's padding. Defaults to None.
        dynamic (bool): Whether the network accepts any size. Defaults to
            False.

    Raises:
        ValueError: If a side is not positive, the size is not known, or a
            step of the pipeline cannot be described.
    """
    steps = image_pipeline(config)
    last = {
        name: step for step in steps for name in kind_names(step, TRANSFORMS)
    }
    wanted = shape or input_shape(config)
    _check_padding(last, wanted)
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    divisor = int(getattr(preprocessor, 'pad_size_divisor', 1) or 1)
    if min(wanted) < 1:
        raise ValueError(
            f'input size {tuple(wanted)}: expected positive height and '
            'width in pixels'
        )
    size = round_up(wanted, divisor)
    gray = last.get('LoadImageFromFile', {}).get('color_type') == 'grayscale'
    swapped = getattr(
        preprocessor,
        '_channel_conversion',
        getattr(preprocessor, 'to_rgb', False),
    )
    channels = 1 if gray else 3
    mean, std = [0.0] * channels, [1.0] * channels
    if getattr(preprocessor, '_enable_normalize', False):
        mean = preprocessor.mean.flatten().tolist()
        std = preprocessor.std.flatten().tolist()
    pad_value: Any = getattr(preprocessor, 'pad_value', 0)
    if 'Pad' in last:
        pad_value = last['Pad'].get('pad_val', 0)
        if isinstance(pad_value, Mapping):
            pad_value = pad_value.get('img', 0)
        if isinstance(pad_value, Sequence):
            pad_value = pad_value[0]
    resizing = [last[kind] for kind in _RESIZING if kind in last]
    return Preprocessing(
        input_size=size,
        dynamic=dynamic,
        resize=_resize_rule(last, shape, size, dynamic),
        interpolation=next(
            (s['interpolation'] for s in resizing if 'interpolation' in s),
            'bilinear',
        ),
        color_order='GRAY' if gray else 'RGB' if swapped else 'BGR',
        mean=mean,
        std=std,
        pad_size_divisor=divisor,
        pad_value=float(pad_value),
        pad_first='Pad' in last,
    )


def _check_padding(
    last: Mapping[str, Mapping[str, Any]], shape: Sequence[int]
) -> None:
    """Raise if a pipeline pads in a way that metadata cannot describe."""
    found = [name for name in _PADDING_ALL_SIDES if name in last]
    if found:
        height, width = shape
        size = f'({width}, {height})'
        raise ValueError(
            f'the test pipeline of the config has {" and ".join(found)}, '
            'so that pictures are padded on all sides; expected padding at '
            'the right and the bottom, which an exported file can describe. '
            "In a copy of the config, put dict(type='mmdet.Resize', "
            f'scale={size}, keep_ratio=True), '
            f"dict(type='mmdet.Pad', size={size}, "
            'pad_val=dict(img=(114, 114, 114))) in their place'
        )


def _resize_rule(
    last: Mapping[str, Mapping[str, Any]],
    shape: Sequence[int] | None,
    size: tuple[int, int],
    dynamic: bool,
) -> dict[str, Any]:
    """Returns the resize settings of :class:`Preprocessing`."""
    if 'ResizeEdge' in last and 'CenterCrop' in last:
        crop = last['CenterCrop']['crop_size']
        crop = crop if isinstance(crop, int) else min(crop)
        short = last['ResizeEdge']['scale'] * min(size) / crop
        return dict(mode='crop', short=round(short))
    if 'EfficientNetCenterCrop' in last:
        # it cuts out first, and makes that as large as the input
        crop = last['EfficientNetCenterCrop']
        more = crop.get('crop_padding', 32) / crop['crop_size']
        return dict(mode='crop', short=round((1 + more) * min(size)))
    resize = last.get('Resize', {})
    if not resize.get('keep_ratio', False):
        return dict(mode='stretch')
    scale = shape if shape else resize.get('scale', size)
    if not dynamic or isinstance(scale, (int, float)):
        return dict(mode='fit')
    return dict(mode='fit_edges', long=max(scale), short=min(scale))


def class_names(
    config: Config, meta: Mapping[str, Any], count: int | None
) -> list[str]:
    """Returns the names of the classes, by index.

    Names in the checkpoint, which belong to the weights, come first; then
    those in the config, then those of the config's type of dataset.

    Args:
        config (Config): A config of any library.
        meta (Mapping): Entry ``meta`` of the checkpoint.
        count (int, optional): Number of classes of the model; names of
            another number are not used.

    Returns:
        list: Empty if no names fit.
    """
    dataset = test_dataset(config)
    kind = kind_of(dataset, DATASETS) if 'type' in dataset else None
    sources: list[Any] = [
        meta.get('dataset_meta'),
        dataset.get('metainfo'),
        dataset,  # MMPretrain's CustomDataset
        config.get('metainfo'),
        getattr(kind, 'METAINFO', None),
    ]
    for source in sources:
        if not isinstance(source, Mapping):
            continue
        names = source.get('classes', source.get('CLASSES'))
        if isinstance(names, (list, tuple)) and count in (None, len(names)):
            return [str(name) for name in names]
    return []


def dataset_pictures(config: Config, most: int) -> list[str]:
    """Returns paths of images of the config's test dataset.

    Args:
        config (Config): A config of any library.
        most (int): Largest number of paths, spread over the dataset.

    Returns:
        list: Empty if the dataset is not on this machine, or has no paths.
    """
    loader = config.get('test_dataloader') or {}
    if not loader.get('dataset'):
        return []
    try:
        dataset = DATASETS.build(loader['dataset'])
    except (FileNotFoundError, NotADirectoryError):
        return []
    if not hasattr(dataset, 'get_data_info'):  # not one of mmengine's
        return []
    step = max(1, len(dataset) // most)
    indices = range(0, len(dataset), step)[:most]
    found = (dataset.get_data_info(i) for i in indices)
    return [info['img_path'] for info in found if 'img_path' in info]


def folder_pictures(folder: str | os.PathLike, most: int) -> list[str]:
    """Returns paths of the first images in a folder, by name.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no picture in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'there is no folder {os.fspath(folder)!r}')
    paths = sorted(Path(folder).iterdir())
    found = [str(p) for p in paths if p.suffix.lower() in _PICTURES][:most]
    if not found:
        raise ValueError(
            f'there is no picture in {os.fspath(folder)!r}; expected files '
            f'that end in {", ".join(_PICTURES)}'
        )
    return found


def read_picture(path: str) -> np.ndarray:
    """Returns an image as bytes (h, w, 3), BGR.

    Raises:
        ValueError: If it cannot be read.
    """
    import cv2

    picture = cv2.imread(path, cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f'the picture {path} cannot be read')
    return picture
