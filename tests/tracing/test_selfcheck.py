"""The self-check catches what tracing cannot see."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from nets import Chain, Net, Pyramid, Residual, conv, group, run
from oracles import kept, layout
from torch import nn

from mmgfp.slimming.surgery import cut_model
from mmgfp.tracing.finder import find_groups
from mmgfp.tracing.group_building import build_groups
from mmgfp.tracing.rules import find_rule
from mmgfp.tracing.selfcheck import (
    TOLERANCE,
    DifferenceError,
    UnsteadyError,
    check_groups,
    compare_outputs,
    mask_consumers,
    random_removal,
    randomize_,
    relative_error,
)
from mmgfp.tracing.trace import trace_labels
from mmgfp.utils.copies import shared_copy


def traced(model):
    """Groups as traced, before the self-check."""
    model.eval()
    return build_groups(trace_labels(model, lambda: run(model), find_rule))


# -- planted errors ----------------------------------------------------------


class Planted(Net):
    """Good layers around an error: only ``guilty`` must be frozen.

    ``side`` reads the guilty layer's channels in plain sight, so that tracing
    alone takes them for prunable.
    """

    prunable: ClassVar = {
        group('before1', 'before2', 6),
        group('before2', 'guilty', 4),
        group('reader', 'after1', 4),
        group('after1', 'after2', 6),
    }
    reason: ClassVar[str]
    reads: ClassVar[int] = 20

    def __init__(self):
        super().__init__()
        self.before1 = conv(3, 6)
        self.before2 = conv(6, 4)
        self.guilty = conv(4, 20)
        self.side = conv(20, 2)
        self.reader = conv(self.reads, 4)
        self.after1 = conv(4, 6)
        self.after2 = conv(6, 3)

    def forward(self, x):
        x = self.guilty(F.relu(self.before2(F.relu(self.before1(x)))))
        y = F.relu(self.reader(self.error(x)))
        return self.side(x), self.after2(F.relu(self.after1(y)))

    def error(self, x):
        raise NotImplementedError


class FixedCut(Planted):
    reason: ClassVar = 'does not run'
    reads: ClassVar = 10

    def error(self, x):
        return x[:, :10]


class FixedView(Planted):
    reason: ClassVar = 'does not run'

    def error(self, x):
        return x.view(len(x), 20, -1).reshape(len(x), 20, 16, 16)


class FixedOrder(Planted):
    """Runs on any number of channels, but means something else."""

    reason: ClassVar = 'differs by'

    def error(self, x):
        scale = torch.linspace(0, 1, x.shape[1])
        return x * scale.view(1, -1, 1, 1)


class HiddenOperation(Planted):
    """What other libraries compute is invisible to a dispatch mode."""

    reason: ClassVar = 'does not run'

    def error(self, x):
        return torch.from_numpy(x.detach().numpy()[:, ::-1].copy())


class FirstChannel(Planted):
    """Runs with any others: only removing this one moves another there."""

    reason: ClassVar = 'differs by'
    place: ClassVar = 0

    def error(self, x):
        return x[:, [self.place]].expand(-1, self.reads, -1, -1)


class LastChannel(FirstChannel):
    """Counted from the end."""

    place: ClassVar = -1


PLANTED = (
    FixedCut,
    FixedView,
    FixedOrder,
    HiddenOperation,
    FirstChannel,
    LastChannel,
)


@pytest.mark.parametrize('net', PLANTED, ids=lambda net: net.__name__)
def test_only_the_guilty_group_is_frozen(net):
    model = net()
    (before,) = (g for g in traced(model) if 'guilty' in g.producers)
    assert not before.frozen  # only the self-check can know

    groups = find_groups(model, run, images=2)
    assert layout(groups) == net.prunable
    (guilty,) = (g for g in groups if 'guilty' in g.producers)
    assert guilty.frozen.startswith('fails the self-check: ')
    assert net.reason in guilty.frozen


@pytest.mark.parametrize(
    ('net', 'message'),
    [(FixedCut, 'does not run'), (FirstChannel, 'differs by')],
)
def test_a_failing_proof_may_be_an_error(net, message):
    with pytest.raises(DifferenceError, match=message):
        find_groups(net(), run, images=2, strict=True)


class Conspiracy(Net):
    """Two layers whose widths the code wants to be the same."""

    prunable: ClassVar = {group('c', 'd', 6)}

    def __init__(self):
        super().__init__()
        self.a = conv(3, 9)
        self.b = conv(3, 9)
        self.c = conv(18, 6)
        self.d = conv(6, 5)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        if a.shape != b.shape:
            raise ValueError('a and b must be equally wide')
        return self.d(self.c(torch.cat([a, b], 1)))


def test_groups_are_proven_alone():
    """Equal shares of both would run, one channel of either would not."""
    groups = find_groups(Conspiracy(), run, images=2)
    assert layout(groups) == Conspiracy.prunable
    for layer in 'ab':
        (found,) = (g for g in groups if layer in g.producers)
        assert 'a and b must be equally wide' in found.frozen


class OneOfTwo(Net):
    """Fails only when both branches have lost channels."""

    def __init__(self):
        super().__init__()
        self.a = conv(3, 9)
        self.b = conv(3, 9)
        self.c = conv(9, 6)
        self.d = conv(9, 6)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        if a.shape[1] < 9 and b.shape[1] < 9:
            raise ValueError('too narrow')
        return self.c(a) + self.d(b)


def test_groups_that_only_fail_together():
    groups = find_groups(OneOfTwo(), run, images=2)
    frozen = {g.producers[0]: g.frozen for g in groups if g.producers}
    assert frozen['a'] == ''
    assert 'too narrow' in frozen['b']


class Many(Net):
    """Blocks of which some work only in full width, in whatever way."""

    count: ClassVar[int] = 32

    def __init__(self, how, bad):
        super().__init__()
        self.how, self.bad = how, set(bad)
        self.stem = conv(3, 6)
        blocks = range(self.count)
        self.wide = nn.ModuleList(conv(6, 8, 1) for _ in blocks)
        self.narrow = nn.ModuleList(conv(8, 6, 1) for _ in blocks)
        self.head = conv(6, 3, 1)

    def forward(self, x, losses=False):
        x = self.stem(x)
        for i, (wide, narrow) in enumerate(zip(self.wide, self.narrow)):
            y = wide(x)
            channels = len(wide.bias.tolist())  # torch does not see it
            if i in self.bad and self.how == 'raises':
                assert channels == 8, f'block {i} has {channels} channels'
            if i in self.bad and self.how == 'differs':
                y = y * (channels - 7)
            if i in self.bad and self.how == 'losses' and losses:
                assert channels == 8, f'block {i} has {channels} channels'
            x = x + narrow(F.relu(y))
        return self.head(x)


@pytest.mark.parametrize('how', ['raises', 'differs', 'losses'])
@pytest.mark.parametrize('bad', [[5], range(0, 32, 4)], ids=len)
def test_runs_grow_with_the_groups_that_fail(how, bad):
    """Not with all groups, as they would if each were tried."""
    runs = []

    def counted(model):
        runs.append(model)
        return run(model)

    def losses(model):
        runs.append(model)
        return model(model.batch(), losses=True).mean()

    model = Many(how, bad)
    groups = traced(model)
    train = losses if how == 'losses' else None
    checked = check_groups(model, groups, counted, train)
    failed = {g.name: g.frozen for g in checked if 'self-check' in g.frozen}
    assert list(failed) == [f'wide.{i}' for i in bad]
    told = 'differs by' if how == 'differs' else 'block {} has'
    assert all(told.format(i) in failed[f'wide.{i}'] for i in bad)
    assert len(runs) <= 12 + 9 * len(bad)


def test_wrong_groups_are_caught():
    """A unit whose slices belong to different channels."""
    model = Residual()
    groups = traced(model)
    (bad,) = (g for g in groups if g.name == 'a.conv1')
    producer = bad.members[0]
    object.__setattr__(producer, 'index', producer.index[::-1].copy())
    checked = check_groups(model, groups, run)
    frozen = [g.name for g in checked if 'self-check' in g.frozen]
    assert frozen == ['a.conv1']


def test_frozen_groups_pass_through():
    groups = [g.freeze('because') for g in traced(Chain())]
    assert check_groups(Chain(), groups, run) == groups


@pytest.mark.parametrize('net', [Chain, Pyramid])
def test_model_is_not_changed(net):
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    check_groups(model, traced(model), run)
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert {k: v.shape for k, v in after.items()} == {
        k: v.shape for k, v in before.items()
    }


def test_copies_share_parameters():
    """Neither slicing nor masking a copy reaches the model."""
    model = Residual().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = [g for g in traced(model) if not g.frozen]
    units = [np.array([0, 2])] * len(found)
    sliced, masked = shared_copy(model), shared_copy(model)
    for copied in (sliced, masked):
        for mine, other in zip(model.buffers(), copied.buffers()):
            assert mine.data_ptr() != other.data_ptr()  # forwards write
        for mine, other in zip(model.parameters(), copied.parameters()):
            assert mine.data_ptr() == other.data_ptr()
            assert mine is not other
    cut_model(sliced, kept(sliced, found, {g.name: [0, 2] for g in found}))
    mask_consumers(masked, found, units)
    assert sliced.stem.out_channels == 6
    assert not masked.head.weight[:, [0, 2]].any()
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert model.stem.out_channels == 8


@pytest.mark.parametrize('calls', [0, 1, 2, 3])
def test_model_is_not_changed_when_its_forward_raises(calls):
    model = Chain().train()
    groups = traced(model)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    left = [calls]

    def failing(model):
        left[0] -= 1
        if left[0] < 0:
            raise ValueError('no more')
        return run(model)

    try:
        checked = check_groups(model, groups, failing)
        assert all(g.frozen for g in checked)
    except ValueError:  # where the masked network does not run
        pass
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert all(p.grad is None for p in model.parameters())
    assert model.training


# -- precision ---------------------------------------------------------------


class Amplifying(Net):
    """What single precision rounds becomes a difference."""

    prunable: ClassVar = {group('stem', 'a b', 96)}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 96)
        self.a = conv(96, 4)
        self.b = conv(96, 4)

    def forward(self, x):
        x = self.stem(x)
        return torch.sin(self.a(x) * 1e4) + self.b(x)


def test_rounding_is_no_difference():
    assert layout(find_groups(Amplifying(), run, 2)) == Amplifying.prunable


@pytest.mark.parametrize('net', [Chain, Amplifying])
def test_double_precision_only_where_need_be(net):
    types = []

    def watched(model):
        types.append(next(model.parameters()).dtype)
        return run(model)

    model = net()
    check_groups(model, traced(model), watched)
    assert types[0] == torch.float32
    assert (torch.float64 in types) == (net is Amplifying)


def test_double_precision_rejects_as_well():
    model = Amplifying()
    groups = traced(model)
    (bad,) = (g for g in groups if not g.frozen)
    producer = bad.members[0]
    object.__setattr__(producer, 'index', producer.index[::-1].copy())
    assert all(g.frozen for g in check_groups(model, groups, run))


class SingleOnly(FixedOrder):
    """Single precision only, as some compiled operations are."""

    def error(self, x):
        if x.dtype != torch.float32:
            raise RuntimeError('"kernel" not implemented for Double')
        return super().error(x)


def test_single_precision_will_do():
    groups = find_groups(SingleOnly(), run, images=2)
    assert layout(groups) == SingleOnly.prunable
    (guilty,) = (g for g in groups if 'guilty' in g.producers)
    assert 'differs by' in guilty.frozen


class SingleOperation(torch.autograd.Function):
    """A compiled operation that knows single precision alone."""

    @staticmethod
    def forward(ctx, x):
        if x.dtype != torch.float32:
            raise RuntimeError('expected scalar type Float')
        return x[:, :1]


class SingleInside(Amplifying):
    """Numbers and operations in single precision, whatever the weights."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1)

    def forward(self, x):
        scale = self.scale(torch.ones(1, 1))  # of the default type
        return super().forward(x) * scale[0], SingleOperation.apply(x)


