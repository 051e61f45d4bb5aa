"""Scores against one backward per image with masks written into forwards."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from masked import Masked, assert_scores
from nets import NETS as NETS_OF_ALL_KINDS
from nets_kernels import KERNEL_NETS
from oracles import randomize
from processes import ROOT
from pruning import drop_batch, pruner_of, sums
from stack import derivatives, loss_scaler, require
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    avg_pool2d,
    cross_entropy,
    gelu,
    relu,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mmgfp import Pruner
from mmgfp.cost.model import record_calls
from mmgfp.criteria.taps import Taps, mask_gradients
from mmgfp.libraries.channel_groups import demo_groups
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import cost_runner, demo_data
from mmgfp.libraries.models import build_model
from mmgfp.tracing.finder import find_groups
from mmgfp.utils.trees import tree_leaves


class Residual(Masked):
    """Residual coupling, batch norm, depthwise and grouped convolutions."""

    units: ClassVar = dict(stem=6, c1=8, c3=4, c4=5)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.n0 = nn.BatchNorm2d(6)
        self.c1 = nn.Conv2d(6, 8, 3, padding=1)
        self.n1 = nn.BatchNorm2d(8)
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c2 = nn.Conv2d(8, 6, 1)
        self.c3 = nn.Conv2d(6, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.c4 = nn.Conv2d(12, 5, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = relu(self.n0(self.stem(x)))
        y = relu(self.n1(self.c1(self.m('stem', x))))
        y = self.c2(self.m('c1', self.dw(self.m('c1', y))))
        x = relu(x + y)
        x = relu(self.c3(self.m('stem', x)))
        x = relu(self.grouped(self.m('c3', x, 3)))
        x = relu(self.c4(self.m('c3', x, 3)))
        return self.fc(self.m('c4', x.mean((2, 3))))


class Pyramid(Masked):
    """One head on three levels, of which one gets no gradient."""

    units: ClassVar = dict(stem=4, lateral0=6, tower=5)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.lateral0 = nn.Conv2d(4, 6, 1)
        self.lateral1 = nn.Conv2d(4, 6, 1)
        self.lateral2 = nn.Conv2d(4, 6, 1)
        self.tower = nn.Conv2d(6, 5, 3, padding=1)
        self.out = nn.Conv2d(5, 4, 3, padding=1)
        self.side = nn.Conv2d(5, 4, 1)

    def forward(self, x):
        x = relu(self.stem(x))
        total = 0
        for i in range(3):
            lateral = getattr(self, f'lateral{i}')
            y = relu(lateral(self.m('stem', x)))
            y = relu(self.tower(self.m('lateral0', y)))
            z = self.out(self.m('tower', y)) + self.side(self.m('tower', y))
            z = z.mean((2, 3))
            total = total + (i + 1) * (z.detach() if i == 1 else z)
            x = avg_pool2d(x, 2)
        return total


class Flattened(Masked):
    """A linear layer behind flattened features: 16 inputs per channel."""

    units: ClassVar = dict(conv=5, fc1=7)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.fc1 = nn.Linear(5 * 16, 7)
        self.fc2 = nn.Linear(7, 4)

    def forward(self, x):
        x = adaptive_avg_pool2d(relu(self.conv(x)), 4).flatten(1)
        x = relu(self.fc1(self.m('conv', x, 16)))
        return self.fc2(self.m('fc1', x))


class ConcatNorm(Masked):
    """Concatenation of branches; norm groups of two channels go whole."""

    units: ClassVar = dict(a=2, b=3, c=6)

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 1)
        self.norm = nn.GroupNorm(5, 10)
        self.c = nn.Conv2d(10, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        if self.masks is not None:
            a, b = x.split([4, 6], 1)
            x = torch.cat([self.m('a', a, 2), self.m('b', b, 2)], 1)
        return self.fc(self.m('c', relu(self.c(x)).mean((2, 3))))


class Tokens(Masked):
    """Channels in the last axis."""

    units: ClassVar = dict(embed=6, fc1=9)

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.fc1 = nn.Linear(6, 9)
        self.fc2 = nn.Linear(9, 6)
        self.fc3 = nn.Linear(6, 4)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        y = gelu(self.fc1(self.last('embed', x)))
        y = self.fc2(self.last('fc1', y))
        return self.fc3(self.last('embed', (x + y).mean(1)))


NETS = [Residual, Pyramid, Flattened, ConcatNorm, Tokens]
DATA = torch.randn(
    11, 3, 8, 8, generator=torch.Generator().manual_seed(0)
).double()
LABELS = torch.arange(11) % 4


def make(net: Callable[[], Masked]) -> tuple[Masked, Pruner]:
    """A net in eval mode (no image sees another) and its attached pruner."""
    torch.manual_seed(1)
    model = net().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    groups = find_groups(model, lambda m: m(DATA[:2]), images=2)
    calls = record_calls(model, lambda: model(DATA[:1]))
    pruner = pruner_of(model, groups, calls)
    pruner.attach()
    return model, pruner


def oracle(model: Masked, images: Tensor, labels: Tensor) -> dict:
    """Per group the sum over images of squared mask gradients."""
    total = {g: torch.zeros(n).double() for g, n in model.units.items()}
    for image, label in zip(images, labels, strict=True):
        masks = model.new_masks()
        loss = cross_entropy(model(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(masks.values()))
        for group, gradient in zip(masks, gradients, strict=True):
            total[group] += gradient.square()
    model.masks = None
    return total


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model(images), labels)


@pytest.mark.parametrize('net', NETS)
def test_equals_one_image_at_a_time(net):
    model, pruner = make(net)
    expected = oracle(model.requires_grad_(), DATA, LABELS)
    drop_batch(pruner)  # the oracle's own forwards pass through the taps
    loss_of(model, DATA, LABELS).backward()
    assert pruner.criterion.end_batch()
    assert_scores(pruner, expected)


def loss_of_outputs(outputs) -> Tensor:
    """Mean over images of something that depends on every output."""
    losses = [
        (t * torch.linspace(-1, 1, t[0].numel()).view(t[0].shape))
        .flatten(1)
        .sum(1)
        for t in tree_leaves(outputs)
    ]
    return sum(losses).mean()


# cannot be trained as it is; mixes images; is not in float64
UNSUITED = {'InPlace', 'Distances', 'Precisions'}


@pytest.mark.parametrize('net', sorted(NETS_OF_ALL_KINDS.keys() - UNSUITED))
def test_equals_gradients_of_the_consumers_weights(net):
    """Scaling a consumer's input is scaling the weights that read it.

    So the mask gradient of an image is weight times gradient, summed over
    the slices that the unit takes from its consumers.
    """
    model = randomize(NETS_OF_ALL_KINDS[net]()).double().eval()
    images = type(model).batch().double()
    groups = find_groups(model, lambda m: m(images), images=len(images))
    groups = [g for g in groups if not g.frozen]
    if not groups:
        pytest.skip('nothing can be pruned')
    with derivatives():
        loss_of_outputs(model(images)).backward()
    parameters = dict(model.named_parameters())
    expected = {g.name: torch.zeros(g.size).double() for g in groups}
    for image in images:
        model.zero_grad()
        loss_of_outputs(model(image[None])).backward()
        for group in groups:
            gradient = torch.zeros(group.size).double()
            for member in group.members:
                if member.role in ('consumer', 'grouped'):
                    weight = parameters[member.tensor]
                    if weight.grad is None:  # not used for the loss
                        continue
                    product = weight.detach() * weight.grad
                    by_slice = product.transpose(0, member.axis).flatten(1)
                    for unit, slices in enumerate(member.index):
                        gradient[unit] += by_slice.sum(1)[slices].sum()
            expected[group.name] += gradient.square()
    calls = record_calls(model, lambda: model(images[:1]))
    pruner = pruner_of(model, groups, calls)
    pruner.attach()
    loss_of_outputs(model(images)).backward()
    assert pruner.criterion.end_batch()
    assert_scores(pruner, expected, 1e-7)
    assert all(scores.any() for scores in expected.values())


@pytest.mark.parametrize('name', sorted(KERNEL_NETS))
def test_computed_kernels_do_not_matter_to_masks(name):
    """Masks on the consumers' inputs, differentiated by autograd."""
    net = KERNEL_NETS[name]
    if not net.prunable:
        pytest.skip('nothing can be pruned')
    model = randomize(net()).double().eval()
    images = net.batch().double()
    groups = find_groups(model, lambda m: m(images), images=len(images))
    modules = dict(model.named_modules())
    expected = {}
    for group in (g for g in groups if not g.frozen):
        masks = [torch.ones(group.size).double() for _ in images]
        expected[group.name] = torch.zeros(group.size).double()
        for image, mask in zip(images, masks):
            mask.requires_grad_()

            def multiply(module, args, mask=mask):
                x = args[0]
                axis = -1 if isinstance(module, nn.Linear) else 1
                shape = [1] * x.dim()
                shape[axis] = len(mask)
                return x * mask.view(shape)

            handles = [
                modules[layer].register_forward_pre_hook(multiply)
                for layer in group.consumers
            ]
            loss = loss_of_outputs(model(image[None]))
            (gradient,) = torch.autograd.grad(loss, mask)
            expected[group.name] += gradient.square()
            for handle in handles:
                handle.remove()
    calls = record_calls(model, lambda: model(images[:1]))
    pruner = pruner_of(model, groups, calls)
    pruner.attach()
    loss_of_outputs(model(images)).backward()
    assert pruner.criterion.end_batch()
    assert_scores(pruner, expected, 1e-7)
    assert all(scores.any() for scores in expected.values())


