"""Made-up forwards: which one is taken, and what it leaves as it was."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from stack import CLASSIFICATION, require
from torch import nn

from mmgfp.libraries.channel_groups import (
    demo_groups,
    groups_at_some_size,
    runnable,
)
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import cost_runner, demo_runner
from mmgfp.libraries.models import build_model


class Proposing(nn.Module):
    def predict_by_feat(self, features, batch_img_metas):
        raise AssertionError('what weights propose is left to chance')


class Detector(BaseModel):
    """Takes images of some size, for some purposes only."""

    __module__ = 'mmdet.models'

    def __init__(self, least=0, modes=('tensor', 'predict', 'loss')):
        from mmdet.models import DetDataPreprocessor

        super().__init__(DetDataPreprocessor())
        self.least = least
        self.modes = modes
        self.stem = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.rpn_head = Proposing()
        self.seen = []
        self.proposals = []

    def forward(self, inputs, data_samples, mode):
        training = [m.training for m in self.children()]
        self.seen.append((mode, tuple(inputs.shape[2:]), training))
        if inputs.shape[2] < self.least:
            raise RuntimeError('Kernel size cannot be greater than input size')
        if mode not in self.modes:
            raise NotImplementedError(mode)
        x = self.drop(self.norm(self.stem(inputs)))
        if mode == 'predict':
            return x
        metas = [sample.metainfo for sample in data_samples]
        found = self.rpn_head.predict_by_feat((x,), batch_img_metas=metas)
        self.proposals = [len(boxes.bboxes) for boxes in found]
        return dict(loss=x.mean()) if mode == 'loss' else x


class Classifier(BaseModel):
    """Ends in the mean over positions."""

    __module__ = f'{CLASSIFICATION}.models'

    def __init__(self):
        super().__init__(BaseDataPreprocessor())
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)
        self.sides = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(inputs) if isinstance(inputs, list) else inputs
        self.sides.append((x.shape[-1], len(x)))
        x = self.head(self.features(self.act(self.stem(x.float()))))
        return dict(loss=x.square().mean()) if mode == 'loss' else x

    def features(self, x):
        return self.conv(x).mean((2, 3))


class Adapting(Classifier):
    """Stretches positions that it has for one size."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.rand(1, 8, 32, 32))

    def features(self, x):
        places = self.places
        if x.shape[2:] != places.shape[2:]:
            places = nn.functional.interpolate(places, x.shape[2:])
        return super().features(x + places)


class Windows(Classifier):
    """Their number grows with the image."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def features(self, x):
        tokens = x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
        tokens = tokens.permute(0, 2, 3, 4, 1).reshape(-1, 64, 8)
        mixed = self.mix(tokens).view(len(x), -1, 8).mT
        return super().features(mixed[..., None])


class OneWindow(Windows):
    """With a small image, windows cannot be told from images."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, stride=8)


class OnePosition(Classifier):
    """A small image has a single one in the end."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(16)

    def features(self, x):
        return super().features(self.pool(x))


class FixedSize(Classifier):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16 * 32 * 32, 5)

    def features(self, x):
        return self.conv(x).flatten(1)


class FixedLoss(Classifier):
    """Only the losses need the size."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = super().forward(inputs, data_samples)
        if mode == 'loss' and self.sides[-1][0] < 128:
            raise RuntimeError('an auxiliary head does not fit')
        return dict(loss=x.mean()) if mode == 'loss' else x


@pytest.fixture(autouse=True)
def mmdet():
    require('mmdet')


