"""Scores of layers whose rows are not the images: RoIs, windows, sequences."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from masked import Masked, assert_scores
from pruning import images_of, pruner_of, sums
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, relu
from torch.utils.checkpoint import checkpoint

from mmgfp import Pruner
from mmgfp.cost.model import record_calls
from mmgfp.criteria.taps import Taps
from mmgfp.groups import UnitSpace
from mmgfp.rows import (
    Layout,
    count_images,
    images_of_rois,
    picked_images,
)
from mmgfp.tracing.finder import find_groups

DATA = torch.randn(
    5, 3, 8, 8, generator=torch.Generator().manual_seed(0)
).double()
LABELS = torch.arange(5) % 4


def prune(model: nn.Module, run: Callable, **kwargs) -> Pruner:
    """The attached pruner of a net in eval mode."""
    groups = find_groups(model, run, images=2, **kwargs)
    pruner = pruner_of(
        model, groups, record_calls(model, lambda: run(model), 2)
    )
    pruner.attach()
    return pruner


def make(net: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return net().double().eval()


def layouts(groups) -> dict[str, Layout]:
    return {t.module: t.layout for g in groups for t in g.taps if not g.frozen}


def reasons(groups) -> dict[str, str]:
    return {g.name: g.frozen for g in groups if g.producers}


# -- rows in a fixed order ----------------------------------------------------


class Windows(Masked):
    """Four windows of an image are rows; so are its pixels in the end."""

    units: ClassVar = dict(conv=6, fc1=5, fc2=6)
    expected: ClassVar = dict(
        fc1=Layout(0, 'blocks'), fc2=Layout(0, 'blocks'), fc3=Layout()
    )

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc1 = nn.Linear(6, 5)
        self.fc2 = nn.Linear(5, 6)
        self.fc3 = nn.Linear(6, 4)

    def forward(self, x):
        x = relu(self.conv(x))
        n, c, h, w = x.shape
        x = x.view(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(n * 4, h * w // 4, c)
        x = relu(self.fc1(self.last('conv', x)))
        x = x.reshape(n * h * w, x.shape[-1])
        x = relu(self.fc2(self.last('fc1', x)))
        x = x.view(n, h * w, x.shape[-1])
        return self.fc3(self.last('fc2', x.mean(1)))


class SequenceFirst(Masked):
    """Tokens first, then images."""

    units: ClassVar = dict(conv=6, fc1=9)
    expected: ClassVar = dict(
        fc1=Layout(1, 'images'), fc2=Layout(1, 'images'), fc3=Layout()
    )

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 2, stride=2)
        self.fc1 = nn.Linear(6, 9)
        self.fc2 = nn.Linear(9, 6)
        self.fc3 = nn.Linear(6, 4)

    def forward(self, x):
        x = self.conv(x).flatten(2).permute(2, 0, 1)
        x = x + self.fc2(
            self.last('fc1', relu(self.fc1(self.last('conv', x))))
        )
        return self.fc3(self.last('conv', x.mean(0)))


class Turns(Masked):
    """All images, then all of them mirrored."""

    units: ClassVar = dict(conv1=6, conv2=5)
    expected: ClassVar = dict(conv2=Layout(0, 'turns'), fc=Layout())

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 5, 3, padding=1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = relu(self.conv1(x))
        x = relu(self.conv2(self.m('conv1', torch.cat([x, x.flip(-1)]))))
        x, y = x.chunk(2)
        return self.fc(self.m('conv2', (x + 2 * y).mean((2, 3))))


@pytest.mark.parametrize('net', [Windows, SequenceFirst, Turns])
def test_rows_of_images(net):
    model = make(net)
    pruner = prune(model, lambda m: m(DATA[:2]))
    assert layouts(pruner.net.units.groups) == net.expected
    expected = {g: torch.zeros(n).double() for g, n in net.units.items()}
    pruner.detach()
    for image, label in zip(DATA, LABELS, strict=True):
        masks = model.new_masks()
        loss = cross_entropy(model(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(masks.values()))
        for group, gradient in zip(masks, gradients, strict=True):
            expected[group] += gradient.square()
    model.masks = None
    pruner.attach()
    cross_entropy(model(DATA), LABELS).backward()
    assert pruner.criterion.end_batch()
    assert_scores(pruner, expected)
    pruner.prune(lambda n: n == 2)
    assert layouts(pruner.net.units.groups) == net.expected
    cross_entropy(model(DATA), LABELS).backward()
    assert pruner.criterion.end_batch()


@pytest.mark.parametrize('net', [Windows, SequenceFirst, Turns])
def test_batch_without_images(net):
    """It adds nothing to the scores."""
    model = make(net)
    pruner = prune(model, lambda m: m(DATA[:2]))
    model(DATA).square().sum().backward()
    assert pruner.criterion.end_batch()
    expected = sums(pruner)
    model(DATA[:0]).square().sum().backward()
    assert pruner.criterion.end_batch()
    for found, scores in zip(sums(pruner), expected, strict=True):
        assert scores.any() and (found == scores).all()


# -- RoIs ---------------------------------------------------------------------


class Crops(nn.Module):
    """Extracts RoIs, (R, 5), from one level of features."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        crops = [
            adaptive_avg_pool2d(features[i, :, y0:y1, x0:x1], self.size)
            for i, x0, y0, x1, y1 in rois.long().tolist()
        ]
        if crops:
            return torch.stack(crops)
        empty = features.new_zeros(0, features.shape[1], self.size, self.size)
        return empty + features.sum() * 0