def test_summing_squares_would_be_wrong():
    """The order of the two sums matters for what is coupled."""
    model, _ = make(Residual)
    right = oracle(model, DATA, LABELS)['stem']
    wrong = torch.zeros(6).double()
    for image, label in zip(DATA, LABELS, strict=True):
        squares = []

        def observe(module, args, squares=squares):
            mask = torch.ones(6).double().requires_grad_()
            squares.append(mask)
            return (args[0] * mask[:, None, None],)

        handles = [
            layer.register_forward_pre_hook(observe)
            for layer in (model.c1, model.c3)
        ]
        loss = loss_of(model, image[None], label[None])
        for gradient in torch.autograd.grad(loss, squares):
            wrong += gradient.square()
        for handle in handles:
            handle.remove()
    assert ((wrong - right).abs() > 0.01 * right).any()


@pytest.mark.parametrize('net', [Residual, Pyramid])
def test_batches_of_unequal_size_count_images_alike(net):
    model, pruner = make(net)
    expected = oracle(model, DATA, LABELS)
    drop_batch(pruner)
    for part in (slice(0, 5), slice(5, 10), slice(10, 11)):
        loss_of(model, DATA[part], LABELS[part]).backward()
        assert pruner.criterion.end_batch()
    assert_scores(pruner, expected)


