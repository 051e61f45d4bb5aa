"""All weights are loaded, or an error says which are not."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

from mmgfp.libraries.loading import load_weights


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        )
        self.head = nn.Linear(width, 2)


def differ(a: nn.Module, b: nn.Module) -> list[str]:
    other = b.state_dict()
    return [n for n, t in a.state_dict().items() if not t.equal(other[n])]


def refused(weights, model=None) -> str:
    with pytest.raises(ValueError) as error:
        load_weights(model or Net(), weights, 'a.pth')
    text = str(error.value)
    assert 'the checkpoint a.pth' in text and '\n' not in text
    return text


@pytest.mark.parametrize(
    'prefix', ['', 'module.', '_orig_mod.', 'module._orig_mod.']
)
def test_prefixes_of_wrappers(prefix):
    trained, model = Net(), Net()
    weights = trained.state_dict()
    renamed = OrderedDict((prefix + k, v) for k, v in weights.items())
    renamed._metadata = OrderedDict(
        (f'{prefix}{k}'.rstrip('.'), v) for k, v in weights._metadata.items()
    )
    before = copy.deepcopy((list(renamed), renamed._metadata))
    load_weights(model, renamed, 'a.pth')
    assert not differ(model, trained)
    assert before == (list(renamed), renamed._metadata)


def test_part_that_has_the_name_of_a_prefix():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Net()

    trained, model = Wrapped(), Wrapped()
    load_weights(model, trained.state_dict(), 'a.pth')
    assert not differ(model, trained)


def test_prefix_before_some_names():
    weights = Net().state_dict()
    weights['module.head.bias'] = weights['head.bias']
    assert 'has tensors twice' in refused(weights)


def test_part_of_the_tensors():
    weights = Net().state_dict()
    del weights['backbone.0.weight'], weights['head.bias']
    text = refused(weights)
    assert 'of 9 tensors of the model 2 are missing' in text
    assert "('backbone.0.weight', 'head.bias')" in text


def test_tensors_of_a_deeper_network():
    weights = Net().state_dict()
    for i in range(5):
        weights[f'backbone.{i + 2}.weight'] = torch.ones(2)
    text = refused(weights)
    assert '0 are missing, and 5 others are there' in text
    assert "'backbone.2.weight', 'backbone.3.weight'" in text
    assert text.count('backbone') == 3  # the first few


def test_nothing_known():
    text = refused({'blocks.0.weight': torch.ones(2)})
    assert 'has no tensor of the model' in text
    assert "such as 'backbone.0.weight', got 'blocks.0.weight'" in text


def test_other_shapes():
    text = refused(Net(3).state_dict())
    assert 'backbone.0.weight has shape (3, 3, 3, 3), the model (4' in text
    assert '7 of 9 tensors differ' in text
    assert '--save-keys meta state_dict mmgfp_structure' in text


def test_values_that_are_no_tensors():
    assert 'head.bias' in refused(dict(Net().state_dict(), **{'head.bias': 3}))


def test_parts_that_the_model_does_not_have():
    """An auxiliary head, or averages that older trainings saved."""
    trained, model = Net(), Net()
    weights = trained.state_dict()
    weights['auxiliary_head.conv.weight'] = torch.ones(2)
    weights['ema_backbone_0_weight'] = torch.ones(2)
    with pytest.warns(UserWarning, match='2 tensors of .* are left out'):
        load_weights(model, weights, 'a.pth')
    assert not differ(model, trained)


def test_what_a_constructor_computes():
    """Counters, indices, and what the config says of the pictures."""
    trained, model = Net(), Net()
    weights = OrderedDict(trained.state_dict())
    del weights['backbone.1.num_batches_tracked']
    weights['backbone.position_ids'] = torch.arange(3)
    weights['data_preprocessor.mean'] = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_weights(model, weights, 'a.pth')
    assert not differ(model, trained)


class Shares(Net):
    """Its loss gives the head to the backbone, too, as detectors do."""

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        self.backbone.auxiliary = self.head
        return self.backbone[:2](images).mean()


def shared_weights() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Of a model that has run its loss, as copied from a GPU."""
    trained = Shares()
    trained.loss(torch.ones(1, 3, 5, 5))
    weights = trained.state_dict()
    assert 'backbone.auxiliary.weight' in weights
    return trained, {name: t.clone() for name, t in weights.items()}


def test_tensors_that_the_loss_gave_a_second_name():
    trained, weights = shared_weights()
    for name in ('head.bias', 'backbone.auxiliary.bias'):
        weights[name][0] = torch.nan  # equal bit by bit all the same
    model = Shares()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_weights(model, weights, 'a.pth')
    assert model.head.weight.equal(trained.head.weight)


@pytest.mark.parametrize('change', ['value', 'type', 'shape', 'sign'])
def test_second_names_of_other_tensors(change):
    """One that is nearly a tensor of the model is none of it."""
    _, weights = shared_weights()
    name = 'backbone.auxiliary.bias'
    weights['head.bias'][0] = weights[name][0] = 0
    if change == 'value':
        weights[name][1] += 1e-3
    elif change == 'sign':
        weights[name][0] = -0.0
    elif change == 'type':
        weights[name] = weights[name].double()
    else:
        weights[name] = weights[name][:, None]
    text = refused(weights, Shares())
    assert f'and 1 others are there ({name!r})' in text