class CropLists(Crops):
    """The same with a list of boxes per image."""

    def forward(self, features: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        return super().forward(features, rois_of(boxes))


def rois_of(boxes: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.cat([b.new_full((len(b), 1), i), b], 1)
            for i, b in enumerate(boxes)
        ]
    )


class TwoStage(Masked):
    """A dense head, one on all RoIs, and one on every second of an image."""

    units: ClassVar = dict(stem=6, rpn=5, fc1=7, mask1=5)
    expected: ClassVar = {
        'rpn': Layout(),
        'rpn_out': Layout(),
        'fc1': Layout(0, 'rois', 'extract'),
        'fc2': Layout(0, 'rois', 'extract'),
        'mask1': Layout(0, 'rois', 'extract_mask'),
        'mask2': Layout(0, 'rois', 'extract_mask'),
    }
    lists = False

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.rpn = nn.Conv2d(6, 5, 3, padding=1)
        self.rpn_out = nn.Conv2d(5, 2, 1)
        crops = CropLists if self.lists else Crops
        self.extract, self.extract_mask = crops(2), crops(4)
        self.fc1 = nn.Linear(6 * 4, 7)
        self.fc2 = nn.Linear(7, 4)
        self.mask1 = nn.Conv2d(6, 5, 3, padding=1)
        self.mask2 = nn.Conv2d(5, 1, 1)

    def forward(self, images, boxes, train=False):
        x = torch.tanh(self.stem(images))
        dense = torch.tanh(self.rpn(self.m('stem', x)))
        dense = self.rpn_out(self.m('rpn', dense))
        scores = self.heads(x, boxes)
        masks = self.mask_head(x, [b[::2] for b in boxes] if train else boxes)
        return dense, scores, masks

    def heads(self, x, boxes):
        x = self.crop(self.extract, x, boxes).flatten(1)
        x = torch.tanh(self.fc1(self.m('stem', x, 4)))
        return self.fc2(self.m('fc1', x))

    def mask_head(self, x, boxes):
        x = self.crop(self.extract_mask, x, boxes)
        x = torch.tanh(self.mask1(self.m('stem', x)))
        return self.mask2(self.m('mask1', x))

    def crop(self, extract, x, boxes):
        return extract(x, boxes if self.lists else rois_of(boxes))


class WithLists(TwoStage):
    lists = True


def boxes_of(*counts: int, seed: int = 0) -> list[Tensor]:
    """So many random boxes per image, within 8x8 pixels."""
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for count in counts:
        first = torch.randint(0, 4, (count, 2), generator=generator)
        size = torch.randint(2, 5, (count, 2), generator=generator)
        boxes.append(torch.cat([first, first + size], 1).double())
    return boxes


