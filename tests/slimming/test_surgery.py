"""Slicing: parameters, attributes, gradients and optimiser state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmcv.ops import DeformConv2d
from nets import NETS as PLAIN_NETS
from nets import Chain, run
from nets_detection import DETECTION_NETS
from nets_kernels import KERNEL_NETS
from oracles import choose_units, kept
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from mmgfp.slimming.positions import axis_sizes
from mmgfp.slimming.structure import Structure
from mmgfp.slimming.surgery import (
    cut_model,
    cut_optimizer,
    cut_tensor,
    named_tensors,
    read_width,
)
from mmgfp.tracing.finder import find_groups

NETS = {**PLAIN_NETS, **DETECTION_NETS, **KERNEL_NETS}
KEEP = {
    ('conv1.weight', 0): np.array([0, 2, 3, 7]),
    ('bn.weight', 0): np.array([0, 2, 3, 7]),
    ('bn.bias', 0): np.array([0, 2, 3, 7]),
    ('bn.running_mean', 0): np.array([0, 2, 3, 7]),
    ('bn.running_var', 0): np.array([0, 2, 3, 7]),
    ('conv2.weight', 1): np.array([0, 2, 3, 7]),
    ('conv2.weight', 0): np.array([1, 5]),
    ('conv2.bias', 0): np.array([1, 5]),
    ('act.weight', 0): np.array([1, 5]),
    ('conv3.weight', 1): np.array([1, 5]),
}


def by_hand(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The slices of :class:`Chain` that :data:`KEEP` leaves, spelled out."""
    first, second = [0, 2, 3, 7], [1, 5]
    if name == 'conv2.weight':
        return torch.stack([tensor[i][first] for i in second])
    if name == 'conv3.weight':
        return tensor[:, second]
    if name in ('conv2.bias', 'act.weight'):
        return tensor[second]
    if name == 'conv1.weight' or (name.startswith('bn.') and tensor.dim()):
        return tensor[first]
    return tensor


def test_widths_are_read_without_a_walk(monkeypatch):
    """A walk for each would take longer than to cut large networks."""
    block = nn.Module()
    block.conv, block.dims = nn.Conv2d(3, 4, 1), [4, True]
    model = nn.ModuleDict(dict(block=block))
    model.width = 5
    monkeypatch.setattr(nn.Module, 'named_modules', lambda *_: 1 / 0)
    assert read_width(model, 'width') == 5
    assert read_width(model, 'block.conv.out_channels') == 4
    assert read_width(model, 'block.dims[0]') == 4
    for name in ('block.dims[1]', 'block.dims[2]', 'block.no', 'no.width'):
        assert read_width(model, name) is None


def test_slices_by_hand():
    model = Chain()
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape))
    expected = {
        name: by_hand(name, tensor.clone())
        for name, tensor in model.state_dict().items()
    }
    cut_model(model, KEEP)
    state = model.state_dict()
    assert list(state) == list(expected)
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.is_contiguous()
        assert tensor.dtype == expected[name].dtype


def test_several_axes():
    tensor = torch.arange(24).reshape(2, 3, 4)
    cuts = {0: np.array([1]), 2: np.array([0, 3])}
    assert cut_tensor(tensor, cuts).tolist() == [
        [[12, 15], [16, 19], [20, 23]]
    ]


def test_parameters_stay_the_same_objects():
    model = Chain()
    before = [*model.parameters(), *model.buffers()]
    flags = [t.requires_grad for t in before]
    cut_model(model, KEEP)
    after = [*model.parameters(), *model.buffers()]
    assert all(a is b for a, b in zip(after, before))
    assert [t.requires_grad for t in after] == flags
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())


def test_gradients_are_sliced():
    model = Chain()
    loss = run(model).square().sum()
    loss.backward()
    model.conv3.bias.grad = None
    expected = {
        name: by_hand(name, p.grad.clone())
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    cut_model(model, KEEP)  # while the graph of `loss` is alive
    for name, parameter in model.named_parameters():
        if name == 'conv3.bias':
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad, expected[name]), name
    # and it trains on
    model.zero_grad()
    run(model).square().sum().backward()
    assert model.conv2.weight.grad.shape == (2, 4, 3, 3)


