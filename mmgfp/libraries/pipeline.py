"""Sizes of images, read from the pipelines of a config.

The names of the steps are those of MMDetection, MMPretrain, MMSegmentation,
MMPose and MMYOLO; each of these libraries may be absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from .kinds import kind_names, kind_of

# The paper counts COCO detectors at this size; MMDetection's test scale
# (1333, 800) with kept aspect ratio means about that.
COCO_SHAPE = (800, 1280)

_PHASES = ('test', 'val', 'train')

# Arguments of steps with the size of images after them: as (width, height), or
# as (height, width).
_WIDTH_FIRST = dict(
    Resize='scale',
    FixScaleResize='scale',
    YOLOv5KeepRatioResize='scale',
    LetterResize='scale',
    CenterCrop='crop_size',
    Pad='size',
    TopdownAffine='input_size',
    BottomupResize='input_size',
    BottomupRandomAffine='input_size',
)
_HEIGHT_FIRST = dict(
    ResizeEdge='scale',  # of the shorter side; taken for both
    ResizeShortestEdge='scale',
    RandomResizedCrop='scale',
    EfficientNetRandomCrop='scale',
    EfficientNetCenterCrop='crop_size',
    RandomCrop='crop_size',
    RandomCenterCropPad='crop_size',
    RandomResizedCropAndInterpolationWithTwoPic='size',
    MAERandomResizedCrop='size',
    **{
        f'torchvision/{name}': 'size'
        for name in ('Resize', 'CenterCrop', 'RandomCrop', 'RandomResizedCrop')
    },
)


def input_shape(config: Config) -> tuple[int, int]:
    """Returns (H, W) of a config's test images.

    It is the last crop, resize or padding to a size in the test pipeline,
    else in that of validation or training. MMDetection's COCO scale
    (1333, 800) with kept aspect ratio counts as :data:`COCO_SHAPE`, as in the
    paper.

    Args:
        config (Config): A config of any library.

    Raises:
        ValueError: If no pipeline has a size.
    """
    for phase in _PHASES:
        for dataset in datasets(config.get(f'{phase}_dataloader')):
            shape = _shape_after(dataset.get('pipeline'), None)
            if shape is not None:
                return shape
    raise ValueError(
        'the size of the images is not known: no known step of the test, '
        'validation or training pipeline resizes them to one size. Set '
        'input_shape=(H, W) in the pruning hook, or --shape H W of a tool'
    )


def test_dataset(config: Config) -> Mapping[str, Any]:
    """Returns the settings of the test dataset, without wrappers.

    Without a test dataset, those of validation or training; else empty.
    """
    for phase in _PHASES:
        for dataset in datasets(config.get(f'{phase}_dataloader')):
            if dataset.get('pipeline'):
                return dataset
    for phase in _PHASES:
        *_, dataset = [{}, *datasets(config.get(f'{phase}_dataloader'))]
        if dataset:
            return dataset
    return {}


def image_pipeline(config: Config) -> Sequence[Mapping[str, Any]]:
    """Returns the steps that prepare test images; empty if there are none."""
    return test_dataset(config).get('pipeline') or ()


def datasets(settings: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the datasets of a loader, each before those that it wraps."""
    if isinstance(settings, (list, tuple)):
        for item in settings:
            yield from datasets(item)
    elif isinstance(settings, Mapping):
        yield settings
        for key in ('dataset', 'datasets'):
            yield from datasets(settings.get(key))


def _shape_after(
    steps: Any, shape: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Returns (H, W) after some steps; None if it is not known.

    Args:
        steps (Any): Steps of a pipeline.
        shape (tuple, optional): (H, W) before them.
    """
    for step in steps or ():
        if isinstance(step, Mapping):
            shape = _shape_after_step(step, shape)
    return shape


def _shape_after_step(
    step: Mapping[str, Any], shape: tuple[int, int] | None
) -> tuple[int, int] | None:
    names = kind_names(step, TRANSFORMS)
    inner = step.get('transforms')
    if inner:
        # whole pipelines, of which one is run, or each makes another view
        whole = 'RandomChoice' in names or 'MultiView' in names
        inner = inner[0] if whole else _first_branch(inner)
        return _shape_after(inner, shape)
    if 'FixShapeResize' in names:
        return step['height'], step['width']
    if 'Pad' in names and step.get('pad_to_square') and shape:
        return max(shape), max(shape)
    for name in names:
        if name in _WIDTH_FIRST:
            width, height = _pair(step.get(_WIDTH_FIRST[name])) or (0, 0)
        elif name in _HEIGHT_FIRST:
            height, width = _pair(step.get(_HEIGHT_FIRST[name])) or (0, 0)
            if name == 'RandomCrop' and _is_of_mmdet(step):
                height, width = width, height
        else:
            continue
        if not height:
            return shape
        sides = {height, width}  # in any order where their ratio is kept
        if sides == {800, 1333} and step.get('keep_ratio'):
            return COCO_SHAPE
        return height, width
    return shape


def _first_branch(steps: Sequence[Any]) -> list[Any]:
    """Returns the steps inside a step; of several branches the first.

    MMCV's test-time augmentation has a list of branches for each step.
    """
    return [
        step[0] if isinstance(step, (list, tuple)) and step else step
        for step in steps
    ]


def _is_of_mmdet(step: Mapping[str, Any]) -> bool:
    module = str(getattr(kind_of(step, TRANSFORMS), '__module__', ''))
    return module.partition('.')[0] == 'mmdet'


def _pair(value: Any) -> tuple[int, int] | None:
    """Returns two numbers of pixels; None for others, as several scales."""
    pair = [value, value] if isinstance(value, int) else value
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return None
    if not all(isinstance(side, int) and side > 0 for side in pair):
        return None
    return pair[0], pair[1]