def test_double_precision_around_what_is_single():
    before = torch.get_default_dtype()
    groups = find_groups(SingleInside(), run, 2)
    assert set(layout(groups)) >= Amplifying.prunable
    assert torch.get_default_dtype() == before


class Unused(SingleInside):
    """Its losses insist on single precision."""

    def __init__(self):
        super().__init__()
        self.auxiliary = conv(4, 2)

    def losses(self):
        outputs, _ = run(self)
        target = torch.zeros_like(outputs, dtype=torch.float32)
        target[:1] = outputs[:1]  # fails unless both are single
        return (outputs - target).sum() + self.auxiliary(outputs).sum()


def test_losses_that_insist_on_single_precision():
    """They only have to be computable: rounding makes them differ."""
    ran = []

    def losses(model):
        ran.append(next(model.parameters()).dtype)
        return model.losses()

    groups = find_groups(Unused(), run, 2, losses)
    assert Amplifying.prunable <= set(layout(groups))
    assert torch.float64 in ran


class Exponential(Amplifying):
    """Overflows with weights that are not as small as its own."""

    def __init__(self):
        super().__init__()
        for weight in self.parameters():
            nn.init.normal_(weight, std=1e-4)

    def forward(self, x):
        x = (100 * self.a(self.stem(x))).exp() + self.b(self.stem(x))
        return x - x.mean()