def modes_of(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


SHAPE = (800, 1344)


@pytest.mark.parametrize(
    ('least', 'shape'),
    [(0, (64, 64)), (65, (128, 128)), (500, (512, 512)), (600, SHAPE)],
)
def test_larger_images_where_need_be(least, shape):
    assert next(runnable(Detector(least), SHAPE, 2)) == (shape, 'tensor')


def test_no_larger_than_what_the_model_is_for():
    assert next(runnable(Detector(100), (96, 320), 2))[0] == (96, 320)
    assert next(runnable(Detector(90), (96, 320), 2))[0] == (96, 128)


def test_larger_ones_follow():
    sides = [(64, 64), (128, 128), (256, 256), (384, 384), (512, 512), SHAPE]
    assert [*runnable(Detector(65), SHAPE, 2)] == [
        (side, 'tensor') for side in sides[1:]
    ]
    assert [*runnable(Detector(modes=('loss',)), (96, 320), 2)] == [
        (side, 'loss') for side in [(64, 64), (96, 128), (96, 256), (96, 320)]
    ]


class CountsChannels(Detector):
    """Small images are scaled by the number of channels, unseen by tracing.

    Args:
        least (int): Side of the smallest image that is not scaled.
    """

    def __init__(self, least):
        super().__init__()
        self.last = nn.Conv2d(4, 2, 1)
        self.least_steady = least

    def forward(self, inputs, data_samples, mode):
        self.seen.append(inputs.shape[-1])
        x = self.stem(inputs)
        scale = x.shape[1] if x.shape[2] < self.least_steady else 1
        x = self.last(x) * scale
        return dict(loss=x.mean()) if mode == 'loss' else x


@pytest.mark.parametrize(
    ('least', 'found', 'largest'),
    [(0, 1, 64), (65, 1, 128), (129, 1, 256), (999, 0, 256)],
)
def test_a_larger_one_where_a_proof_fails(least, found, largest):
    """No fourth size is tried; the fastest of three decides."""
    model = CountsChannels(least)
    groups, size, _ = groups_at_some_size(model, runnable(model, SHAPE, 2), 2)
    assert sum(not group.frozen for group in groups) == found
    assert max(model.seen) == largest
    assert size == ((largest, largest) if found else (64, 64))
    (stem,) = (g for g in groups if g.name == 'stem')
    assert stem.frozen.startswith('fails the self-check') == (not found)
    again = demo_groups(model, SHAPE)
    assert [g.frozen for g in again] == [g.frozen for g in groups]


@pytest.mark.parametrize('side', [64, 128])
def test_proofs_fail_with_the_largest_size(side):
    model = CountsChannels(999)
    sizes = runnable(model, (side, side), 2)
    groups, size, _ = groups_at_some_size(model, sizes, 2)
    assert size == (side, side)
    (stem,) = (g for g in groups if g.name == 'stem')
    assert stem.frozen.startswith('fails the self-check')


def test_results_where_there_are_no_raw_outputs():
    model = Detector(100, modes=('predict',))
    assert next(runnable(model, SHAPE, 2)) == ((128, 128), 'predict')


def test_losses_where_there_is_nothing_else():
    model = Detector(100, modes=('loss',))
    assert next(runnable(model, SHAPE, 2)) == ((128, 128), 'loss')


@pytest.mark.parametrize(('takes', 'given'), [(1, 1), (3, 3), (4, 4), (8, 3)])
def test_colours(takes, given):
    seen = []
    model = nn.Sequential(nn.Conv2d(takes, 2, 1))
    model[0].forward = lambda x: seen.append(x.shape)
    demo_runner((8, 6), images=2)(model)
    assert seen == [(2, given, 8, 6)]


def test_classifiers_that_do_the_same_are_given_small_images():
    model = Classifier()
    assert [*runnable(model, (128, 128), 2)] == [
        ((64, 64), 'tensor'),
        ((128, 128), 'tensor'),
    ]
    assert model.sides[:3] == [(64, 1), (128, 1), (64, 2)]
    assert next(runnable(Classifier(), (64, 80), 2))[0] == (64, 80)
    assert all(not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    'net',
    [Adapting, Windows, OneWindow, OnePosition, FixedSize, FixedLoss],
    ids=lambda net: net.__name__,
)
def test_classifiers_that_do_not_are_given_whole_ones(net):
    assert [*runnable(net(), (128, 128), 2)] == [((128, 128), 'tensor')]


def test_nothing_runs():
    """Whoever runs it next shows the error."""
    model = Detector(modes=())
    assert [*runnable(model, SHAPE)] == [(SHAPE, 'tensor')]
    with pytest.raises(NotImplementedError):
        demo_runner(SHAPE)(model)


@pytest.mark.parametrize('least', [0, 10**6])
def test_modes_are_restored(least):
    model = Detector(least).train()
    model.stem.eval()
    before = modes_of(model)
    next(runnable(model, SHAPE))
    assert not any(any(t) for mode, _, t in model.seen if mode != 'loss')
    assert modes_of(model) == before


def test_modes_of_losses():
    """Training, but for what mixes images or is left to chance."""
    model = Detector().eval()
    demo_runner((64, 64), images=2, mode='loss')(model)
    ((_, _, training),) = model.seen
    modes = dict(zip((n for n, _ in model.named_children()), training))
    assert modes == dict(
        data_preprocessor=True,
        stem=True,
        norm=False,
        drop=False,
        rpn_head=True,
    )
    assert not any(modes_of(model))


def test_proposals():
    """As many as the paper counts, and few where only labels matter."""
    model = Detector().eval()
    cost_runner((64, 64))(model)
    assert model.proposals == [512]
    demo_runner((64, 64), images=2)(model)
    assert model.proposals == [4, 4]
    demo_runner((64, 64), images=2, mode='predict')(model)
    assert 'predict_by_feat' not in vars(model.rpn_head)
    model.least = 65
    with pytest.raises(RuntimeError):
        demo_runner((64, 64))(model)
    assert 'predict_by_feat' not in vars(model.rpn_head)


def test_random_state_is_left_alone():
    model = Detector().eval()
    before = torch.get_rng_state()
    demo_runner((64, 64), mode='loss')(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_level_has_rois():
    """Without an RPN only RoIs tell that the levels go together."""
    config = load_config('mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco')
    config.model.backbone.update(
        depth=18, base_channels=4, frozen_stages=-1, init_cfg=None
    )
    config.model.neck.update(in_channels=[4, 8, 16, 32], out_channels=6)
    heads = config.model.roi_head
    heads.bbox_roi_extractor.out_channels = 6
    heads.bbox_head.update(in_channels=6, fc_out_channels=7)
    groups = demo_groups(build_model(config), SHAPE)
    (found,) = (g for g in groups if 'neck.fpn_convs.0.conv' in g.producers)
    assert found.frozen == ''
    assert found.producers == [f'neck.fpn_convs.{i}.conv' for i in range(4)]