@pytest.mark.parametrize('name', KERNEL_NETS)
def test_computed_kernels_are_cut_with_what_they_come_from(name):
    """At once, and again in a fresh network that reads the structure."""
    model = KERNEL_NETS[name]().eval()
    groups = find_groups(model, run, images=2)
    sizes = axis_sizes(model, groups)
    keep = kept(model, groups, choose_units(groups))
    full = {n: tuple(m.weight.shape) for n, m in layers_of(model)}
    cut_model(model, keep)
    for layer, module in layers_of(model):
        shape = list(full[layer])
        for group in groups:
            for member in group.members:
                if member.layer == layer and member.tensor.endswith(
                    ('weight', '_v', '_orig', 'original', 'original1')
                ):
                    left = keep.get((member.tensor, member.axis))
                    if left is not None:
                        shape[member.axis] = len(left)
        assert list(module.weight.shape) == shape, layer
    copy.deepcopy(model)  # no graph is left behind
    fresh = KERNEL_NETS[name]().eval()
    Structure(Structure({}).compose(keep, sizes)).apply(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(run(fresh), run(model))


def layers_of(model):
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]


@pytest.mark.parametrize('name', NETS)
def test_nothing_but_sizes_changes(name):
    torch.manual_seed(0)
    model = NETS[name]()
    groups = find_groups(model, run, images=2)
    before = copy.deepcopy(model)
    cut_model(model, kept(model, groups, choose_units(groups)))
    assert list(model.state_dict()) == list(before.state_dict())
    pairs = list(zip(model.modules(), before.modules()))
    assert all(type(a) is type(b) for a, b in pairs)
    assert all(a.forward.__func__ is b.forward.__func__ for a, b in pairs)
    assert all(a.__dict__.keys() == b.__dict__.keys() for a, b in pairs)
    if name != 'FunctionalWeight':  # never called, so its bias stays whole
        for module in model.modules():
            check_attributes(module)


def check_attributes(module: nn.Module) -> None:
    """A new module built from the attributes has the same shapes."""
    if hasattr(module, 'in_channels'):  # a convolution of any library
        parts = {k: v for k, v in vars(module).items() if 'groups' in k}
        kind = type(module)
        if is_parametrized(module):
            kind = kind.__base__
        twin = kind(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            bias=getattr(module, 'bias', None) is not None,
            **parts,
        )
    elif isinstance(module, nn.Linear):
        twin = nn.Linear(
            module.in_features, module.out_features, module.bias is not None
        )
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        twin = type(module)(
            module.num_features,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
        )
    elif isinstance(module, nn.GroupNorm):
        twin = nn.GroupNorm(module.num_groups, module.num_channels)
    elif isinstance(module, nn.LayerNorm):
        twin = nn.LayerNorm(module.normalized_shape)
    elif isinstance(module, nn.PReLU):
        twin = nn.PReLU(module.num_parameters)
    else:
        return
    shapes = {k: v.shape for k, v in module.state_dict().items()}
    if 'weight' in shapes or not hasattr(module, 'weight'):
        assert shapes == {k: v.shape for k, v in twin.state_dict().items()}
    elif module.weight is not None:  # computed from others
        assert module.weight.shape == twin.weight.shape