def test_accumulated_gradients():
    model, pruner = make(Residual)
    expected = oracle(model, DATA[:8], LABELS[:8])
    drop_batch(pruner)
    for part in (slice(0, 4), slice(4, 8)):
        (loss_of(model, DATA[part], LABELS[part]) / 2).backward()
        pruner.criterion.end_batch(scale=0.5)
    assert_scores(pruner, expected)


def test_loss_scale_is_divided_out():
    model, pruner = make(Residual)
    expected = oracle(model, DATA, LABELS)
    drop_batch(pruner)
    scaler = loss_scaler(4096.0)
    scaler.scale(loss_of(model, DATA, LABELS)).backward()
    pruner.criterion.end_batch(scaler.get_scale())
    assert_scores(pruner, expected)


def test_autocast_is_close():
    model, pruner = make(Residual)
    expected = oracle(model, DATA, LABELS)
    drop_batch(pruner)
    model.float()
    with torch.autocast('cpu', torch.bfloat16):
        loss = loss_of(model, DATA.float(), LABELS)
    loss.backward()
    pruner.criterion.end_batch()
    found = torch.cat([torch.from_numpy(f) for f in sums(pruner)])
    wanted = torch.cat([expected[g.name] for g in pruner.net.units.groups])
    assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize('reentrant', [True, False])
