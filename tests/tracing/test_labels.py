"""Labels of single operations, against what indices do under them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from traced import Weights, coupled, frozen, labels_of, pair

from mmgfp.tracing.label_layers import along, canonical
from mmgfp.tracing.rules import find_rule
from mmgfp.tracing.slots import SlotTable
from mmgfp.tracing.trace import trace_labels

# -- slots -------------------------------------------------------------------


def test_slots():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    table = SlotTable(model)
    # axes of size 1 and scalars have no slots
    assert table.axes == [
        ('0.weight', 0),
        ('0.weight', 1),
        ('0.bias', 0),
        ('1.weight', 0),
        ('1.bias', 0),
        ('1.running_mean', 0),
        ('1.running_var', 0),
    ]
    assert len(table) == 4 + 3 + 5 * 4
    assert table.slots('0.weight', 1).tolist() == [4, 5, 6]
    assert table.describe(0) == ('0.weight', 0, 0)
    assert table.describe(6) == ('0.weight', 1, 2)
    assert table.describe(7) == ('0.bias', 0, 0)
    assert table.describe(26) == ('1.running_var', 0, 3)
    assert table.axis_ids(np.array([0, 3, 4, 6, 7, 26])).tolist() == [
        *(0, 0, 1, 1, 2, 6),
    ]


def test_shared_tensors_have_one_name():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight = model[0].weight
    assert set(SlotTable(model).tensors) == {'0.weight', '0.bias', '1.bias'}


def test_canonical():
    layer = torch.arange(3).view(3, 1).repeat(1, 4)
    assert canonical(layer).stride()[1] == 0
    assert layer.stride()[1] != 0
    assert torch.equal(canonical(layer), layer)
    assert canonical(torch.full((2, 5), 7)).stride() == (0, 0)
    mixed = torch.arange(6).view(2, 3)
    assert canonical(mixed).stride() == (3, 1)
    assert along(layer, 0).tolist() == [0, 1, 2]
    assert along(mixed, -1).tolist() == [0, 1, 2]


# -- structure ---------------------------------------------------------------

# What an operation does to positions is what it does to the numbers 0, 1, ...
STRUCTURE = {
    'flatten': lambda x: x.flatten(1),
    'transpose': lambda x: x.transpose(0, 1),
    'permute': lambda x: x.permute(2, 0, 1),
    'unsqueeze': lambda x: x.unsqueeze(1),
    'select': lambda x: x[3],
    'negative slice': lambda x: x[-4:],
    'odd slice': lambda x: x[1:6],
    'step': lambda x: x[1::3],
    'flip': lambda x: x.flip(0),
    'roll': lambda x: x.roll(2, 0),
    'index': lambda x: x[torch.tensor([3, 1, 1])],
    'index_select': lambda x: x.index_select(0, torch.tensor([5, 0])),
    'boolean': lambda x: x[torch.arange(8) % 3 == 0],
    'repeat': lambda x: x.repeat(2, 1, 1),
    'repeat_interleave': lambda x: x.repeat_interleave(2, 0),
    'expand': lambda x: x.expand(2, 8, 3, 2),
    'cat': lambda x: torch.cat([x[4:], x[:4]]),
    'stack': lambda x: torch.stack([x, x], 1),
    'split': lambda x: x.split([3, 5])[1],
    'chunk': lambda x: x.chunk(2)[1],
    'unbind': lambda x: x.unbind(1)[0],
    'view': lambda x: x.view(8, 1, 6),
    'unflatten': lambda x: x.unflatten(1, (3, 1)),
    'shuffle': lambda x: F.channel_shuffle(x.view(1, 8, 3, 2), 4),
    'pixel_shuffle': lambda x: F.pixel_shuffle(x.view(1, 8, 3, 2), 2),
    'pixel_unshuffle': lambda x: F.pixel_unshuffle(
        x[:, :2].view(1, 8, 2, 2), 2
    ),
    'contiguous': lambda x: x.contiguous(),
    'clone': lambda x: x.clone(),
    'double': lambda x: x.double(),
    'unfold': lambda x: x.unfold(0, 4, 2),
    'diagonal': lambda x: x.diagonal(0, 0, 1),
}


@pytest.mark.parametrize('name', STRUCTURE)
def test_structure(name):
    model = Weights(w=(8, 1, 1))
    change = STRUCTURE[name]
    _, layers = labels_of(model, lambda: change(model.w.expand(8, 3, 2)))
    numbers = torch.arange(8.0).view(8, 1, 1).expand(8, 3, 2)
    (layer,) = layers
    assert layer.tolist() == change(numbers).long().tolist()
    assert layer.dtype == np.int64


def test_two_axes_are_two_layers():
    model = Weights(w=(4, 3))
    _, layers = labels_of(model, lambda: model.w.t().relu())
    rows, columns = sorted(layers, key=lambda layer: layer.max())
    assert rows.tolist() == [[0, 1, 2, 3]] * 3
    assert columns.tolist() == [[n] * 4 for n in (4, 5, 6)]


# -- what couples ------------------------------------------------------------


def test_elementwise():
    model = Weights(a=(3, 1), b=(3, 1), c=(1, 2))
    tracer, layers = labels_of(model, lambda: (model.a + model.b) * model.c)
    assert coupled(tracer) == {
        pair(('a', 0, i), ('b', 0, i)) for i in range(3)
    }
    assert len(layers) == 2  # along different axes they do not meet
    assert not frozen(tracer)


@pytest.mark.parametrize(
    'operation',
    [
        torch.add,
        torch.mul,
        torch.maximum,
        torch.max,
        torch.div,
        torch.pow,
        torch.atan2,
        lambda a, b: torch.where(a > 0, a, b),
        lambda a, b: torch.lerp(a, b, 0.5),
        lambda a, b: torch.addcmul(a, a, b),
        lambda a, b: a.clone().add_(b),
        lambda a, b: a.clone().copy_(b),
        lambda a, b: a.masked_fill(b > 0, 0.0),
        lambda a, b: F.prelu(a.t(), b[:, 0]).t() + b,
    ],
)
def test_what_meets_is_coupled(operation):
    model = Weights(a=(3, 2), b=(3, 2))
    tracer, _ = labels_of(model, lambda: operation(model.a, model.b))
    pairs = coupled(tracer)
    assert {pair(('a', 0, i), ('b', 0, i)) for i in range(3)} <= pairs
    assert all(len({axis for _, axis, _ in p}) == 1 for p in pairs)


def test_splitting_an_axis_couples_columns():
    model = Weights(w=(6, 1))
    tracer, _ = labels_of(model, lambda: model.w.view(2, 3, 1))
    assert coupled(tracer) == {
        pair(('w', 0, i), ('w', 0, i + 3)) for i in range(3)
    }


@pytest.mark.parametrize(
    ('cut', 'together'),
    [
        (lambda w: w[:3], {(0, 3), (1, 4), (2, 5)}),
        (lambda w: w[3:], {(0, 3), (1, 4), (2, 5)}),
        (lambda w: w[2:4], {(0, 2), (0, 4), (1, 3), (1, 5)}),
        (lambda w: w[::2], {(0, 1), (2, 3), (4, 5)}),
        (lambda w: w[1::3], {(0, 1), (0, 2), (3, 4), (3, 5)}),
        (lambda w: w[:4], set()),  # no equal part: a fixed number
        (lambda w: w[1:3], set()),
        (lambda w: w[:], set()),
        (lambda w: w.chunk(3)[0], {(0, 2), (0, 4), (1, 3), (1, 5)}),
    ],
)
def test_cutting_couples_equal_parts(cut, together):
    model = Weights(w=(6, 1))
    tracer, _ = labels_of(model, lambda: cut(model.w))
    assert coupled(tracer) == {
        pair(('w', 0, i), ('w', 0, j)) for i, j in together
    }


def test_unequal_split_is_frozen():
    model = Weights(w=(6, 1))
    tracer, _ = labels_of(model, lambda: model.w.split([2, 4])[0])
    assert len(frozen(tracer)) == 6
    assert all('parts of [2, 4]' in r for r in frozen(tracer).values())


# -- what freezes ------------------------------------------------------------


@pytest.mark.parametrize(
    ('operation', 'reason'),
    [
        (lambda x: x.mean(0), 'mean over these channels'),
        (lambda x: x.sum(), 'sum over these channels'),
        (lambda x: x.amax(0, keepdim=True), 'amax over these channels'),
        (lambda x: x.softmax(0), 'softmax over these channels'),
        (lambda x: x.cumsum(0), 'cumsum over these channels'),
        (lambda x: x.sort(0)[0], 'sort over these channels'),
        (lambda x: x.topk(2, 0)[0], 'topk over these channels'),
        (lambda x: torch.fft.fft(x, dim=0), 'fft'),
        (lambda x: x.t() @ x, 'summed over by a product'),
        (lambda x: x.relu().t() @ x.relu(), 'summed over by a product'),
        (
            lambda x: torch.linalg.vector_norm(x, dim=0),
            'norm over these channels',
        ),
        (lambda x: x.var(0), 'var over these channels'),
        (lambda x: F.normalize(x, dim=0), 'norm'),
    ],
)
def test_mixing_freezes(operation, reason):
    model = Weights(w=(4, 3))
    tracer, _ = labels_of(model, lambda: operation(model.w))
    reasons = frozen(tracer)
    for i in range(4):
        assert reason in reasons['w', 0, i]
        assert 'in the network itself' in reasons['w', 0, i]


@pytest.mark.parametrize(
    'operation',
    [
        lambda x: x.mean(1),
        lambda x: x.softmax(1),
        lambda x: x.sum(1, keepdim=True),
        lambda x: x.max(1)[0],
        lambda x: F.avg_pool1d(x[None], 2),
        lambda x: F.interpolate(x[None], scale_factor=2),
        lambda x: F.max_pool1d(x[None], 2),
        lambda x: F.pad(x, (1, 1)),
        lambda x: F.normalize(x, dim=1),
        lambda x: torch.linalg.vector_norm(x, dim=1),
        lambda x: x.var(1),
        lambda x: torch.var_mean(x, 1)[1],
        lambda x: x.argmax(1),
        lambda x: x.logsumexp(1),
    ],
)
def test_working_along_another_axis_keeps_labels(operation):
    model = Weights(w=(4, 1))
    tracer, layers = labels_of(
        model, lambda: operation(model.w.expand(4, 6).relu())
    )
    assert not frozen(tracer)
    (layer,) = layers
    channels = np.moveaxis(layer, layer.shape.index(4), 0).reshape(4, -1)
    assert (channels == np.arange(4)[:, None]).all()


def test_padding_channels_freezes_what_meets_the_pad():
    model = Weights(a=(3, 1), b=(5, 1))
    tracer, _ = labels_of(
        model, lambda: F.pad(model.a, (0, 0, 1, 1)) + model.b
    )
    assert coupled(tracer) == {
        pair(('a', 0, i), ('b', 0, i + 1)) for i in range(3)
    }
    assert set(frozen(tracer)) == {('b', 0, 0), ('b', 0, 4)}


def test_input_freezes():
    model = Weights(w=(4,))
    image = torch.rand(4)
    tracer, _ = labels_of(model, lambda: model.w + image)
    (reason,) = set(frozen(tracer).values())
    assert reason.startswith('comes from the input')
    # numbers and integers do not
    tracer, _ = labels_of(
        model, lambda: model.w * torch.tensor(2.0) + torch.arange(4)
    )
    assert not frozen(tracer)


def test_convolution_with_a_computed_kernel():
    model = Weights(a=(4, 3, 1, 1), b=(4, 3, 1, 1))
    image = torch.rand(1, 3, 4, 4)
    tracer, _ = labels_of(
        model, lambda: F.conv2d(image, model.a + image.mean())
    )
    assert any('the network computes' in r for r in frozen(tracer).values())
    # of one weight, it is still that weight
    tracer, (layer,) = labels_of(
        model, lambda: F.conv2d(image, model.a * 2 - 1)
    )
    assert layer[0, :, 0, 0].tolist() == [0, 1, 2, 3]


# -- the whole forward -------------------------------------------------------


def test_trace_tells_who_consumes_and_produces():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2)
    ).eval()
    image = torch.rand(1, 3, 4, 4)
    trace = trace_labels(model, lambda: model(image), find_rule)
    plain, grouped = trace.uses
    assert (plain.weight, plain.axis, plain.grouped) == ('0.weight', 1, False)
    assert (grouped.weight, grouped.axis) == ('2.weight', 0)
    assert grouped.grouped and grouped.module == '2'
    start = trace.table.slots('2.weight', 0)[0]
    assert [s - start for s in grouped.slots] == [0, 0, 3, 3]
    assert trace.issued == [('0.weight', 0, 4), ('2.weight', 0, 6)]
    assert list(trace.order)[:2] == ['0.weight', '0.bias']


def test_hooks_are_removed_when_the_forward_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    from torch.nn.modules import module as hooks

    before = (
        len(hooks._global_forward_hooks),
        len(hooks._global_forward_pre_hooks),
    )
    with pytest.raises(RuntimeError):
        trace_labels(model, lambda: model(torch.rand(1, 5, 4, 4)), find_rule)
    after = (
        len(hooks._global_forward_hooks),
        len(hooks._global_forward_pre_hooks),
    )
    assert after == before


def test_only_operations_of_the_network_have_rules():
    """What sizes and outputs are looked at with is none of them."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.channels = 8
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            x = self.conv(x).view(2, self.channels, -1)
            return x[:, : self.channels].expand(2, 8, 16).split(4, 1)

    ruled, ran = [], []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            ran.append(func)
            return func(*args, **(kwargs or {}))

    def noted(func):
        ruled.append(func)
        return find_rule(func)

    model, image = Block().eval(), torch.rand(2, 3, 4, 4)
    trace_labels(model, lambda: model(image), noted)
    with torch.no_grad(), Noting():
        model(image)
    assert ruled == ran


def test_place_of_an_unknown_operation():
    class Inner(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x, dim=1).real

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Inner())).eval()
    image = torch.rand(1, 3, 4, 4)
    trace = trace_labels(model, lambda: model(image), find_rule)
    assert any(
        '_fft_r2c, which has no rule, in 1.0' in reason
        for _, reason in trace.frozen
    )
