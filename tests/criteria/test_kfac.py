"""Curvature in Kronecker factors against explicit matrices and loops."""

from __future__ import annotations

import copy
import itertools
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

from mmgfp import Pruner
from mmgfp.criteria.curvature import Curvature, Side, sides
from mmgfp.criteria.kfac import KFAC
from mmgfp.criteria.layer_sums import Diagonal, Factor
from mmgfp.groups import UnitSpace
from mmgfp.search.prunable import Prunable

W = torch.tensor([[1.0, 2], [3, 4]]).double()
A = torch.tensor([[2.0, 1], [1, 2]]).double()
G = torch.tensor([[3.0, 1], [1, 2]]).double()


def side(matrix: torch.Tensor) -> Side:
    inverse = matrix.inverse()
    of_each = 1 / inverse.diagonal()[None]
    return Side(of_each, [0], [matrix[None]], [inverse[None]])


def curvature(weight=W, inputs=A, gradients=G) -> Curvature:
    return Curvature(weight[None], side(gradients), side(inputs))


def damage(weight=W, inputs=A, gradients=G) -> Curvature:
    """Optimal Brain Damage: no other weight adapts."""
    return Curvature(
        weight[None],
        *(
            Side(m.diagonal()[None], [0], [m[None]])
            for m in (gradients, inputs)
        ),
    )


def close(found, expected):
    np.testing.assert_allclose(
        np.asarray(found), np.asarray(expected), rtol=1e-5
    )


# -- worked numbers ---------------------------------------------------------


def test_weights_rows_and_columns():
    layer = curvature()
    each = layer.elements()[0]
    close(each, [[1.875, 7.5], [11.25, 20]])
    close(each.sum(1), [9.375, 31.25])
    close(each.sum(0), [13.125, 27.5])
    close(each / each.sum(), [[0.046154, 0.184615], [0.276923, 0.492308]])
    each = torch.tensor([[0], [1]])
    close(layer.of_row_blocks(each), [17.5, 61.6667])
    close(layer.of_column_blocks(each), [20.25, 45.0])
    close(damage().elements()[0], [[3, 12], [18, 32]])


@pytest.mark.parametrize(
    ('settings', 'scale', 'expected'),
    [
        # the paper's successor has no 1/2
        (('identity', 0.0), 2, [[3.85042, 15.4017], [23.17905, 41.20719]]),
        (('pi', 1e-3), 1, [[1.95288, 7.81151], [11.78551, 20.95201]]),
    ],
)
def test_damping(settings, scale, expected):
    found = sides(
        *('layer', Factor([0], [A[None]]), Factor([0], [G[None]]), 1, 100),
        *settings,
    )
    close(
        Curvature(W[None], found[1], found[0]).elements()[0] * scale, expected
    )


def test_scores_do_not_jump_where_gradients_vanish():
    """The limit is w^2 strength / 2; any layer with gradients has more."""
    inputs = Factor([0], [A[None]])
    for scale in (1e-8, 1e-14, 1e-22, 0.0):
        gradients = Factor([0], [scale * G[None]])
        found = sides('layer', inputs, gradients, 1, 100, 'pi', 1e-3)
        scores = Curvature(W[None], found[1], found[0]).elements()[0]
        expected = W.square() * (1e-3 + scale**0.5) / 2
        assert (scores <= 2 * expected).all()
    nothing = Factor([0], [torch.zeros(1, 2, 2).double()])
    found = sides('layer', nothing, nothing, 1, 100, 'pi', 1e-3)
    close(
        Curvature(W[None], found[1], found[0]).elements()[0],
        W.square() * 1e-3 / 2,
    )


def growth(layer: Curvature, gone: torch.Tensor) -> float:
    """Least growth of the loss without some weights, by brute force.

    ``min d^T H d / 2`` over the changes of all weights with ``d = -w`` where
    they go, for the explicit ``H = kron(G, A)``.
    """
    hessian = torch.kron(layer.rows.blocks[0][0], layer.columns.blocks[0][0])
    inverse = hessian.inverse()
    index = gone.flatten().nonzero()[:, 0]
    lost = layer.weight[0].flatten()[index]
    return float(lost @ inverse[index][:, index].inverse() @ lost / 2)


def random_layer(make=curvature, rows=4, columns=6) -> Curvature:
    torch.manual_seed(0)
    weight = torch.randn(rows, columns).double()
    a, g = (torch.randn(n, 3 * n).double() for n in (columns, rows))
    return make(weight, a @ a.T, g @ g.T)


def growth_alone(layer: Curvature, gone: torch.Tensor) -> float:
    """``d^T H d / 2`` where ``d = -w`` for what goes, and 0 elsewhere."""
    hessian = torch.kron(layer.rows.blocks[0][0], layer.columns.blocks[0][0])
    lost = (layer.weight[0] * gone).flatten()
    return float(lost @ hessian @ lost / 2)