@pytest.mark.parametrize(
    ('module', 'keep', 'expected'),
    [
        (
            nn.Conv2d(8, 6, 3),
            {('weight', 1): [0, 3, 5], ('weight', 0): [1], ('bias', 0): [1]},
            dict(in_channels=3, out_channels=1, groups=1),
        ),
        (
            nn.Conv2d(8, 12, 3, groups=4),
            {('weight', 0): [0, 1, 2, 9, 10, 11], ('bias', 0): range(6)},
            dict(in_channels=4, out_channels=6, groups=2),
        ),
        (
            nn.Conv2d(6, 6, 3, groups=6, bias=False),
            {('weight', 0): [2, 4]},
            dict(in_channels=2, out_channels=2, groups=2),
        ),
        (
            nn.Conv2d(4, 8, 3, groups=4, bias=False),  # depth multiplier 2
            {('weight', 0): [0, 1, 4, 5, 6, 7]},
            dict(in_channels=3, out_channels=6, groups=3),
        ),
        (
            nn.ConvTranspose2d(8, 6, 2),
            {('weight', 0): [0, 3], ('weight', 1): [1], ('bias', 0): [1]},
            dict(in_channels=2, out_channels=1, groups=1),
        ),
        (
            nn.ConvTranspose2d(6, 9, 2, groups=3, bias=False),
            {('weight', 0): [2, 3, 4, 5]},
            dict(in_channels=4, out_channels=6, groups=2),
        ),
        (
            DeformConv2d(8, 12, 3, groups=4, deform_groups=2),
            {('weight', 0): [0, 1, 2, 9, 10, 11]},
            dict(in_channels=4, out_channels=6, groups=2, deform_groups=2),
        ),
        (
            nn.Linear(8, 6),
            {('weight', 1): [0, 3], ('weight', 0): [1], ('bias', 0): [1]},
            dict(in_features=2, out_features=1),
        ),
        (
            nn.BatchNorm2d(8, affine=False),
            {('running_mean', 0): [0, 1], ('running_var', 0): [0, 1]},
            dict(num_features=2),
        ),
        (
            nn.SyncBatchNorm(8, track_running_stats=False),
            {('weight', 0): [0, 1], ('bias', 0): [0, 1]},
            dict(num_features=2),
        ),
        (
            nn.GroupNorm(4, 8),
            {('weight', 0): [0, 1, 6, 7], ('bias', 0): [0, 1, 6, 7]},
            dict(num_groups=2, num_channels=4),
        ),
        (
            nn.LayerNorm(8),
            {('weight', 0): [0, 1, 6], ('bias', 0): [0, 1, 6]},
            dict(normalized_shape=(3,)),
        ),
        (nn.PReLU(8), {('weight', 0): [0]}, dict(num_parameters=1)),
        (
            nn.Embedding(10, 8),
            {('weight', 1): [0, 5]},
            dict(num_embeddings=10, embedding_dim=2),
        ),
    ],
    ids=lambda value: getattr(type(value), '__name__', ''),
)
def test_attributes(module, keep, expected):
    cut_model(
        module, {key: np.array(list(stay)) for key, stay in keep.items()}
    )
    assert {k: getattr(module, k) for k in expected} == expected
    check_attributes(module)


def test_tied_weights():
    """Every layer that shares a weight learns its new size."""
    model = NETS['TiedProducers']()
    keep = {
        ('a.weight', 0): np.array([0, 5]),
        ('a.bias', 0): np.array([0, 5]),
        ('b.bias', 0): np.array([0, 5]),
        ('head.weight', 1): np.array([0, 5]),
    }
    cut_model(model, keep)
    assert model.a.weight is model.b.weight
    assert model.a.out_channels == model.b.out_channels == 2
    assert run(model).shape == (2, 5, 16, 16)


def test_memory_format_is_kept():
    model = Chain().to(memory_format=torch.channels_last)
    cut_model(model, KEEP)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)


# -- optimisers --------------------------------------------------------------

OPTIMIZERS = {
    'SGD': lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    'Adam': lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    'AdamW': lambda p: torch.optim.AdamW(p, 0.1),
    'RMSprop': lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.5),
    'Adagrad': lambda p: torch.optim.Adagrad(p, 0.1),
}


def trained(make, steps: int = 2):
    model = Chain()
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        run(model).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_optimizer_state(name):
    model, optimizer = trained(OPTIMIZERS[name])
    names = {id(p): n for n, p in model.named_parameters()}
    expected = {}
    for parameter, state in optimizer.state.items():
        layer = names[id(parameter)]
        expected[layer] = {
            key: by_hand(layer, value.clone()) if np.ndim(value) else value
            for key, value in state.items()
        }
    cut_optimizer(optimizer, model, KEEP)
    cut_model(model, KEEP)

    found = {names[id(p)]: s for p, s in optimizer.state.items()}
    assert found.keys() == expected.keys() == set(names.values())
    for layer, state in found.items():
        assert state.keys() == expected[layer].keys()
        for key, value in state.items():
            wanted = expected[layer][key]
            torch.testing.assert_close(value, wanted, rtol=0, atol=0)

    # it steps on, with the state it has
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer.zero_grad()
    run(model).square().mean().backward()
    optimizer.step()
    for layer, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[layer]), layer