def test_recomputed_activations_count_once(reentrant):
    model, pruner = make(Residual)
    expected = oracle(model, DATA, LABELS)
    drop_batch(pruner)
    images = DATA.clone().requires_grad_()
    outputs = checkpoint(model, images, use_reentrant=reentrant)
    cross_entropy(outputs, LABELS).backward()
    pruner.criterion.end_batch()
    assert_scores(pruner, expected)


def test_outputs_and_gradients_are_untouched():
    model, pruner = make(Residual)
    plain = copy.deepcopy(model)
    loss, expected = (loss_of(m, DATA, LABELS) for m in (model, plain))
    loss.backward()
    expected.backward()
    assert loss.equal(expected)
    for (name, p), q in zip(
        model.named_parameters(), plain.parameters(), strict=True
    ):
        assert p.grad.equal(q.grad), name
    # the copy was made while the taps were on: it must not have observed
    pruner.criterion.end_batch()
    assert_scores(pruner, oracle(plain, DATA, LABELS))


@pytest.mark.parametrize('attached', [True, False])
def test_pickled_networks_do_not_observe(attached):
    model, pruner = make(Residual)
    if not attached:
        pruner.detach()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    copies = [loaded, pickle.loads(pickle.dumps(model))]
    loss_of(model, DATA, LABELS).backward()
    pruner.criterion.end_batch()
    expected = sums(pruner)
    for other in copies:
        loss_of(other, DATA, LABELS).backward()
        pruner.criterion.end_batch()
        for (name, p), q in zip(
            model.named_parameters(), other.parameters(), strict=True
        ):
            assert p.grad.equal(q.grad), name
        # who observes wants as many images until somebody asks for scores
        loss_of(other, DATA[:3], LABELS[:3]).backward()
    for mine, before in zip(sums(pruner), expected, strict=True):
        assert (mine == before).all()
    assert any(f.any() for f in expected) == attached


def test_not_finite_scores_are_refused():
    model, pruner = make(Residual)
    loss_of(model, DATA, LABELS).backward()
    assert pruner.criterion.end_batch()
    before = [f.copy() for f in sums(pruner)]
    images = DATA.clone()
    images[3] = float('inf')
    loss_of(model, images, LABELS).backward()
    assert not pruner.criterion.end_batch()
    assert all(
        (a == b).all() for a, b in zip(before, sums(pruner), strict=True)
    )


def test_scores_sum_over_processes():
    model, pruner = make(Residual)
    expected = oracle(model, DATA, LABELS)
    drop_batch(pruner)
    loss_of(model, DATA, LABELS).backward()
    pruner.criterion.end_batch()
    pruner.criterion.all_reduce(lambda scores: scores.mul_(2))
    expected = {g: 2 * s for g, s in expected.items()}
    assert_scores(pruner, expected)
    pruner.criterion.all_reduce(lambda scores: scores.mul_(2))  # nothing new
    assert_scores(pruner, expected)


def test_one_batch_per_iteration():
    model, pruner = make(Residual)
    taps = Taps(model, pruner.net.units)
    taps.add(torch.ones(2, 3), torch.arange(3))
    with pytest.raises(RuntimeError, match='on 4 images and on 2'):
        taps.add(torch.ones(4, 3), torch.arange(3))


