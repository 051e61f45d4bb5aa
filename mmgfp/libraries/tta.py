"""Test-time augmentation, as in the tools of MMDetection and MMPretrain.

A config sets the tested views of an image (``tta_pipeline``) and the model
that merges their predictions (``tta_model``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from .mmdet import PACK_FLIPPED, TTA_MODEL
from .models import CLASSIFICATION, config_library
from .pipeline import datasets

_MODELS: dict[str, dict[str, Any]] = {
    'mmdet': TTA_MODEL,
    **{
        library: dict(type=f'{library}.AverageClsScoreTTA')
        for library in CLASSIFICATION
    },
}


def augment_test(config: Config) -> None:
    """Let a config test several views of each image.

    By default the views of a detector or classifier are the image and its
    mirror image, as in the tools of their libraries.

    Args:
        config (Config): The config of the runner, changed in place.

    Raises:
        ValueError: If the config has no test dataset, or is of another
            library and sets no views.
    """
    library = config_library(config)
    with_pipeline = (
        dataset
        for dataset in datasets(config.get('test_dataloader'))
        if dataset.get('pipeline')
    )
    dataset: Any = next(with_pipeline, None)
    if dataset is None:
        raise ValueError(
            'the config has no test_dataloader with a pipeline; expected one '
            'whose images can be tested in several views'
        )
    for key in ('tta_model', 'tta_pipeline'):
        if not config.get(key) and library not in _MODELS:
            raise ValueError(
                f'the config has no {key}; expected one, because there is no '
                f'default for {library or "this library"}'
            )
    model = config.get('tta_model') or _MODELS[library]
    views = config.get('tta_pipeline')
    dataset['pipeline'] = views or _mirrored(dataset['pipeline'], library)
    config.model = ConfigDict(model, module=config.model)


def _mirrored(
    steps: Sequence[Mapping[str, Any]], library: str
) -> list[Mapping[str, Any]]:
    *others, pack = steps
    detection = library == 'mmdet'
    flip = 'mmdet.RandomFlip' if detection else 'RandomFlip'
    ways = [
        [dict(type=flip, prob=1.0), dict(type=flip, prob=0.0)],
        [PACK_FLIPPED if detection else pack],
    ]
    return [*others, dict(type='TestTimeAug', transforms=ways)]