@pytest.mark.parametrize(
    ('make', 'growth'), [(curvature, growth), (damage, growth_alone)]
)
def test_brute_force(make, growth):
    layer = random_layer(make)
    for i, j in itertools.product(range(4), range(6)):
        gone = torch.zeros(4, 6, dtype=bool)
        gone[i, j] = True
        close(layer.elements()[0, i, j], growth(layer, gone))
    for pair in itertools.combinations(range(4), 2):
        gone = torch.zeros(4, 6, dtype=bool)
        gone[list(pair)] = True
        close(
            layer.of_row_blocks(torch.tensor([pair]))[0], growth(layer, gone)
        )
    gone = torch.zeros(4, 6, dtype=bool)
    gone[:, 2:5] = True
    found = layer.of_column_blocks(torch.tensor([[2, 3, 4]]))[0]
    close(found, growth(layer, gone))
    close(layer.of_groups()[0], growth(layer, torch.ones(4, 6)))


def test_diagonal_factors():
    """Then the surgeon changes no other weight: it is Optimal Brain Damage."""
    a, g = torch.rand(6).double() + 1, torch.rand(4).double() + 1
    weight = torch.randn(4, 6).double()
    layer = curvature(weight, a.diag(), g.diag())
    close(layer.elements()[0], weight**2 * g[:, None] * a / 2)
    assert (layer.elements() >= 0).all()


# -- factors -----------------------------------------------------------------

LAYERS = {
    'linear': (nn.Linear(5, 4), (3, 5)),
    'rows': (nn.Linear(5, 4), (3, 7, 5)),
    'no bias': (nn.Linear(5, 4, bias=False), (3, 5)),
    'conv': (nn.Conv2d(4, 6, 3, 2, 1), (3, 4, 6, 5)),
    'dilated': (nn.Conv2d(4, 6, 3, dilation=2, padding='same'), (3, 4, 6, 5)),
    'reflect': (
        nn.Conv2d(4, 6, 3, padding=1, padding_mode='reflect'),
        (3, 4, 6, 5),
    ),
    'grouped': (nn.Conv2d(4, 6, 3, padding=1, groups=2), (3, 4, 6, 5)),
    'depthwise': (nn.Conv2d(4, 4, 3, padding=1, groups=4), (3, 4, 6, 5)),
    'one axis': (nn.Conv1d(4, 6, 3), (3, 4, 7)),
    'three axes': (nn.Conv3d(2, 3, (1, 2, 2)), (3, 2, 3, 4, 5)),
}
TRANSPOSED = {
    'transposed': (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (3, 4, 3, 4)),
    'transposed groups': (
        nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
        (3, 4, 3, 4),
    ),
    'transposed, wide output padding': (
        nn.ConvTranspose2d(4, 6, 3, 1, 2, (1, 0), dilation=2),
        (3, 4, 5, 5),
    ),
}