def test_sgd_goes_on_as_if_always_slim():
    """Two steps of the slim network equal two steps with masked weights."""
    model, optimizer = trained(OPTIMIZERS['SGD'])
    cut_optimizer(optimizer, model, KEEP)
    cut_model(model, KEEP)
    momentum = optimizer.state[model.conv2.weight]['momentum_buffer'].clone()
    weight = model.conv2.weight.detach().clone()
    optimizer.zero_grad()
    run(model).square().mean().backward()
    gradient = model.conv2.weight.grad.clone()
    optimizer.step()
    momentum = 0.9 * momentum + gradient + 0.1 * weight
    assert torch.allclose(
        model.conv2.weight, weight - 0.1 * momentum, atol=1e-6
    )


def test_fresh_optimizer_has_nothing_to_slice():
    model = Chain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    cut_optimizer(optimizer, model, KEEP)
    assert not optimizer.state


def test_state_of_another_shape_is_refused():
    make = getattr(torch.optim, 'Adafactor', None)
    if make is None:
        pytest.skip('this torch has no Adafactor')
    model, optimizer = trained(make)
    optimizer.state[model.conv1.weight] = {
        'sliced first': torch.rand(8, 3, 3, 3),
        **optimizer.state[model.conv1.weight],
    }
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError) as error:
        cut_optimizer(optimizer, model, KEEP)
    message = str(error.value)
    assert 'Adafactor keeps "row_var"' in message
    assert 'of shape (8, 3, 3, 3)' in message
    assert 'SGD, Adam' in message
    # nothing is sliced by halves
    after = optimizer.state_dict()
    for key, state in before['state'].items():
        for entry, value in state.items():
            assert torch.equal(after['state'][key][entry], value)


class Swift(torch.optim.Optimizer):
    """Keeps state in some form beside a parameter."""

    def __init__(self, params, make):
        self.make = make
        super().__init__(params, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group['params']:
                self.state[parameter]['own'] = self.make(parameter)


@pytest.mark.parametrize(
    'make',
    [
        lambda p: p.flatten()[:2],
        lambda p: [p.clone()],
        lambda p: dict(rows=p.flatten().clone()),
    ],
    ids=['tensor', 'list', 'dict'],
)
def test_state_of_unknown_form_is_refused(make):
    model, optimizer = trained(lambda p: Swift(p, make))
    with pytest.raises(ValueError, match='Swift keeps "own" of shape'):
        cut_optimizer(optimizer, model, KEEP)


def test_state_of_many_parameters_beside_one_is_refused():
    """Beside one, even, that loses nothing."""
    model = Chain()
    last = list(model.parameters())[-1]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.state[last]['flat'] = torch.zeros(last.numel() + 5)
    with pytest.raises(ValueError, match=r'SGD keeps .* cannot be matched'):
        cut_optimizer(optimizer, model, KEEP)


class Around(torch.optim.Optimizer):
    """Leaves the steps to another optimiser."""

    def __init__(self, params, shared):
        self.base = torch.optim.Adam(params, 0.1)
        super().__init__(self.base.param_groups, {})
        if shared:
            self.state = self.base.state

    def step(self):
        self.base.step()


def test_state_in_another_optimizer():
    model, optimizer = trained(lambda p: Around(p, shared=True))
    cut_optimizer(optimizer, model, KEEP)
    cut_model(model, KEEP)
    state = optimizer.base.state[model.conv2.weight]
    assert state['exp_avg'].shape == model.conv2.weight.shape
    model, optimizer = trained(lambda p: Around(p, shared=False))
    with pytest.raises(ValueError, match=r'Around keeps .* type Adam'):
        cut_optimizer(optimizer, model, KEEP)


def test_named_tensors():
    model = NETS['TiedProducers']()
    tensors = named_tensors(model)
    assert tensors['a.weight'] is model.b.weight
    assert 'b.weight' not in tensors
    assert named_tensors(Chain()).keys() == Chain().state_dict().keys()
