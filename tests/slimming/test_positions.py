"""Labels of what is picked or placed by position; compiled operations.

And modules that only training uses.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from nets_detection import Compiled, Swish
from torch import Tensor, nn
from traced import Weights, coupled, frozen, labels_of, pair

from mmgfp.tracing.finder import find_groups
from mmgfp.tracing.labels import LabelTracer
from mmgfp.tracing.rules import find_rule
from mmgfp.tracing.rules_extension import watch_compiled

# Features of 4 channels at 6 places, and a score per place or per channel.
CHANNELS, PLACES = 4, 6
COMPUTED = 'picked by computed positions'


def features(model: nn.Module) -> Tensor:
    """(4 channels, 6 places)."""
    return model.w.expand(CHANNELS, PLACES).relu()


def best(score: Tensor) -> Tensor:
    return score.flatten() > -1


# What is done with features and a score per place keeps the channels.
ALONG_PLACES = {
    'mask': lambda x, s: x[:, best(s)],
    'nonzero': lambda x, s: x[:, best(s).nonzero()[:, 0]],
    'no rows': lambda x, s: x[:, s.flatten() > 9],
    'index_select': lambda x, s: x.index_select(1, s.argsort().flatten()[:2]),
    'gather': lambda x, s: x.gather(1, s.argsort().expand(4, -1)[:, :3]),
    'transposed rows': lambda x, s: x.t()[best(s)],
    'sort': lambda x, s: x.sort(1)[0],
    'topk': lambda x, s: x.topk(2, 1)[0],
    'cummax': lambda x, s: x.cummax(1)[0],
    'masked_fill': lambda x, s: x.masked_fill(s > 0, 0.0),
    'times mask': lambda x, s: x * (s > 0),
}


@pytest.mark.parametrize('name', ALONG_PLACES)
def test_picking_places_keeps_channels(name):
    model = Weights(w=(CHANNELS, 1), s=(1, PLACES))
    operation = ALONG_PLACES[name]
    tracer, layers = labels_of(
        model, lambda: operation(features(model), model.s.sigmoid())
    )
    channels = {('w', 0, i) for i in range(CHANNELS)}
    assert not channels & frozen(tracer).keys()
    start = tracer.table.slots('w', 0)[0]
    found = [layer - start for layer in layers]
    if name == 'no rows':
        assert not layers
    else:  # channels, in their order, and maybe what is left of the score's
        axis = 1 if name == 'transposed rows' else 0
        expected = torch.arange(4).view((-1, 1) if axis == 0 else (1, -1))
        assert any((layer == expected.numpy()).all() for layer in found)
    assert not coupled(tracer)


# What is done with features and a score per channel freezes the channels.
ALONG_CHANNELS = {
    'mask': (lambda x, s: x[best(s)], COMPUTED),
    'nonzero': (lambda x, s: x[best(s).nonzero()[:, 0]], 'nonzero'),
    'index_select': (
        lambda x, s: x.index_select(0, (s.flatten() > 0).long()),
        COMPUTED,
    ),
    'gather': (lambda x, s: x.gather(0, (s > 0).long()), COMPUTED),
    'sort': (lambda x, s: x.sort(0)[0], 'sort over these channels'),
    'topk': (lambda x, s: x.topk(2, 0)[0], 'topk over these channels'),
    'cummax': (lambda x, s: x.cummax(0)[0], 'cummax over these channels'),
}


@pytest.mark.parametrize('name', ALONG_CHANNELS)
def test_picking_channels_freezes_them(name):
    model = Weights(w=(CHANNELS, 1), s=(CHANNELS, 1))
    operation, reason = ALONG_CHANNELS[name]
    tracer, _ = labels_of(
        model, lambda: operation(features(model), model.s.sigmoid())
    )
    reasons = frozen(tracer)
    assert any(reason in r for r in reasons.values()), reasons
    slots = [w for w in reasons if w[0] == 'w'] or [*reasons]
    assert len(slots) == CHANNELS


def test_embedding():
    """Rows that are computed; the columns are channels."""
    model = Weights(table=(5, 4), w=(3,))
    tracer, layers = labels_of(
        model, lambda: F.embedding((model.w > 0).long(), model.table)
    )
    reasons = frozen(tracer)
    assert {slot[:2] for slot in reasons} == {('table', 0)}
    assert all(COMPUTED in r for r in reasons.values())
    start = tracer.table.slots('table', 1)[0]
    (layer,) = layers
    assert (layer - start).tolist() == [[0, 1, 2, 3]] * 3
    # constant ones: which row is where is known
    tracer, layers = labels_of(
        model, lambda: F.embedding(torch.tensor([3, 0]), model.table)
    )
    assert not frozen(tracer)
    rows, columns = sorted(layers, key=lambda layer: layer.max())
    assert rows.tolist() == [[3] * 4, [0] * 4]
    assert columns.tolist() == [[5, 6, 7, 8]] * 2


def test_placed_into_a_fresh_tensor():
    """Rows without a value have no labels, the others the values'."""
    model = Weights(w=(CHANNELS, 1))

    def placed():
        out = torch.zeros(3, CHANNELS, PLACES)
        out[torch.tensor([0, 2])] = features(model).expand(2, -1, -1)
        return out

    tracer, (layer,) = labels_of(model, placed)
    assert not frozen(tracer)
    assert layer[0, :, 0].tolist() == layer[2, :, 0].tolist() == [0, 1, 2, 3]
    assert (layer[1] == -1).all()