class Alone(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def explicit(layer: nn.Module, x: torch.Tensor, coefficients: torch.Tensor):
    """Both factors, by one backward for each position of each image.

    The gradient of a weight is ``s a^T`` at one position, for which the
    output gradient is set to 1 at one output: the vectors ``a`` are rows of
    Jacobians.
    """
    groups = getattr(layer, 'groups', 1)
    out = layer(x)
    last = isinstance(layer, nn.Linear)
    moved = out.movedim(-1, 1) if last else out
    inputs = [0.0] * groups
    gradients = [0.0] * groups
    rows = 0
    sent = coefficients.movedim(-1, 1) if last else coefficients
    flat = moved.flatten(2) if moved.dim() > 2 else moved[..., None]
    sent = sent.flatten(2) if sent.dim() > 2 else sent[..., None]
    per = flat.shape[1] // groups
    for n, t in itertools.product(range(len(flat)), range(flat.shape[2])):
        rows += 1
        for k in range(groups):
            picked = flat[n, k * per, t]
            weight, *bias = torch.autograd.grad(
                picked, list(layer.parameters()), retain_graph=True
            )
            a = weight[k * per].flatten()
            if bias:
                a = torch.cat([a, bias[0][k * per : k * per + 1]])
            s = sent[n, k * per : (k + 1) * per, t]
            inputs[k] = inputs[k] + torch.outer(a, a)
            gradients[k] = gradients[k] + torch.outer(s, s)
    return torch.stack(inputs), torch.stack(gradients), rows


@contextmanager
def observing(criterion: KFAC, model: nn.Module, units=None):
    criterion.attach(model, units or UnitSpace([]))
    with criterion.observing():
        yield
    assert not any(m._forward_hooks for m in model.modules())


def whole() -> KFAC:
    """It measures whole factors, also without channel groups."""
    criterion = KFAC()
    criterion.compensates = True
    return criterion


def inputs_of(criterion: KFAC, name: str) -> Factor:
    return criterion._sums[name].factors()[0]


def observe(
    layer: nn.Module,
    x: torch.Tensor,
    coefficients: torch.Tensor,
    criterion: KFAC | None = None,
) -> KFAC:
    model = Alone(layer)
    criterion = criterion or whole()
    with observing(criterion, model):
        # the mean over the images of a loss with these gradients
        loss = (model(x.requires_grad_()) * coefficients).sum() / len(x)
        loss.backward()
        criterion.end_batch()
    return criterion


def sampled(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A layer, an input, and the gradient of its result."""
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = layer.double()
    x = torch.randn(shape).double()
    return layer, x, torch.randn_like(layer(x))


@pytest.mark.parametrize('name', LAYERS)
def test_factors_are_sums_over_all_rows(name):
    layer, x, coefficients = sampled(name)
    criterion = observe(layer, x, coefficients)
    sums = criterion._sums['layer']
    inputs, gradients, rows = explicit(layer, x, coefficients)
    assert float(sums.rows) == rows
    close(inputs_of(criterion, 'layer').blocks[0], inputs)
    close(sums.gradients.blocks[0], gradients)


@pytest.mark.parametrize('name', [*LAYERS, *TRANSPOSED])
def test_diagonals_are_enough_for_single_weights(name):
    """Where other weights stay as they are, nothing else is measured."""
    layer, shape = {**LAYERS, **TRANSPOSED}[name]
    torch.manual_seed(0)
    layer, x = layer.double(), torch.randn(shape).double()
    coefficients = torch.randn_like(layer(x))
    factors = observe(layer, x, coefficients)
    expected = factors._sums['layer']
    alone = observe(layer, x, coefficients, KFAC())
    found = alone._sums['layer']
    assert found.rows == expected.rows
    if name in LAYERS:  # an oracle of its own
        inputs, gradients, _ = explicit(layer, x, coefficients)
    else:
        inputs, gradients = (
            side.blocks[0] for side in (expected.inputs, expected.gradients)
        )
    close(found.inputs.values, inputs.diagonal(0, 1, 2))
    close(found.gradients.values, gradients.diagonal(0, 1, 2))
    weight = 'layer.weight'
    scores = alone.elements([weight])[weight]
    close(scores, factors.elements([weight])[weight])
    alone.formula = 'OBS'
    with pytest.raises(RuntimeError, match='no inverse of a whole factor'):
        alone.elements([weight])
    with pytest.raises(RuntimeError, match='compensation needs whole factors'):
        alone.compensated({weight: torch.ones(layer.weight.shape) > 0})


@pytest.mark.parametrize(
    'changes, diagonal',
    [
        (dict(), True),
        (dict(damping='identity'), True),
        (dict(limit=2), True),
        (dict(formula='OBS'), False),
    ],
)
def test_when_diagonals_are_enough(changes, diagonal):
    torch.manual_seed(0)
    criterion, model = KFAC(**changes), nn.Sequential(nn.Linear(3, 2))
    with observing(criterion, model):
        pass
    assert isinstance(criterion._sums['0'].inputs, Diagonal) == diagonal
    assert not criterion.approximate


@pytest.mark.parametrize('name', ['linear', 'rows', 'conv'])
def test_results_that_are_changed_in_place(name):
    """As in transformers, where a linear layer's result is a view."""
    layer, x, coefficients = sampled(name)
    criterion, model = whole(), nn.Sequential(layer, nn.ReLU(inplace=True))
    with observing(criterion, model):
        ((model(x.requires_grad_()) * coefficients).sum() / 3).backward()
        criterion.end_batch()
    active = coefficients * (layer(x) > 0)
    inputs, gradients, rows = explicit(layer, x, active.detach())
    sums = criterion._sums['0']
    assert float(sums.rows) == rows
    close(inputs_of(criterion, '0').blocks[0], inputs)
    close(sums.gradients.blocks[0], gradients)


def test_layers_of_a_table():
    """No gradient goes through their inputs, or to frozen weights."""

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 3))
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return x @ self.layer(self.table).relu_()

    torch.manual_seed(0)
    model = Biased().double().requires_grad_(False)
    x, coefficients = torch.randn(4, 5).double(), torch.randn(4, 2).double()
    criterion = whole()
    with observing(criterion, model):
        ((model(x) * coefficients).sum() / 4).backward()
        criterion.end_batch()
    active = model.layer(model.table) > 0
    a = torch.cat([model.table, torch.ones(5, 1).double()], 1)
    s = x.T @ coefficients * active
    sums = criterion._sums['layer']
    close(sums.inputs.blocks[0][0], a.T @ a)
    close(sums.gradients.blocks[0][0], s.T @ s)