def test_other_weights_where_numbers_overflow():
    groups = find_groups(Exponential(), run, 2)
    assert layout(groups) == Exponential.prunable


class ChaoticWhenSmall(Amplifying):
    """Rounding decides, in any precision and with any weights."""

    def forward(self, x):
        scale = 1e18 if x.shape[2] == 8 else 1.0
        x = self.stem(x)
        return torch.sin(self.a(x) * scale) + self.b(x)


def test_nothing_is_told_where_rounding_decides():
    def small(model):
        return model(model.batch()[..., :8, :8])

    with pytest.raises(
        UnsteadyError, match='rounding errors decide the outputs'
    ):
        find_groups(ChaoticWhenSmall(), small, 2)
    groups = find_groups(ChaoticWhenSmall(), run, 2)
    assert layout(groups) == ChaoticWhenSmall.prunable


def test_an_input_that_differs_each_time():
    def run(model):
        return model(torch.rand(2, 3, 16, 16))

    with pytest.raises(ValueError, match='different outputs for the same'):
        find_groups(Chain(), run, 2)


# -- nothing to compare -------------------------------------------------------


class Saturated(Chain):
    """Puts out ones, whatever the weights are."""

    def forward(self, x):
        return torch.sigmoid(1e4 * super().forward(x).abs() + 1e4)