def run(model: nn.Module):
    return model(DATA[:2], boxes_of(3, 4))


def train(model: nn.Module):
    return model(DATA[:2], boxes_of(3, 4), train=True)


def loss_of(outputs, images: int, rois: int, positives: int) -> Tensor:
    """As detectors do it: mean over the images, the RoIs, the positives."""
    total = torch.zeros(())
    for output, count in zip(outputs, (images, rois, positives), strict=True):
        weight = torch.linspace(-1, 2, output.shape[1:].numel())
        squares = output.square() * weight.view(output.shape[1:])
        total = total + squares.sum() / max(count, 1)
    return total


def two_stage_oracle(model: TwoStage, batches) -> dict[str, Tensor]:
    total = {g: torch.zeros(n).double() for g, n in model.units.items()}
    for images, boxes in batches:
        counts = (
            len(images),
            sum(map(len, boxes)),
            sum(len(b[::2]) for b in boxes),
        )
        for image, mine in zip(images, boxes, strict=True):
            masks = model.new_masks()
            loss = loss_of(model(image[None], [mine], train=True), *counts)
            gradients = torch.autograd.grad(
                loss * len(images), list(masks.values()), allow_unused=True
            )
            for group, gradient in zip(masks, gradients, strict=True):
                if gradient is not None:
                    total[group] += gradient.square()
    model.masks = None
    return total


BATCHES = {
    'many': [(DATA[:3], boxes_of(2, 5, 3))],
    'image without': [(DATA[:4], boxes_of(4, 0, 1, 3))],
    'none': [(DATA[:2], boxes_of(0, 0))],
    'now and then': [
        (DATA[:2], boxes_of(3, 1)),
        (DATA[2:4], boxes_of(0, 0)),
        (DATA[4:], boxes_of(2)),
    ],
}


@pytest.mark.parametrize('batches', BATCHES)
@pytest.mark.parametrize('net', [TwoStage, WithLists])
def test_rois_are_summed_per_image(net, batches):
    model = make(net)
    pruner = prune(model, run, train=train)
    assert layouts(pruner.net.units.groups) == net.expected
    pruner.detach()
    expected = two_stage_oracle(model, BATCHES[batches])
    pruner.attach()
    for images, boxes in BATCHES[batches]:
        loss_of(
            model(images, boxes, train=True),
            len(images),
            sum(map(len, boxes)),
            sum(len(b[::2]) for b in boxes),
        ).backward()
        assert pruner.criterion.end_batch()
    assert_scores(pruner, expected)
    assert expected['fc1'].any() == (batches != 'none')


def test_layouts_outlive_removal():
    model = make(TwoStage)
    pruner = prune(model, run, train=train)
    images, boxes = DATA[:3], boxes_of(2, 0, 3)
    for _ in range(3):
        loss_of(model(images, boxes, train=True), 3, 5, 3).backward()
        assert pruner.criterion.end_batch()
        pruner.prune(lambda n: n == 2)
        assert layouts(pruner.net.units.groups) == TwoStage.expected
    # and a copy does not observe
    duplicate = copy.deepcopy(model)
    loss_of(duplicate(images, boxes, train=True), 3, 5, 3).backward()
    assert pruner.criterion.end_batch()
    assert not any(scores.any() for scores in sums(pruner))


class Recomputing(TwoStage):
    """Activations of the heads are computed again in the backward."""

    def heads(self, *args):
        return checkpoint(super().heads, *args, use_reentrant=False)

    def mask_head(self, *args):
        return checkpoint(super().mask_head, *args, use_reentrant=False)


def test_recomputed_heads():
    model = make(Recomputing)
    pruner = prune(model, run, train=train)
    assert layouts(pruner.net.units.groups) == TwoStage.expected
    pruner.detach()
    images, boxes = DATA[:3], boxes_of(2, 0, 3)
    expected = two_stage_oracle(model, [(images, boxes)])
    pruner.attach()
    loss_of(model(images, boxes, train=True), 3, 5, 3).backward()
    assert pruner.criterion.end_batch()
    assert_scores(pruner, expected)