def test_other_layers_are_left_out():
    """They take no memory, and cannot fail."""
    torch.manual_seed(0)
    scores = []
    for layers in (None, {'0'}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        criterion = KFAC(damping='pi')
        criterion.attach(model, UnitSpace([]))
        with criterion.observing(layers):
            model(torch.randn(4, 3)).square().mean().backward()
            criterion.end_batch()
        assert [*criterion._sums] == [*(layers or ('0', '2'))]
        assert not criterion.unmeasured()
        scores += criterion.elements(['0.weight']).values()
    assert torch.equal(*scores)
    criterion.damping = 'relative'
    assert criterion.elements(['0.weight'])
    with pytest.raises(
        ValueError, match=r'curvature of 2\.weight, 3\.weight was'
    ):
        criterion.elements(['2.weight', '0.weight', '3.weight'])


@pytest.mark.parametrize('name', TRANSPOSED)
def test_factors_of_transposed_convolutions(name):
    """The gradient of the weight is a sum of products of the same rows."""
    from mmgfp.criteria.layer_rows import gradient_rows, input_rows

    layer, shape = TRANSPOSED[name]
    layer = layer.double()
    x = torch.randn(shape).double()
    sent = torch.randn_like(layer(x))
    (expected,) = torch.autograd.grad((layer(x) * sent).sum(), layer.weight)
    found = 0.0
    for a, s in zip(input_rows(layer, x), gradient_rows(layer, sent, x)):
        found = found + a.transpose(1, 2) @ s
    close(found.detach().reshape(layer.weight.shape), expected)


def test_rows_come_in_blocks(monkeypatch):
    from mmgfp.criteria import layer_rows

    layer, shape = LAYERS['conv']
    x = torch.randn(shape).double()
    whole = list(layer_rows.input_rows(layer, x))
    for block in (1, 100, 300):
        monkeypatch.setattr(layer_rows, 'BLOCK', block)
        parts = list(layer_rows.input_rows(layer, x))
        assert len(parts) > len(whole) == 1
        assert torch.equal(torch.cat(parts, 1), whole[0])


def test_explicit_fisher_of_one_layer():
    """Independent inputs and gradients: what kron(G, A) approximates."""
    torch.manual_seed(0)
    x = torch.randn(4000, 3).double()
    s = (
        torch.randn(4000, 2).double()
        @ torch.tensor([[1.0, 2], [0, 1]]).double()
    )
    layer = nn.Linear(3, 2, bias=False).double()
    criterion = observe(layer, x, s)
    sums = criterion._sums['layer']
    a, g = sums.inputs.blocks[0][0] / 4000, sums.gradients.blocks[0][0] / 4000
    each = torch.einsum('no,ni->noi', s, x.detach()).flatten(1)
    fisher = each.T @ each / 4000
    error = torch.kron(g, a) - fisher
    assert error.norm() < 0.1 * fisher.norm()


@pytest.mark.parametrize('name', [*LAYERS, 'transposed groups'])
def test_weights_that_stay_replace_those_that_go(name):
    layer, shape = (LAYERS | TRANSPOSED)[name]
    whole = copy.deepcopy(layer).double()
    x = torch.randn(200, *shape[1:]).double()
    coefficients = torch.randn_like(whole(x))
    criterion = observe(whole, x, coefficients)
    criterion.strength = 0.0
    gone = torch.rand(layer.weight.shape) < 0.5
    gone[0] = False
    gone[-1] = True
    new = criterion.compensated({'layer.weight': gone})
    slim = copy.deepcopy(whole)
    with torch.no_grad():
        for key, value in new.items():
            slim.get_parameter(key.removeprefix('layer.')).copy_(value)
    assert not slim.weight[gone].any()
    # no change of what stays brings the outputs nearer to those before
    x = x.detach()
    gradients = []
    for network in (slim, zeroed(whole, gone)):
        error = (network(x) - whole(x).detach()).square().sum()
        changed = [
            network.get_parameter(key.removeprefix('layer.')) for key in new
        ]
        found = [*torch.autograd.grad(error, changed)]
        found[0] = found[0].masked_fill(gone, 0)
        gradients.append(torch.cat([part.flatten() for part in found]).norm())
    assert gradients[0] < 1e-5 * gradients[1]
    if name in LAYERS:  # an output that loses nothing
        assert slim.weight[0].equal(whole.weight[0])


def zeroed(layer: nn.Module, gone: torch.Tensor) -> nn.Module:
    found = copy.deepcopy(layer)
    with torch.no_grad():
        found.weight[gone] = 0
    return found


def test_factors_of_backpack():
    """Against KFLR (Botev et al., ICML 2017), which sums over all labels.

    It sums the gradients of a convolution over positions before the product,
    so those of more than one position differ.
    """
    backpack = pytest.importorskip('backpack')
    from backpack.extensions import KFLR

    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.ReLU()),
        *(nn.Conv2d(4, 6, 5), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)),
    ).double()
    images, classes = torch.randn(6, 2, 9, 9).double(), 3
    criterion = whole()
    with observing(criterion, model):
        for label in range(classes):
            outputs = model(images.requires_grad_())
            labels = torch.full((len(images),), label)
            losses = cross_entropy(outputs, labels, reduction='none')
            # s s^T has the weight of the label's probability
            shares = outputs.detach().softmax(1)[:, label]
            (shares.sqrt() * losses).mean().backward()
            criterion.end_batch()
    backpack.extend(model)
    loss = backpack.extend(nn.CrossEntropyLoss())
    with backpack.backpack(KFLR()):
        loss(model(images.detach()), labels).backward()
    checked = 0
    for name, sums in criterion._sums.items():
        gradients, inputs = model.get_submodule(name).weight.kflr
        counted = len(images) * classes
        found = inputs_of(criterion, name).blocks[0][0]
        close(found[:-1, :-1] / counted, inputs)
        if float(sums.rows) == counted:
            close(sums.gradients.blocks[0][0] / len(images), gradients)
            checked += 1
    assert len(criterion._sums) == 4 and checked == 3


