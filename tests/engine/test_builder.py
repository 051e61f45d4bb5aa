"""Slim networks from a config and a structure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel, PretrainedInit
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from toy import ToyClassifier, train

from mmgfp import Structure, build_pruned_model
from mmgfp.slimming.checkpoint import load_plain_checkpoint

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def pruned(tmp_path_factory) -> tuple[Path, nn.Module]:
    """What pruning left, and the network that it left it of."""
    work_dir = tmp_path_factory.mktemp('pruned')
    runner = train(work_dir, model=dict(type='ToyClassifier', dropout=0.5))
    checkpoint = load_plain_checkpoint(work_dir / 'flops_0.50.pth')
    model = runner.model
    model.load_state_dict(checkpoint['state_dict'])
    return work_dir / 'flops_0.50', model.eval()


@pytest.mark.parametrize('suffix', ['.json', '.pth'])
def test_builds_the_slim_network(pruned, suffix):
    stem, expected = pruned
    model = MODELS.build(
        dict(
            type='mmgfp.PrunedModel',
            architecture='ToyClassifier',
            structure=f'{stem}{suffix}',
            dropout=0.5,
        )
    )
    assert type(model) is ToyClassifier  # bare, no wrapper
    assert model.drop.p == 0.5  # the model's own arguments arrive
    weights = load_plain_checkpoint(f'{stem}.pth')['state_dict']
    model.load_state_dict(weights)
    with torch.no_grad():
        assert model.eval()(IMAGES).equal(expected(IMAGES))


def test_builds_in_any_scope(pruned):
    with DefaultScope.overwrite_default_scope('mmgfp'):
        model = MODELS.build(
            dict(
                type='PrunedModel',
                architecture='ToyClassifier',
                structure=f'{pruned[0]}.json',
            )
        )
    assert len(model.stem.weight) == len(pruned[1].stem.weight)


PRETRAINED = dict(checkpoint='/full/size.pth')
CONSTANT = dict(type='Constant', layer='Conv2d', val=0.25)


@pytest.mark.parametrize(
    ('given', 'left'),
    [
        (dict(type='Pretrained', **PRETRAINED), None),
        (dict(type=PretrainedInit, **PRETRAINED), None),
        (dict(type='mmengine.model.PretrainedInit', **PRETRAINED), None),
        ([CONSTANT, dict(type='Pretrained', **PRETRAINED)], [CONSTANT]),
    ],
    ids=['name', 'class', 'dotted name', 'one of several'],
)
def test_pretrained_weights_are_not_loaded(pruned, given, left):
    model = build_pruned_model(
        'ToyClassifier', f'{pruned[0]}.json', init_cfg=given
    )
    model.init_weights()  # would fail: there is no such file
    assert model.init_cfg == left


def test_other_initialisation_stays(pruned):
    model = build_pruned_model(
        ToyClassifier, f'{pruned[0]}.json', init_cfg=CONSTANT
    )
    model.init_weights()
    assert (model.stem.weight == 0.25).all()


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.json.*does not exist'):
        build_pruned_model('ToyClassifier', tmp_path / 'gone.json')


def test_structure_of_another_model(pruned):
    with pytest.raises(ValueError) as error:
        build_pruned_model('ToyClassifier', f'{pruned[0]}.json', width=16)
    assert 'does not fit ToyClassifier: layer conv1' in str(error.value)
    assert 'expected 12 along axis 0' in str(error.value)

    @MODELS.register_module(force=True)
    class Another(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Conv2d(3, 8, 3)

        def forward(self, inputs):
            return self.backbone(inputs)

    with pytest.raises(ValueError, match=r'has no conv1\.\w+ \(layer conv1\)'):
        build_pruned_model('Another', f'{pruned[0]}.json')


def test_damaged_structures(pruned, tmp_path):
    text = Path(f'{pruned[0]}.json').read_text()
    path = tmp_path / 'structure.json'

    def refused(text: str) -> str:
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            build_pruned_model('ToyClassifier', path)
        assert str(path) in str(error.value)
        return str(error.value)

    assert 'is damaged' in refused(text[:-20])
    assert 'is not a structure' in refused('{"format": "other"}')
    data = json.loads(text)
    del data['tensors']
    assert 'is damaged' in refused(json.dumps(data))
    message = refused(text.replace('"version": 1', '"version": 99'))
    assert 'version 99' in message
    assert 'reads versions 1 to 3' in message


def test_checkpoint_without_structure(tmp_path):
    path = tmp_path / 'plain.pth'
    torch.save(dict(state_dict=ToyClassifier().state_dict()), path)
    with pytest.raises(ValueError, match=r'plain\.pth holds no structure'):
        build_pruned_model('ToyClassifier', path)


def test_built_network_equals_sliced_one(pruned):
    """Built slim or cut later: the same modules."""
    built = build_pruned_model('ToyClassifier', f'{pruned[0]}.json')
    cut = ToyClassifier()
    Structure.load(f'{pruned[0]}.json').apply(cut)
    assert str(built) == str(cut)
    for (name, a), b in zip(
        built.named_parameters(), cut.parameters(), strict=True
    ):
        assert a.shape == b.shape, name