@pytest.mark.parametrize('boxes', [(2, 3), (0, 0)])
def test_all_processes_reduce_vectors_of_one_size(boxes):
    model = make(TwoStage)
    pruner = prune(model, run, train=train)
    loss_of(model(DATA[:2], boxes_of(*boxes), train=True), 2, 5, 3).backward()
    seen: list[Tensor] = []
    assert pruner.criterion.end_batch()
    pruner.criterion.all_reduce(seen.append)
    units = TwoStage.units
    assert [t.shape for t in seen] == [(sum(units.values()) + 2 * len(units),)]


class Selecting(TwoStage):
    """The mask head sees some rows of the features of all RoIs."""

    def __init__(self):
        super().__init__()
        self.positive = torch.tensor([0, 1, 4])

    def forward(self, images, boxes, train=False):
        x = torch.tanh(self.stem(images))
        x = self.crop(self.extract, x, boxes)
        y = x[self.positive] if train else x
        scores = self.fc2(torch.tanh(self.fc1(x.flatten(1))))
        return scores, self.mask2(torch.tanh(self.mask1(y)))


def test_selected_rows_are_frozen_before_training():
    found = reasons(find_groups(make(Selecting), run, 2, train))
    assert 'the image of each row of the input of mask1' in found['stem']
    assert 'rows were selected' in found['mask1']
    assert found['fc1'] == ''
    # inference alone does not show it
    assert reasons(find_groups(make(Selecting), run, 2))['mask1'] == ''


def test_layers_that_do_not_train():
    class Tested(TwoStage):
        def mask_head(self, x, boxes):
            if torch.is_grad_enabled():
                return x[:, :1]
            return super().mask_head(x, boxes)

    found = reasons(find_groups(make(Tested), run, 2, train))
    assert found['mask1'] == 'mask2 does not run in training'
    assert found['fc1'] == ''


def test_losses_that_cannot_be_computed():
    def fails(model):
        raise KeyError('gt_instances')

    with pytest.warns(UserWarning, match='losses cannot be computed'):
        groups = find_groups(make(TwoStage), run, 2, fails)
    assert layouts(groups) == TwoStage.expected


def test_one_roi_per_image_is_ambiguous():
    groups = find_groups(
        make(TwoStage), lambda m: m(DATA[:2], boxes_of(1, 1)), 2
    )
    assert 'one RoI per image' in reasons(groups)['fc1']


def test_input_without_images():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.fc1 = nn.Linear(6, 7)
            self.fc2 = nn.Linear(7, 6)
            self.out = nn.Linear(6, 4)

        def forward(self, x):
            x = self.conv(x).mean((2, 3))
            return self.out(x + self.fc2(relu(self.fc1(x.clamp(1, 1)))))

    found = reasons(find_groups(make(Constant), lambda m: m(DATA[:2]), 2))
    assert found['fc1'] == 'the input of fc2 does not depend on the images'
    assert found['conv'] == 'the input of fc1 does not depend on the images'