@pytest.mark.parametrize('share', [1, 0])
def test_outputs_that_no_channel_has_a_part_in_prove_nothing(share):
    """Be they equal or empty."""
    model = Saturated()
    groups = [g for g in traced(model) if not g.frozen]
    checked = check_groups(model, groups, lambda m: run(m)[: 2 * share])
    assert len(checked) == 2
    assert all(g.frozen.startswith('fails the self-check') for g in checked)


def test_nothing_that_moves_may_be_an_error():
    model = Saturated()
    groups = [g for g in traced(model) if not g.frozen]
    with pytest.raises(DifferenceError, match='changes no output'):
        check_groups(model, groups, run, strict=True)


def test_losses_may_be_what_tells():
    model = Saturated()
    groups = [g for g in traced(model) if not g.frozen]
    checked = check_groups(
        model, groups, run, lambda m: Chain.forward(m, m.batch()).mean()
    )
    assert not any(g.frozen for g in checked)


# -- losses ------------------------------------------------------------------


class Distilled(Net):
    """Losses compare what ``features`` makes with something of its width."""

    prunable: ClassVar = {
        group('stem', 'features', 8),
        group('hidden', 'out', 6),
    }
    size: ClassVar[int] = 12

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.features = conv(8, self.size)
        self.hidden = conv(self.size, 6)
        self.out = conv(6, 2)
        generator = torch.Generator().manual_seed(3)
        self.given = torch.rand(5, self.size, generator=generator)

    def forward(self, x, losses=False):
        features = self.features(F.relu(self.stem(x)))
        out = self.out(F.relu(self.hidden(F.relu(features))))
        if losses:
            rows = features.mean((2, 3))
            return dict(loss=out.mean(), feature=self.compare(rows, x))
        return out

    def compare(self, rows, x):
        """Of a tensor that is neither parameter nor buffer."""
        return (rows - self.given[:1]).square().mean()


class HiddenTeacher(Distilled):
    """Another network, which is no submodule."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, 'teacher', conv(3, self.size))

    def compare(self, rows, x):
        return (rows - self.teacher(x).mean((2, 3))).abs().mean()


class Centres(Distilled):
    """Of classes, in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer('centres', self.given.clone())

    def compare(self, rows, x):
        return torch.cdist(rows, self.centres).mean()


class MemoryBank(Centres):
    """That training writes into."""

    def compare(self, rows, x):
        with torch.no_grad():
            self.centres[:2] = rows
            self.centres.copy_(self.centres.roll(1, 0))
        return (rows @ self.centres.t()).square().mean()


class TextEmbedding(Distilled):
    """Made by code outside of the network."""

    embed: ClassVar = nn.Embedding(3, 12)

    def compare(self, rows, x):
        words = self.embed(torch.tensor([1]))
        return F.cosine_similarity(rows, words).mean()


class Constants(Distilled):
    """Numbers that torch does not see."""

    def compare(self, rows, x):
        target = self.given[:2].numpy() - rows.detach().numpy()
        return rows.mean() * float(np.abs(target).mean())


class FirstFew(Distilled):
    """Runs on fewer channels, as long as there are four."""

    def compare(self, rows, x):
        return (rows[:, :4] - self.given[:1, :4]).square().mean()


class Broadcast(Distilled):
    """Two channels of which one is left meet both numbers."""

    size: ClassVar = 2


DISTILLED = (
    *(Distilled, HiddenTeacher, Centres, MemoryBank, TextEmbedding),
    *(Constants, FirstFew, Broadcast),
)


def losses(model):
    return model(model.batch(), losses=True)