def test_placed_into_activations():
    """Channels of what is there already and of the values meet."""
    model = Weights(w=(CHANNELS, 1), v=(CHANNELS, 1), s=(PLACES,))

    def placed():
        x = features(model).t().contiguous()
        x[model.s > 0.5] = model.v[:, 0].tanh()
        return x

    tracer, _ = labels_of(model, placed)
    assert coupled(tracer) >= {
        pair(('w', 0, i), ('v', 0, i)) for i in range(CHANNELS)
    }
    assert not {slot for slot in frozen(tracer) if slot[0] in 'wv'}


def test_placed_at_computed_channels():
    model = Weights(w=(CHANNELS, 1), v=(2, 1), s=(CHANNELS,))

    def placed():
        x = features(model)
        x[model.s.topk(2)[1]] = model.v.tanh()
        return x

    tracer, _ = labels_of(model, placed)
    reasons = frozen(tracer)
    values = {slot: r for slot, r in reasons.items() if slot[0] == 'v'}
    assert len(values) == 2
    assert all('computed positions' in r for r in values.values())


def test_times_zero():
    """A dummy that only keeps a parameter in the graph."""
    model = Weights(w=(CHANNELS, 1), v=(7, 1))
    tracer, layers = labels_of(
        model, lambda: features(model) + 0.0 * model.v.sum() + model.v[2] * 0
    )
    assert {slot[0] for slot in frozen(tracer)} <= {'v'}
    assert len(layers) == 1
    assert not coupled(tracer)


# -- compiled operations -----------------------------------------------------


def test_what_is_put_around_compiled_operations_is_removed():
    before = vars(Swish)['forward']
    tracer = LabelTracer(nn.Linear(1, 1), find_rule)
    with pytest.raises(ValueError), watch_compiled(tracer):
        assert vars(Swish)['forward'] is not before
        raise ValueError
    assert vars(Swish)['forward'] is before


def test_compiled_operation_beside_the_image():
    """The image alone freezes nothing; what is labelled stays."""
    model, image = Weights(w=(4, 1)), torch.rand(4, 3)
    tracer, _ = labels_of(model, lambda: Compiled.apply(image) * 2)
    assert not frozen(tracer)
    tracer, _ = labels_of(model, lambda: Compiled.apply(model.w))
    assert len(frozen(tracer)) == 4
    assert all('Compiled' in reason for reason in frozen(tracer).values())


# -- modules that only training uses -----------------------------------------


class Auxiliary(nn.Module):
    """A head for the loss on what the body makes; one that nothing calls."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)
        self.hidden = nn.Conv2d(6, 5, 1)
        self.auxiliary = nn.Conv2d(5, 4, 1)
        self.unused = nn.Conv2d(6, 6, 1)

    def forward(self, x, train=False):
        x = torch.relu(self.stem(x))
        out = self.head(torch.relu(self.body(x)))
        if not train:
            return out
        return out.mean() + self.auxiliary(self.hidden(x).relu()).mean()


IMAGES = torch.rand(2, 3, 8, 8)


def run(model):
    return model(IMAGES)


def groups_of(train) -> dict:
    groups = find_groups(Auxiliary(), run, images=2, train=train)
    return {g.name: g for g in groups if g.producers}


def test_training_only_modules_go_along():
    groups = groups_of(lambda model: model(IMAGES, train=True))
    assert groups['stem'].frozen == ''
    assert groups['stem'].consumers == ['body', 'hidden']
    assert groups['hidden'].frozen == ''
    assert groups['hidden'].consumers == ['auxiliary']
    assert 'mean over these channels' in groups['auxiliary'].frozen
    assert 'unused' not in groups


def test_training_that_fails_tells_nothing_of_what_it_did_not_reach():
    def train(model):
        model.stem(IMAGES)
        raise KeyError('gt_keypoints')

    with pytest.warns(
        UserWarning, match='3 layers do not run in the demo forward.*hidden'
    ):
        groups = groups_of(train)
    assert groups.keys() == {'stem', 'body', 'head'}
    assert groups['stem'].consumers == ['body']
    assert groups['body'].frozen == ''


def test_training_that_fails_late():
    """What it told before counts: the head reads the stem."""

    def train(model):
        model(IMAGES, train=True)
        raise KeyError('gt_keypoints')

    with pytest.warns(
        UserWarning, match='1 layers do not run in the demo forward.*unused'
    ):
        groups = groups_of(train)
    assert 'hidden' in groups['stem'].consumers
    assert 'hidden does not run in training' in groups['stem'].frozen