def test_untrained_weights_that_make_nothing():
    """The layers see the images with other weights."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 1)
    ).to(DATA.dtype)
    nn.init.constant_(model[0].bias, -100.0)  # all is cut off at zero
    found = reasons(find_groups(model, lambda m: m(DATA[:2]), 2))
    assert found['0'] == found['2'] == ''
    assert model[0].bias[0] == -100


def test_mixed_images():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.fc1 = nn.Linear(6, 7)
            self.fc2 = nn.Linear(7, 4)

        def forward(self, x):
            x = relu(self.fc1(self.conv(x).mean((2, 3))))
            return self.fc2(x - x.mean(0))

    found = reasons(find_groups(make(Mixing), lambda m: m(DATA[:2]), 2))
    assert 'images are mixed there' in found['fc1']
    assert found['conv'] == ''


def test_rows_that_do_not_fit_are_an_error():
    model = make(Windows)
    pruner = prune(model, lambda m: m(DATA[:2]))
    with pytest.raises(RuntimeError) as error:
        model(DATA[:3])
        model.fc1(torch.zeros(4, 2, 6).double().requires_grad_())
    message = str(error.value)
    assert 'the input of fc1 has 4 rows' in message
    assert 'as many for each of the 3 images' in message
    assert "that fc1 reads: ignore=['conv']" in message
    pruner.detach()


def test_without_calling_the_network():
    model = make(Windows)
    prune(model, lambda m: m(DATA[:2]))
    with pytest.raises(RuntimeError, match='call the network itself'):
        model.fc1(torch.zeros(4, 2, 6).double().requires_grad_())


# -- some images only ---------------------------------------------------------


class Tasks(Masked):
    """The second head learns from the images that have a label for it."""

    units: ClassVar = dict(conv=6, hidden=5)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.hidden = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last_layer = nn.Linear(5, 2, bias=False)

    def forward(self, x, pick=None):
        x = relu(self.conv(x)).mean((2, 3))
        first = self.head(self.m('conv', x))
        if pick is not None:
            x = pick(x)
        x = relu(self.norm(self.hidden(self.m('conv', x))))
        return first, self.last_layer(self.m('hidden', x))


LABELLED = torch.tensor([False, True, True, False, True])
TWICE = torch.tensor([3, 1, 1, 3])
PICKS = {
    'mask': (lambda x: x[LABELLED], [1, 2, 4]),
    'numbers': (lambda x: x[[4, 0, -2]], [4, 0, 3]),
    'twice the same': (lambda x: x.index_select(0, TWICE), [3, 1, 1, 3]),
    'first': (lambda x: x[:2], [0, 1]),
    'part': (lambda x: x.split([1, 4])[1], [1, 2, 3, 4]),
    'one': (lambda x: x[[3]], [3]),
    'none': (lambda x: x[:0], []),
    'mask of a mask': (lambda x: x[LABELLED][[True, False, True]], [1, 4]),
}


def tasks_loss(outputs) -> Tensor:
    first, second = outputs
    weight = torch.linspace(-1, 2, second.shape[1])
    loss = first.square().mean(1).mean() + second.sum() * 0
    if len(second):
        loss = loss + (second.square() * weight).sum(1).mean()
    return loss


@pytest.mark.parametrize('demo', ['all', 'some', 'none'])
@pytest.mark.parametrize('pick', PICKS)
def test_rows_of_some_images(pick, demo):
    """Whatever the demo has labels for."""
    model = make(Tasks)
    choose, images = PICKS[pick]
    pick_demo = {'all': None, 'some': lambda x: x[1:], 'none': lambda x: x[:0]}
    pruner = prune(
        model,
        lambda m: m(DATA[:2]),
        train=lambda m: m(DATA[:2], pick_demo[demo]),
    )
    pruner.detach()
    expected = {g: torch.zeros(n).double() for g, n in model.units.items()}
    for i in range(5):  # the whole loss, of which one image's masks are cut
        rows = [r for r, image in enumerate(images) if image == i]
        masks = model.new_masks()
        first, _ = model(DATA[i : i + 1])
        loss = first.square().mean() / 5 + masks['hidden'].sum() * 0
        if rows:
            mine = DATA[[i]].expand(len(rows), -1, -1, -1)
            _, second = model(mine)
            weight = torch.linspace(-1, 2, 2)
            loss = loss + (second.square() * weight).sum() / len(images)
        gradients = torch.autograd.grad(loss, list(masks.values()))
        for group, gradient in zip(masks, gradients, strict=True):
            expected[group] += (5 * gradient).square()
    model.masks = None
    pruner.attach()
    tasks_loss(model(DATA, choose)).backward()
    assert pruner.criterion.end_batch()
    if demo == 'none':  # nothing is known of what is behind no rows
        del expected['hidden']
    else:
        assert images_of(pruner)['hidden'] == len(set(images))
    assert_scores(pruner, expected)


PICKING = {
    'x[[4, 0, -1]]': True,
    'x[m].relu() * 2 + 1': True,
    'x[m][:, :2]': True,
    'x[:, [0, 1]][m]': True,
    'x[m].flatten(1)': True,
    'x[m].mean((-2, -1))': True,
    'x[::2]': True,
    'x.chunk(2)[1]': True,
    'net(x[m])': True,
    'x[m].mean((2, 3)) @ lin.weight.t()': True,
    'x[torch.zeros(6, dtype=torch.bool)]': True,
    'x.relu()': False,
    'x[m].flatten(0, 1)': False,
    'x[m].flip(0)': False,
    'x[m].mean(0)': False,
    'x[m] + x[~m]': False,
    'x[m].mean((2, 3)) @ x[m].mean((2, 3)).t()': False,
    '(lambda y: y[[0, 1]] + y[[1, 0]])(x[m].relu())': False,
    'x.mean((2, 3))[torch.tensor([[0], [1]])]': False,
}


@pytest.mark.parametrize('code', PICKING)
def test_picked_images(code):
    """Each row depends on the image that it is said to be of."""
    x = torch.randn(6, 4, 5, 5).requires_grad_() * 1
    net = nn.Sequential(
        *(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6).eval(), nn.ReLU()),
        *(nn.GroupNorm(2, 6), nn.SiLU(), nn.MaxPool2d(2, padding=1)),
        *(nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(6, 5, bias=False), nn.LayerNorm(5)),
        *(nn.GELU(), nn.Linear(5, 5), nn.Hardswish(), nn.LeakyReLU()),
        *(nn.PReLU(), nn.Softplus(), nn.ELU(), nn.Sigmoid(), nn.Tanh()),
    )
    m = torch.tensor([True, False, True, True, False, False])
    names = dict(x=x, m=m, net=net, lin=nn.Linear(4, 4), torch=torch)
    y = eval(code, names)
    picked = picked_images(y, len(x))
    assert (picked is not None) == PICKING[code]
    if picked is None:
        return
    assert len(picked) == len(y)
    for row, image in zip(y, picked.tolist(), strict=True):
        (gradient,) = torch.autograd.grad(row.sum(), x, retain_graph=True)
        found = gradient.flatten(1).any(1).nonzero().flatten().tolist()
        assert found == [image]


def test_rows_mixed_after_they_were_picked_are_frozen():
    class Mixed(Tasks):
        def forward(self, x, pick=None):
            turn = (lambda x: pick(x).flip(0)) if pick else None
            return super().forward(x, turn)

    found = reasons(
        find_groups(
            make(Mixed),
            lambda m: m(DATA[:2]),
            2,
            lambda m: m(DATA[:2], lambda x: x[[0, 1, 1]]),
        )
    )
    assert 'is unknown: images are mixed there' in found['conv']


# -- the parts ----------------------------------------------------------------


def test_owners():
    assert Layout(0, 'images').owners(3, 3).tolist() == [0, 1, 2]
    assert Layout(0, 'blocks').owners(6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert Layout(0, 'turns').owners(6, 3).tolist() == [0, 1, 2, 0, 1, 2]
    rois = torch.tensor([0, 2, 2])
    layout = Layout(0, 'rois', 'x')
    assert layout.owners(3, 3, rois).tolist() == [0, 2, 2]
    assert layout.owners(6, 3, rois).tolist() == [0, 0, 2, 2, 2, 2]
    assert layout.owners(0, 3).tolist() == []
    assert layout.fits(6, 3, rois) and layout.fits(0, 3)
    assert not layout.fits(4, 3, rois) and not layout.fits(4, 3)
    for order in ('images', 'blocks', 'turns', 'rois'):  # no images
        assert Layout(0, order).fits(0, 0) and not Layout(0, order).fits(4, 0)
        assert Layout(0, order).owners(0, 0).tolist() == []


def test_images_are_counted():
    image = torch.zeros(3, 4, 4)
    assert count_images((torch.zeros(5, 3, 4, 4),), {}) == 5
    assert count_images((), dict(inputs=[image, image])) == 2
    assert count_images(('x',), dict(a=dict(b=torch.zeros(7, 2)))) == 7
    assert count_images((None,), dict(mode='loss')) is None
    assert count_images(([],), dict(data_samples=[])) == 0
    assert count_images(([], torch.zeros(2, 3)), {}) == 2


def test_images_in_objects_are_counted():
    image = torch.zeros(3, 4, 4)
    sample = SimpleNamespace(box=torch.zeros(7, 4))
    batch = SimpleNamespace(images=[image, image], size=torch.tensor(4.0))
    batch.me = batch
    assert count_images((batch,), {}) == 2
    assert count_images((UserDict(x=torch.zeros(5, 3, 4, 4)),), {}) == 5
    # what is in no object comes first
    assert count_images((sample, torch.zeros(5, 3, 4, 4)), {}) == 5
    assert count_images((iter([image]),), {}) is None


def test_lists_of_batches():
    pair = [torch.zeros(4, 3, 20), torch.zeros(4, 3, 20)]
    assert count_images((pair,), {}) == 2
    assert count_images((pair,), {}, batches=True) == 4


# -- what networks are given -------------------------------------------------


class Siamese(nn.Module):
    """Compares two sequences."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv1d(8, 10, 3, padding=1)
        self.mix = nn.Linear(20, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, pair):
        a, b = self.encode(pair[0]), self.encode(pair[1])
        return self.out(relu(self.mix((a - b).abs().flatten(0, 1)))).view(
            len(a), -1
        )

    def encode(self, x):
        x = relu(self.conv2(relu(self.conv1(x))))
        return x.unflatten(2, (2, -1)).transpose(1, 2).flatten(2)