def test_weights_that_cannot_compensate():
    torch.manual_seed(0)
    x, coefficients = torch.zeros(2, 4).double(), torch.randn(2, 3).double()
    layer = nn.Linear(4, 3, bias=False).double()
    criterion = observe(layer, x, coefficients)
    criterion.damping, criterion.strength = 'pi', 0.0
    gone = torch.zeros(3, 4, dtype=torch.bool)
    gone[0, 0] = True
    with pytest.raises(ValueError, match='weights cannot compensate'):
        criterion.compensated({'layer.weight': gone})


def test_calls_of_a_shared_layer_add_up():
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, y):
            return self.layer(x), self.layer(y)

    x, y = torch.randn(4, 3).double(), torch.randn(4, 5, 3).double()
    cx, cy = torch.randn(4, 3).double(), torch.randn(4, 5, 3).double()
    criterion = whole()
    model = Twice()
    with observing(criterion, model):
        a, b = model(x, y)
        ((a * cx).sum() + (b * cy).sum()).div(4).backward()
        criterion.end_batch()
    found = criterion._sums['layer']
    one, other = explicit(layer, x, cx), explicit(layer, y, cy)
    close(inputs_of(criterion, 'layer').blocks[0], one[0] + other[0])
    close(found.gradients.blocks[0], one[1] + other[1])
    assert float(found.rows) == 4 + 20


def test_layers_that_share_a_weight_add_up():
    torch.manual_seed(0)
    one, two = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    two.weight = one.weight
    model = nn.Sequential(one, nn.Tanh(), two)
    x = torch.randn(4, 3).double()
    coefficients = torch.randn(4, 3).double()
    criterion = whole()
    with observing(criterion, model):
        ((model(x.requires_grad_()) * coefficients).sum() / 4).backward()
        criterion.end_batch()
    hidden = one(x).tanh()
    inner = (coefficients @ two.weight) * (1 - hidden.square())
    first = explicit(one, x, inner.detach())
    second = explicit(two, hidden.detach(), coefficients)
    (found,) = criterion._sums.values()
    close(found.inputs.blocks[0], first[0] + second[0])
    close(found.gradients.blocks[0], first[1] + second[1])
    (name,) = criterion.elements(['0.weight'])
    assert name == '0.weight' and not criterion.unmeasured()


@pytest.mark.parametrize(
    'other',
    [
        dict(stride=2, padding=1),
        dict(),
        dict(padding=2, dilation=2),
    ],
)
def test_convolutions_that_share_a_weight_add_up(other):
    """Their patches may be of different positions."""
    torch.manual_seed(0)
    one = nn.Conv2d(3, 3, 3, padding=1).double()
    two = nn.Conv2d(3, 3, 3, **other).double()
    two.weight, two.bias = one.weight, one.bias

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = one, two

        def forward(self, x):
            return [self.one(x), self.two(x)]

    model = Both()
    x = torch.randn(2, 3, 12, 12).double()
    sent = [torch.randn_like(out) for out in model(x)]
    criterion = whole()
    with observing(criterion, model):
        outputs = model(x.requires_grad_())
        losses = [(out * s).sum() for out, s in zip(outputs, sent)]
        (sum(losses) / 2).backward()
        criterion.end_batch()
    first, second = explicit(one, x, sent[0]), explicit(two, x, sent[1])
    (name,) = criterion._sums
    close(inputs_of(criterion, name).blocks[0], first[0] + second[0])
    close(criterion._sums[name].gradients.blocks[0], first[1] + second[1])


def test_layers_that_share_a_weight_in_different_forms():
    one, two = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    two.weight = one.weight
    model = nn.Sequential(one, nn.Tanh(), two, nn.Linear(3, 2))
    criterion = KFAC()
    with observing(criterion, model):
        model(torch.randn(4, 3)).sum().backward()
        criterion.end_batch()
    with pytest.raises(ValueError, match='0 and 2 share one weight'):
        criterion.elements(['0.weight'])
    assert list(criterion.elements(['3.weight'])) == ['3.weight']