def test_second_names_that_the_checkpoint_does_not_have():
    trained, model = Shares(), Shares()
    model.loss(torch.ones(1, 3, 5, 5))
    load_weights(model, trained.state_dict(), 'a.pth')
    assert model.head.weight.equal(trained.head.weight)


def test_layers_with_state_that_is_no_tensor():
    class Counts(nn.Linear):
        count = 0

        def get_extra_state(self):
            return {'count': self.count}

        def set_extra_state(self, state):
            self.count = state['count']

    trained, model = nn.Sequential(Counts(2, 3)), nn.Sequential(Counts(2, 3))
    trained[0].count = 3
    weights = trained.state_dict()
    load_weights(model, weights, 'a.pth')
    assert model[0].count == 3
    del weights['0._extra_state']
    weights['0.other'] = torch.ones(3)
    assert "('0.other')" in refused(weights, model)


def test_layers_that_rename_what_they_load():
    class Renames(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            old = f'{prefix}kernel'
            if old in state_dict:
                state_dict[f'{prefix}weight'] = state_dict.pop(old).t()
            super()._load_from_state_dict(state_dict, prefix, *args)

    model = nn.Sequential(Renames(2, 3))
    kernel, bias = torch.randn(2, 3), torch.randn(3)
    load_weights(model, {'0.kernel': kernel, '0.bias': bias}, 'a.pth')
    assert model[0].weight.equal(kernel.t())


def test_layers_that_leave_out_what_they_load():
    class Anew(nn.Linear):
        def __init__(self):
            super().__init__(2, 3)
            self.register_buffer('table', torch.arange(3.0))

        def _load_from_state_dict(self, state_dict, prefix, *args):
            state_dict.pop(f'{prefix}table', None)
            super()._load_from_state_dict(state_dict, prefix, *args)

    model, trained = nn.Sequential(Anew()), nn.Sequential(Anew())
    load_weights(model, trained.state_dict(), 'a.pth')
    assert not differ(model, trained)


def test_layers_that_the_config_has_changed():
    """Where it may: they start anew, and all others are loaded."""
    trained, model = Net(), Net()
    model.head = nn.Linear(4, 5)
    before = copy.deepcopy(model.head)
    with pytest.warns(UserWarning, match=r'2 tensors .*head\.weight'):
        load_weights(
            model,
            trained.state_dict(),
            'a.pth',
            lambda name, axis: name.startswith('head.') and axis == 0,
        )
    assert not differ(model.backbone, trained.backbone)
    assert not differ(model.head, before)


def linear(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


def flattened(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 1), nn.Flatten(), nn.Linear(4 * width, 5)
    )


def depthwise(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, groups=width)
    )


def enlarged(width: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(3, width, 2, 2), nn.Conv2d(width, 2, 1)
    )


@pytest.mark.parametrize('net', [linear, flattened, depthwise, enlarged])
@pytest.mark.parametrize('width', [6, 3])
def test_other_channels_between_two_layers(net, width):
    """It is another network, also where all axes may differ."""
    model, trained = net(4), net(width)
    with pytest.raises(ValueError, match=r'[34] of 4 tensors'):
        load_weights(
            model, trained.state_dict(), 'a.pth', lambda name, axis: True
        )


def images_and_classes(inputs: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, classes, 1)
    )


def enlarged_classes(inputs: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, 4, 1),
        nn.Conv2d(4, 4, 1),
        nn.ConvTranspose2d(4, classes, 2, 2),
    )


class Queries(nn.Sequential):
    """As MMSegmentation's Segmenter: an embedding and a norm of classes."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(nn.Conv2d(inputs, 4, 1), nn.Conv2d(4, 4, 1))
        self.queries = nn.Parameter(torch.randn(1, classes, 4))
        self.norm = nn.LayerNorm(classes)


class Windows(nn.Sequential):
    """As Swin: the positions of a window, in a square buffer."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__(nn.Conv2d(inputs, 4, 1), nn.Conv2d(4, 4, 1))
        self.register_buffer('index', torch.zeros(size, size).long())
        self.table = nn.Parameter(torch.randn(2 * size, 4))


@pytest.mark.parametrize(
    'net', [images_and_classes, enlarged_classes, Queries, Windows]
)
def test_other_images_and_other_classes(net):
    """No channels between layers differ: those tensors start anew."""
    model, trained = net(1, 5), net(3, 2)
    with pytest.warns(UserWarning, match=r'[34] tensors have another size'):
        load_weights(
            model, trained.state_dict(), 'a.pth', lambda name, axis: True
        )
    assert not differ(model[1], trained[1])


def test_network_with_other_names_and_shapes():
    trained, model = Net(), Net()
    model.head = nn.Linear(3, 5)
    model.backbone.add_module('more', nn.Linear(2, 2))
    weights = {**trained.state_dict(), 'neck.weight': torch.ones(1)}
    with pytest.raises(
        ValueError,
        match='2 of 11 tensors differ in shape, 2 are missing and 1 others',
    ):
        load_weights(model, weights, 'a.pth')


def test_layers_that_differ_also_where_they_must_not():
    trained, model = Net(), Net()
    model.head = nn.Linear(3, 5)
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=r'head\.weight has shape \(2, 4\)'),
    ):
        warnings.simplefilter('error')  # nothing keeps its values: an error
        load_weights(
            model, trained.state_dict(), 'a.pth', lambda name, axis: axis == 0
        )