PAIR = torch.randn(
    *(2, 4, 3, 4), generator=torch.Generator().manual_seed(5)
).to(DATA.dtype)


@pytest.mark.parametrize('kind', [list, tuple])
@pytest.mark.parametrize('pairs', [2, 4])
def test_a_pair_of_batches_is_one_batch_of_pairs(kind, pairs):
    """Whatever it is packed into: scores are summed per pair."""

    def run(model):
        return model(kind(PAIR[:, :pairs]))

    model = make(Siamese)
    groups = find_groups(model, run, pairs)
    prunable = {g.name: g for g in groups if not g.frozen}
    assert prunable.keys() == {'conv1', 'conv2', 'mix'}
    taps = Taps(model, UnitSpace(list(prunable.values())))
    run(model).square().mean(1).sum().backward()
    found = taps.take()
    taps.detach()
    assert found is not None and len(found) == pairs
    for i in range(pairs):  # one pair at a time
        taps = Taps(model, UnitSpace(list(prunable.values())))
        model(kind(PAIR[:, i : i + 1])).square().mean(1).sum().backward()
        alone = taps.take()
        taps.detach()
        assert alone is not None
        assert torch.allclose(found[i], alone[0], rtol=1e-7, atol=1e-9)


@dataclass(frozen=True)
class Batch:
    labels: list
    images: Tensor