def test_blocks_of_a_large_factor():
    torch.manual_seed(0)
    rows = torch.randn(1, 50, 7).double()
    whole, parts = (Factor.zeros(1, 8, n, rows) for n in (8, 3))
    whole.add(rows)
    parts.add(rows)
    assert [len(b[0]) for b in parts.blocks] == [3, 3, 2]
    for start, block in zip(parts.starts, parts.blocks):
        end = start + block.shape[1]
        close(block, whole.blocks[0][:, start:end, start:end])
    # in scores, what is between blocks counts as zero
    masked = torch.zeros_like(whole.blocks[0])
    for start, block in zip(parts.starts, parts.blocks):
        end = start + block.shape[1]
        masked[:, start:end, start:end] = block
    gradients = Factor([0], [G[None]])
    weight = torch.randn(1, 2, 8).double()
    found = [
        Curvature(weight, g, a)
        for a, g in (
            sides('x', Factor([0], [masked]), gradients, 1, 1, 'pi', 1e-3),
            sides('x', parts, Factor([0], [G[None]]), 1, 1, 'pi', 1e-3),
        )
    ]
    close(found[1].elements(), found[0].elements())
    index = torch.tensor([[0, 4], [2, 3], [6, 7]])
    close(found[1].of_column_blocks(index), found[0].of_column_blocks(index))


# -- units -------------------------------------------------------------------


class Net(nn.Module):
    """A residual stream, a depthwise and a grouped layer, a linear one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.conv2 = nn.Conv2d(8, 6, 1)
        self.fc1 = nn.Linear(6 * 4, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.conv2(self.depthwise(self.conv1(x).relu()).relu())
        x = nn.functional.adaptive_avg_pool2d(x.relu(), 2).flatten(1)
        return self.fc2(self.fc1(x).relu())


IMAGES = torch.linspace(-1, 1, 4 * 3 * 25).view(4, 3, 5, 5).double()
LABELS = torch.tensor([0, 1, 2, 1])


def measured(cut_to: int = 1, scale: float = 1.0, **settings) -> Pruner:
    torch.manual_seed(0)
    model = Net().double().eval()
    net = Prunable.find(model, lambda m: m(IMAGES[:2]), 2, cut_to=cut_to)
    pruner = Pruner(net, KFAC(**settings), 'none')
    calibrate(pruner, scale)
    return pruner


def calibrate(pruner: Pruner, scale: float = 1.0) -> None:
    model, criterion = pruner.net.model, pruner.criterion
    with observing(criterion, model, pruner.net.units):
        for images, labels in zip(IMAGES.split(2), LABELS.split(2)):
            (scale * cross_entropy(model(images), labels)).backward()
            criterion.end_batch()


def matrices(pruner: Pruner):
    """Per layer: weight with bias, damped A and G; one for each group.

    The damping adds a tenth of the mean score to the mean score of a layer.
    """
    found, scores = {}, {}
    model = pruner.net.model
    for name, sums in pruner.criterion._sums.items():
        layer = model.get_submodule(name)
        inputs = inputs_of(pruner.criterion, name).blocks[0]
        groups = getattr(layer, 'groups', 1)
        weight = layer.weight.detach().reshape(len(layer.weight), -1)
        weight = torch.cat([weight, layer.bias.detach()[:, None]], 1)
        per = len(weight) // groups
        found[name] = [
            (
                weight[k * per : (k + 1) * per],
                inputs[k] / 4,
                sums.gradients.blocks[0][k] / float(sums.rows),
            )
            for k in range(groups)
        ]
        scores[name] = torch.cat(
            [
                (part**2 * torch.outer(g.diagonal(), a.diagonal()) / 2)[:, :-1]
                for part, a, g in found[name]
            ]
        )
    mean = torch.cat([s.flatten() for s in scores.values()]).mean()
    return {
        name: [
            (part, damped(a, g, relative(model.get_submodule(name), mean)))
            for part, a, g in parts
        ]
        for name, parts in found.items()
    }


def relative(layer, mean) -> float:
    """A strength that adds a tenth of a score to the layer's mean score."""
    return float(0.1 * mean / (layer.weight.detach() ** 2 / 2).mean())


def damped(a, g, strength):
    means = [m.diagonal().mean() for m in (a, g)]
    # behind some depthwise filter nothing is active
    pi = (means[0].clamp(min=1e-30) / means[1].clamp(min=1e-30)).sqrt()
    pad = strength**0.5
    return (
        a + pi * pad * torch.eye(len(a)).double(),
        g + pad / pi * torch.eye(len(g)).double(),
    )


