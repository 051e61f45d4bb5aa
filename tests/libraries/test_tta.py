"""Test-time augmentation of slim networks."""

from __future__ import annotations

import copy
import uuid
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.model import BaseTTAModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from toy import ToyImages, make_config, train, validated

from mmgfp.libraries.tta import augment_test


@DATASETS.register_module(force=True)
class TwoViews(ToyImages):
    """The image and its mirror image."""

    def __getitem__(self, i):
        data = super().__getitem__(i)
        views = [data['inputs'], data['inputs'].flip(2)]
        return dict(inputs=views, labels=[data['labels']] * 2)


@MODELS.register_module(force=True)
class MeanOfViews(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return [
            dict(
                scores=sum(p['scores'] for p in some) / 2,
                label=some[0]['label'],
            )
            for some in data_samples_list
        ]


EMA = dict(type='EMAHook', update_buffers=True)


@pytest.fixture(scope='module')
def pruned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('pruned')
    train(folder, **validated())
    return folder


def outcome(config: Config, folder: Path, views: bool) -> float:
    config = copy.deepcopy(config)
    config.merge_from_dict(validated())
    config.update(
        load_from=str(folder / 'flops_0.50.pth'),
        experiment_name=uuid.uuid4().hex,
    )
    if views:
        config.model = dict(type='MeanOfViews', module=config.model)
        config.test_dataloader.dataset.type = 'TwoViews'
    return Runner.from_cfg(config).test()['toy/checksum']


@pytest.mark.parametrize('extra', [[], [EMA]], ids=['plain', 'averaged'])
def test_both_configs_give_the_mean_of_the_views(pruned, tmp_path, extra):
    config = make_config(tmp_path)
    config.custom_hooks = [*config.custom_hooks[:1], *extra]
    generated = Config.fromfile(pruned / 'flops_0.50_finetune.py')
    generated.custom_hooks = generated.custom_hooks[1:]
    one = outcome(generated, pruned, views=False)
    views = outcome(generated, pruned, views=True)
    assert abs(views - one) > 1e-3
    assert outcome(config, pruned, views=True) == pytest.approx(views)
    assert outcome(config, pruned, views=False) == pytest.approx(one)


STEPS = [dict(type='Resize', scale=8), dict(type='Pack')]


def with_data(dataset: dict, **more) -> Config:
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(type='Net'),
            test_dataloader=dict(dataset=dataset),
            **more,
        )
    )


def test_views_of_the_config_come_first():
    views = [dict(type='TestTimeAug', transforms=[])]
    config = with_data(
        dict(type='Repeat', dataset=dict(type='Any', pipeline=STEPS)),
        tta_model=dict(type='Mean', some=1),
        tta_pipeline=views,
    )
    augment_test(config)
    assert config.model == dict(type='Mean', some=1, module=dict(type='Net'))
    assert config.test_dataloader.dataset.dataset.pipeline == views
    assert 'pipeline' not in config.test_dataloader.dataset


@pytest.mark.parametrize(
    ('library', 'model', 'last'),
    [
        ('mmdet', 'mmdet.models.DetTTAModel', 'mmdet.PackDetInputs'),
        ('mmpretrain', 'mmpretrain.AverageClsScoreTTA', 'Pack'),
        ('mmcls', 'mmcls.AverageClsScoreTTA', 'Pack'),
    ],
)
def test_mirror_image_without_views(library, model, last):
    config = with_data(dict(type='Any', pipeline=STEPS))
    config.default_scope = library
    augment_test(config)
    assert config.model.type == model
    assert config.model.module == dict(type='Net')
    first, views = config.test_dataloader.dataset.pipeline
    assert first == STEPS[0]
    flips, packs = views['transforms']
    assert [flip['prob'] for flip in flips] == [1, 0]
    assert [pack['type'] for pack in packs] == [last]


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (with_data(dict(type='Any')), 'no test_dataloader with a pipeline'),
        (
            with_data(dict(type='Any', pipeline=STEPS), tta_pipeline=STEPS),
            'no tta_model; expected one',
        ),
    ],
)
def test_what_is_missing_is_named(config, message):
    config.default_scope = 'mmengine'
    with pytest.raises(ValueError, match=message):
        augment_test(config)