@pytest.mark.parametrize(
    'pack', [lambda x: Batch([1], x), lambda x: UserDict(x=UserDict(y=x))]
)
def test_images_in_objects_are_followed(pack):
    """Rows that are no images are given to theirs."""

    class Unpacking(Windows):
        def forward(self, batch):
            if isinstance(batch, Tensor):
                return super().forward(batch)
            images = getattr(batch, 'images', None)
            return super().forward(
                batch['x']['y'] if images is None else images
            )

    groups = find_groups(make(Unpacking), lambda m: m(pack(DATA[:2])), 2)
    assert layouts(groups) == Windows.expected


def test_extraction_is_recognised_by_what_is_passed():
    features, out = torch.zeros(2, 4, 8, 8), torch.zeros(3, 4, 7, 7)
    rois = torch.tensor([[0.0, 1, 1, 2, 2], [1, 1, 1, 2, 2], [1, 0, 0, 3, 3]])
    found = images_of_rois((features, rois), {}, out)
    assert found is not None and found.tolist() == [0, 1, 1]
    boxes = [rois[:1, 1:], rois[1:, 1:]]
    for args, kwargs in (
        (({'0': features}, boxes, [(8, 8)]), {}),
        ((features,), dict(boxes=boxes)),
    ):
        found = images_of_rois(args, kwargs, out)
        assert found is not None and found.tolist() == [0, 1, 1]
    assert images_of_rois((rois,), {}, rois) is None  # a linear layer
    assert images_of_rois((features, rois), {}, out[:2]) is None