@pytest.mark.parametrize('aggregate', ['sum', 'block'])
@pytest.mark.parametrize(
    ('formula', 'make', 'growth'),
    [('OBS', curvature, growth), ('OBD', damage, growth_alone)],
)
def test_units_are_summed_over_their_layers(aggregate, formula, make, growth):
    """Against explicit matrices, member by member and unit by unit."""
    pruner = measured(aggregate=aggregate, formula=formula)
    layers = matrices(pruner)
    kernels = {
        name: pruner.net.model.get_submodule(name).weight[0, 0].numel()
        for name in layers
    }
    found = pruner.scores()
    checked = 0
    for group, scores in zip(pruner.net.units.groups, found):
        for unit in range(group.size):
            expected = 0.0
            for member in group.members:
                if member.tensor != f'{member.layer}.weight':
                    continue
                checked += 1
                blocks = layers[member.layer]
                for k, (weight, (a, g)) in enumerate(blocks):
                    gone = torch.zeros_like(weight, dtype=bool)
                    for position in member.index[unit]:
                        if len(blocks) > 1:  # depthwise
                            gone[:] |= bool(position == k)
                        elif member.axis == 0:
                            gone[position] = True
                        else:
                            kernel = kernels[member.layer]
                            start = position * kernel
                            gone[:, start : start + kernel] = True
                    if not gone.any():
                        continue
                    layer = make(weight, a, g)
                    expected += (
                        growth(layer, gone)
                        if aggregate == 'block'
                        else float(layer.elements()[0][gone].sum())
                    )
            assert scores[unit] == pytest.approx(expected, rel=1e-6)
    assert checked > 30


def test_scores_grow_with_the_square_of_the_loss():
    """Gradients do; the damping adds the same share."""
    small, large = measured(), measured(scale=1000.0)
    for a, b in zip(small.scores(), large.scores()):
        np.testing.assert_allclose(a * 1e6, b, rtol=1e-6)


@pytest.mark.parametrize(
    ('settings', 'same'),
    [
        (
            dict(),
            dict(aggregate='block', formula='OBD', strength=0.1),
        ),
        (dict(damping='pi'), dict(damping='pi', strength=1e-3)),
    ],
)
def test_default_settings_of_channels(settings, same):
    for a, b in zip(measured(**settings).scores(), measured(**same).scores()):
        np.testing.assert_array_equal(a, b)


def test_default_damping_of_weights():
    torch.manual_seed(0)
    x, c = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    criterion = observe(nn.Linear(3, 2).double(), x, c)
    found = criterion.elements(['layer.weight'])['layer.weight']
    sums = criterion._sums['layer']
    a = sums.inputs.blocks[0][0] / 20
    g = sums.gradients.blocks[0][0] / 20
    layer = criterion._layers['layer']
    matrix = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    alone = damage(matrix, a, g).elements()[0]
    strength = 10 * relative(layer, alone[:, :3].mean())
    expected = damage(matrix, *damped(a, g, strength)).elements()[0]
    close(found, expected[:, :3])


def test_rescaled_layers_score_alike():
    """A factor in one layer and its inverse in the next change nothing."""
    scores = []
    for factor in (1.0, 30.0):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)
        ).double()
        model[0].weight.data *= factor
        model[2].weight.data /= factor
        criterion = KFAC()
        x = torch.randn(400, 4).double()
        with observing(criterion, model):
            cross_entropy(model(x), torch.arange(400) % 3).backward()
            criterion.end_batch()
        scores.append(criterion.elements(['0.weight', '2.weight']))
    for name in scores[0]:
        close(scores[1][name], scores[0][name])


def test_weights_that_are_gone_count_in_no_mean():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)
    ).double()
    model[0].weight.data[:, 1:] = 0
    criterion = whole()
    x = torch.randn(400, 4).double()
    with observing(criterion, model):
        cross_entropy(model(x), torch.arange(400) % 3).backward()
        criterion.end_batch()
    layers, alone = {}, []
    for name, sums in criterion._sums.items():
        weight = model.get_parameter(f'{name}.weight').detach()
        a, g = (
            side.blocks[0][0] / 400 for side in (sums.inputs, sums.gradients)
        )
        layers[name] = weight, a, g
        alone.append(damage(weight, a, g).elements()[weight[None] != 0])
    mean = torch.cat(alone).mean()
    assert [len(scores) for scores in alone] == [5, 15]
    found = criterion.elements(['0.weight', '2.weight'])
    for name, (weight, a, g) in layers.items():
        there = SimpleNamespace(weight=weight[weight != 0])
        factors = damped(a, g, 10 * relative(there, mean))
        expected = damage(weight, *factors).elements()[0]
        close(found[f'{name}.weight'], expected)


def test_masked_units_are_as_good_as_gone():
    """What is still there, masked, changes no score of the others."""
    late, soon = measured(cut_to=0), measured(cut_to=1)
    for pruner in (late, soon):
        pruner.prune(lambda n: n == 9)
        calibrate(pruner)
    assert any(masked.any() for masked in late.net.masked)
    for a, b, masked in zip(late.scores(), soon.scores(), late.net.masked):
        np.testing.assert_allclose(a[~masked], b, rtol=1e-6)


