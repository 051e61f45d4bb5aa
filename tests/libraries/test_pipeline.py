"""The size of the images that a config's pipelines make."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.registry import init_default_scope

from mmgfp.libraries import pipeline
from mmgfp.libraries.pipeline import image_pipeline, input_shape


class Resize:
    """Stands for that of a library."""


class OwnResize(Resize):
    """One of a user."""


def config(*steps: Any, phase: str = 'test', **more: Any) -> Config:
    dataset = dict(type='Any', pipeline=list(steps))
    return Config({f'{phase}_dataloader': dict(dataset=dataset), **more})


@pytest.fixture(autouse=True)
def no_library():
    init_default_scope('mmengine')


LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='Pack')
STEPS = {
    'resize': ([dict(type='Resize', scale=(96, 64))], (64, 96)),
    'scope': ([dict(type='mmwhat.Resize', scale=(96, 64))], (64, 96)),
    'list': ([dict(type='Resize', scale=[96, 64])], (64, 96)),
    'one number': ([dict(type='Resize', scale=96)], (96, 96)),
    'class': ([dict(type=Resize, scale=(96, 64))], (64, 96)),
    'subclass': ([dict(type=OwnResize, scale=(96, 64))], (64, 96)),
    'not imported': (
        [dict(type=LazyObject(__name__, 'OwnResize'), scale=(96, 64))],
        (64, 96),
    ),
    'COCO': (
        [dict(type='Resize', scale=(1333, 800), keep_ratio=True)],
        (800, 1280),
    ),
    'COCO, upright': (
        [dict(type='FixScaleResize', scale=(800, 1333), keep_ratio=True)],
        (800, 1280),
    ),
    'COCO, stretched': ([dict(type='Resize', scale=(1333, 800))], (800, 1333)),
    'crop of the middle': (
        [
            dict(type='ResizeEdge', scale=256),
            dict(type='CenterCrop', crop_size=224),
        ],
        (224, 224),
    ),
    'crop, width first': (
        [dict(type='CenterCrop', crop_size=(96, 64))],
        (64, 96),
    ),
    'EfficientNet': (
        [dict(type='EfficientNetCenterCrop', crop_size=380)],
        (380, 380),
    ),
    'fixed': ([dict(type='FixShapeResize', width=96, height=64)], (64, 96)),
    'letter box': (
        [
            dict(type='YOLOv5KeepRatioResize', scale=(640, 640)),
            dict(type='LetterResize', scale=(672, 640)),
        ],
        (640, 672),
    ),
    'padded to a size': (
        [
            dict(type='Resize', scale=(640, 320), keep_ratio=True),
            dict(type='Pad', size=(640, 640)),
        ],
        (640, 640),
    ),
    'padded to a square': (
        [
            dict(type='Resize', scale=(640, 320), keep_ratio=True),
            dict(type='Pad', pad_to_square=True),
        ],
        (640, 640),
    ),
    'padded to a multiple': (
        [dict(type='Resize', scale=64), dict(type='Pad', size_divisor=32)],
        (64, 64),
    ),
    'top-down': (
        [dict(type='TopdownAffine', input_size=(192, 256))],
        (256, 192),
    ),
    'bottom-up': (
        [dict(type='BottomupResize', input_size=(96, 64))],
        (64, 96),
    ),
    'torchvision': (
        [dict(type='torchvision/CenterCrop', size=(64, 96))],
        (64, 96),
    ),
    'augmented test': (
        [
            dict(
                type='TestTimeAug',
                transforms=[
                    [
                        dict(type='Resize', scale=64),
                        dict(type='Resize', scale=96),
                    ],
                    [dict(type='RandomFlip')],
                ],
            )
        ],
        (64, 64),
    ),
    'one of two pipelines': (
        [
            dict(
                type='RandomChoice',
                transforms=[
                    [dict(type='RandomFlip'), dict(type='Resize', scale=64)],
                    [dict(type='Resize', scale=96)],
                ],
            )
        ],
        (64, 64),
    ),
    'views': (
        [
            dict(
                type='MultiView',
                transforms=[
                    [dict(type='RandomFlip'), dict(type='Resize', scale=64)],
                    [dict(type='Resize', scale=32)],
                ],
            )
        ],
        (64, 64),
    ),
}


@pytest.mark.parametrize('name', STEPS)
def test_size_that_a_step_states(name):
    steps, shape = STEPS[name]
    assert input_shape(config(LOAD, *steps, PACK)) == shape


@pytest.mark.parametrize('phase', ['val', 'train'])
def test_another_phase_where_the_test_does_not_say(phase):
    crop = dict(type='RandomCrop', crop_size=32)
    found = config(crop, phase=phase, test_dataloader=None)
    assert input_shape(found) == (32, 32)
    found.test_dataloader = dict(dataset=dict(pipeline=[LOAD, PACK]))
    assert input_shape(found) == (32, 32)
    assert image_pipeline(found) == [LOAD, PACK]


INNER = dict(type='Inner', pipeline=[LOAD, dict(type='Resize', scale=64)])
WRAPPED = {
    'repeated': dict(type='RepeatDataset', times=2, dataset=INNER),
    'concatenated': dict(type='ConcatDataset', datasets=[INNER, INNER]),
    'both': dict(
        type='RepeatDataset', dataset=dict(type='Concat', datasets=[INNER])
    ),
    'a list': [INNER, INNER],
}


@pytest.mark.parametrize('name', WRAPPED)
def test_datasets_inside_others(name):
    found = Config(dict(test_dataloader=dict(dataset=WRAPPED[name])))
    assert input_shape(found) == (64, 64)
    assert pipeline.test_dataset(found).type == 'Inner'


def test_steps_after_those_of_a_dataset_inside():
    """As mixing several images does it."""
    outer = dict(
        type='MultiImageMixDataset',
        dataset=INNER,
        pipeline=[dict(type='Mosaic'), dict(type='Resize', scale=96)],
    )
    found = Config(dict(train_dataloader=dict(dataset=outer)))
    assert input_shape(found) == (96, 96)
    outer['pipeline'].pop()
    found = Config(dict(train_dataloader=dict(dataset=outer)))
    assert input_shape(found) == (64, 64)


@pytest.mark.parametrize(
    'steps',
    [
        [],
        [LOAD, PACK],
        [dict(type='Resize', scale_factor=0.5)],
        [dict(type='Resize', scale=[(96, 64), (64, 96)])],
        [dict(type='RandomChoiceResize', scales=[(96, 64), (64, 96)])],
        [dict(type='RandomCrop', crop_size=(0.3, 0.5))],
        [dict(type='Pad', size_divisor=32)],
        [lambda results: results],
    ],
)
def test_a_size_that_nothing_states_is_an_error(steps):
    with pytest.raises(ValueError, match=r'input_shape=\(H, W\).*--shape H W'):
        input_shape(config(*steps, default_scope='mmdet'))


def test_no_data_at_all_is_an_error():
    with pytest.raises(ValueError, match='size of the images is not known'):
        input_shape(Config(dict(model=dict(type='Any'))))