def test_detach_leaves_nothing_behind():
    model, pruner = make(Residual)
    assert any(m._forward_pre_hooks for m in model.modules())
    pruner.detach()
    assert not any(m._forward_pre_hooks for m in model.modules())
    loss_of(model, DATA, LABELS).backward()
    pruner.criterion.end_batch()
    assert all((f == 0).all() for f in sums(pruner))


def test_mask_gradients_by_hand():
    source = torch.arange(12.0).reshape(1, 2, 2, 3)
    grad = torch.ones_like(source)
    grad[0, 1] = 2
    by_channel = mask_gradients(source, grad, 1)
    assert by_channel.tolist() == [[0 + 1 + 2 + 3 + 4 + 5, 2 * 51]]
    by_feature = mask_gradients(source, grad, -1)
    first = [0 + 3 + 2 * (6 + 9), 1 + 4 + 2 * (7 + 10), 2 + 5 + 2 * (8 + 11)]
    assert by_feature.tolist() == [first]
    half = mask_gradients(source.half(), grad.half(), 1)
    assert half.dtype == torch.float32
    assert half.equal(by_channel)


@pytest.mark.parametrize('axes', [(0, 1), (1, 3)])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'mixed'])
@pytest.mark.parametrize('block', [1, 7, 64, 10**6])
def test_mask_gradients_in_blocks(monkeypatch, axes, layout, block):
    monkeypatch.setattr('mmgfp.criteria.taps._BLOCK', {'cpu': block})
    monkeypatch.setattr('mmgfp.criteria.taps._SMALL', block)
    source, grad = torch.randn(2, 3, 5, 4, 6).double()
    if layout != 'contiguous':
        source = source.contiguous(memory_format=torch.channels_last)
    if layout == 'channels_last':
        grad = grad.contiguous(memory_format=torch.channels_last)
    rows, channels = axes
    by_row = source.movedim(axes, (0, 1)), grad.movedim(axes, (0, 1))
    expected = torch.tensor(
        [
            [float((a * b).sum()) for a, b in zip(x, y, strict=True)]
            for x, y in zip(*by_row, strict=True)
        ]
    ).double()
    found = mask_gradients(source, grad, channels, rows)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ('layout', 'limit'),
    [(torch.contiguous_format, 2 * 64), (torch.channels_last, 1 << 20)],
)
def test_taps_write_nothing_as_large_as_an_activation(layout, limit):
    """Memory that the backward of a tap takes, beside what there is."""
    source, grad = torch.randn(2, 2, 64, 128, 128)
    source = source.contiguous(memory_format=layout)
    grad = grad.contiguous(memory_format=layout)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            view = any(n in str(func) for n in ('split', 'detach', 'view'))
            if isinstance(out, torch.Tensor) and not view:
                sizes.append(out.numel())
            return out

    with Sizes():
        mask_gradients(source, grad, 1)
    assert max(sizes) <= limit


def detector_scores(**backbone) -> Tensor:
    """Of a detector of MMDetection on two made-up images."""
    require('mmdet')
    config = load_config(ROOT / 'configs/quickstart/retinanet_r18_digits.py')
    config.model.backbone.update(backbone)
    torch.manual_seed(0)
    model = build_model(config)
    groups = demo_groups(model, (64, 64))
    calls = record_calls(model.eval(), lambda: cost_runner((64, 64))(model))
    pruner = pruner_of(model, groups, calls)
    pruner.attach()
    losses = model.train()(**demo_data(model, (64, 64), 2, 'loss'))
    model.parse_losses(losses)[0].backward()
    assert pruner.criterion.end_batch()
    return torch.cat([torch.from_numpy(f) for f in sums(pruner)])


def test_activation_checkpointing_of_a_backbone():
    """``with_cp``: the layers run a second time in the backward."""
    torch.testing.assert_close(
        detector_scores(with_cp=True),
        detector_scores(with_cp=False),
        rtol=1e-4,
        atol=1e-12,
    )