@pytest.mark.parametrize('net', DISTILLED, ids=lambda net: net.__name__)
def test_features_that_losses_compare_stay(net):
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    groups = find_groups(model, run, 2, losses)
    assert layout(groups) == net.prunable
    (features,) = (g for g in groups if g.producers == ['features'])
    assert 'where the losses are computed' in features.frozen
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


class Harmless(Distilled):
    """Losses that read features, but bind no width."""

    prunable: ClassVar = {*Distilled.prunable, group('features', 'hidden', 12)}

    def compare(self, rows, x):
        raise NotImplementedError


class WeightPenalty(Harmless):
    """Differs from that of the masked network, for all images alike."""

    def compare(self, rows, x):
        return sum(p.abs().mean() for p in self.parameters())


class GradientPenalty(Harmless):
    """Needs gradients of gradients."""

    def forward(self, x, losses=False):
        if not losses:
            return super().forward(x)
        x = x.clone().requires_grad_()
        out = super().forward(x)
        (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return dict(loss=out.mean(), penalty=grad.square().mean())


class Drawing(Harmless):
    """Adds noise of the width there is."""

    def forward(self, x, losses=False):
        if losses:
            stem = F.relu(self.stem(x))
            x = self.features(stem + torch.randn_like(stem))
            return self.out(F.relu(self.hidden(F.relu(x)))).mean()
        return super().forward(x)


@pytest.mark.parametrize(
    'net', [WeightPenalty, GradientPenalty, Drawing], ids=lambda n: n.__name__
)
def test_losses_that_bind_no_width(net):
    assert layout(find_groups(net(), run, 2, losses)) == net.prunable


def test_losses_that_cannot_be_computed_are_no_proof():
    def fails(model):
        raise KeyError('gt_instances')

    with pytest.warns(UserWarning, match=r"KeyError: 'gt_instances'"):
        groups = find_groups(Distilled(), run, 2, fails)
    assert layout(groups) == Harmless.prunable


# -- its parts ---------------------------------------------------------------


def test_random_removal():
    groups = traced(Pyramid())
    groups = [g for g in groups if not g.frozen]
    removal = random_removal(groups, 1 / 3, seed=5)
    for found in groups:
        units = removal[found.name]
        assert len(units) == round(found.size / 3)
        assert len(set(units)) == len(units)
        assert units.min() >= 0 and units.max() < found.size
    again = random_removal(groups, 1 / 3, seed=5)
    assert all((again[k] == v).all() for k, v in removal.items())
    every = random_removal(groups, 1.0, seed=5)
    assert all(len(every[g.name]) == g.size - 1 for g in groups)


def test_randomised_parameters():
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Linear(8, 4))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[2].weight)
    randomize_(model, seed=0)
    for name, tensor in model.state_dict().items():
        if tensor.dim():
            assert len(tensor.unique()) == tensor.numel(), name
    assert (model[1].weight > 0.5).all()
    assert (model[1].running_var > 0.5).all()
    assert model[1].running_mean.abs().max() < 1
    assert int(model[1].num_batches_tracked) == 0
    twin = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Linear(8, 4))
    randomize_(twin, seed=0)
    assert torch.equal(twin[2].weight, model[2].weight)


@pytest.mark.parametrize(
    ('outputs', 'message'),
    [
        ([torch.ones(2, 3)], ''),
        ([torch.ones(2, 3) + TOLERANCE / 4], ''),
        ([torch.ones(2, 3) + TOLERANCE * 4], 'output 0 differs by 4.0e-05'),
        ([torch.full((2, 3), torch.nan)], 'output 0 differs by nan'),
        ([torch.full((2, 3), torch.inf)], 'output 0 differs by inf'),
        ([torch.ones(2, 2)], 'shape (2, 2) instead of (2, 3)'),
        ([], '0 outputs instead of 1'),
    ],
)
def test_compare_outputs(outputs, message):
    found = compare_outputs([torch.ones(2, 3)], outputs)
    assert message in found
    assert bool(found) == bool(message)


@pytest.mark.parametrize('outputs', [[], [torch.zeros(0, 4)]])
def test_a_comparison_of_nothing_is_no_pass(outputs):
    assert 'no numbers to compare' in compare_outputs(outputs, outputs)


def test_relative_error():
    expected = torch.tensor([4.0, -8.0])
    assert relative_error(expected, expected + 0.5) == pytest.approx(1 / 16)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.zeros(2), torch.ones(2)) > 1e30
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0
    assert np.isnan(relative_error(expected, expected * torch.nan))
    turned = torch.complex(expected, expected)
    assert relative_error(turned, turned.conj()) == pytest.approx(2)