def test_two_processes_are_one():
    whole = measured()
    parts = []
    for images, labels in zip(IMAGES.split(2), LABELS.split(2)):
        torch.manual_seed(0)
        net = Prunable.find(Net().double().eval(), lambda m: m(IMAGES[:2]), 2)
        pruner = Pruner(net, KFAC(), 'none')
        with observing(pruner.criterion, net.model, net.units):
            cross_entropy(net.model(images), labels).backward()
            pruner.criterion.end_batch()
        parts.append(pruner)
    sent: list[torch.Tensor] = []
    parts[0].criterion.all_reduce(lambda t: sent.append(t.clone()))
    waiting = iter(sent)
    parts[1].criterion.all_reduce(lambda t: t.add_(next(waiting)))
    for a, b in zip(whole.scores(), parts[1].scores()):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_bad_batches_leave_nothing():
    good, bad = measured(), measured()
    model, criterion = bad.net.model, bad.criterion
    broken = IMAGES[:2].clone()
    broken[0, 0, 0, 0] = float('nan')
    with observing(criterion, model, bad.net.units):
        cross_entropy(model(broken), LABELS[:2]).backward()
        assert not criterion.end_batch()
        cross_entropy(model(IMAGES[:2]), LABELS[:2]).backward()
        assert not criterion.end_batch(valid=torch.tensor(False))
    for a, b in zip(good.scores(), bad.scores()):
        np.testing.assert_array_equal(a, b)


def test_loss_scale():
    plain, scaled = measured(), measured()
    scaled.criterion.reset(np.array([True]))
    model, criterion = scaled.net.model, scaled.criterion
    with observing(criterion, model, scaled.net.units):
        for images, labels in zip(IMAGES.split(2), LABELS.split(2)):
            (cross_entropy(model(images), labels) * 1024).backward()
            criterion.end_batch(1024.0)
    for a, b in zip(plain.scores(), scaled.scores()):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_groups_that_no_batch_reached():
    torch.manual_seed(0)
    net = Prunable.find(Net().double().eval(), lambda m: m(IMAGES[:2]), 2)
    pruner = Pruner(net, KFAC())
    assert pruner.unscored() == [group.name for group in net.units.groups]


def test_layers_that_compute_something_else():
    """Their scores would mean nothing."""

    class Odd(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(Odd(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    criterion = KFAC()
    with observing(criterion, model):
        model(IMAGES.clone().requires_grad_()).sum().backward()
        criterion.end_batch()
    with pytest.raises(ValueError, match=r'curvature of 0\.weight was not'):
        criterion.elements(['0.weight'])
    assert criterion.elements(['2.weight'])['2.weight'].shape == (2, 4, 1, 1)
    assert criterion.unmeasured() == ['0']


def test_layers_that_cannot_be_measured_are_named():
    """A weight that is computed has no scores; its group has others."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).double()
    register_parametrization(model[0], 'weight', nn.Tanh())
    net = Prunable.find(model, lambda m: m(IMAGES[:2]), 2)
    pruner = Pruner(net, KFAC())
    with observing(pruner.criterion, model, net.units):
        model(IMAGES.clone().requires_grad_()).square().mean().backward()
        pruner.criterion.end_batch()
    assert pruner.criterion.unmeasured() == ['0']
    assert pruner.unscored() == []


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(aggregate='mean'), "aggregate='mean': expected one of 'sum'"),
        (dict(fisher='exact'), "fisher='exact'"),
        (dict(damping='none'), "damping='none'"),
        (dict(batches=0), 'batches=0: expected a whole number'),
        (dict(limit=1.5), 'limit=1.5'),
        (dict(strength=-1), 'strength=-1'),
        (dict(strength=1, damping='identity'), 'strength=1 contradicts'),
        (dict(strength=True), 'strength=True'),
        (dict(strength=float('inf')), 'strength=inf'),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        KFAC(**settings)


def test_labels_from_a_command_line():
    """MMEngine reads ``criterion.fisher=true`` as a bool."""
    assert KFAC(fisher=True).fisher == 'true'
    with pytest.raises(ValueError, match='fisher=False'):
        KFAC(fisher=False)


def test_curvature_that_cannot_be_inverted():
    rank_one = torch.ones(1, 3, 3).double()
    with pytest.raises(ValueError, match='curvature of fc is singular'):
        sides(
            *('fc', Factor([0], [rank_one]), Factor([0], [G[None]])),
            *(1, 1, 'pi', 0.0),
        )
    with pytest.raises(ValueError, match='curvature of fc is not finite'):
        sides(
            *('fc', Factor([0], [rank_one / 0]), Factor([0], [G[None]])),
            *(1, 1, 'pi', 1e-3),
        )
