"""Surgery: cutting tensors, optimiser state and module attributes.

``Keep`` has the kept positions of each ``(tensor name, axis)``, in ascending
order, and the kept channels of each ``(attribute, ATTRIBUTE)``. Parameters and
buffers are cut in place, so references of optimisers and hooks to a parameter
stay valid. A module's class, forward and ``state_dict`` keys never change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod as Masking
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..groups import ATTRIBUTE
from ..utils.trees import tree_leaves

Keep = Mapping[tuple[str, int], np.ndarray]

_INSTEAD = 'Use an optimizer such as SGD, Adam or AdamW while pruning.'

# Where each module has its parameters, buffers, hooks and children.
_OF_MODULES = frozenset(vars(nn.Module()))

_LAYOUTS = (
    torch.contiguous_format,
    torch.channels_last,
    torch.channels_last_3d,
)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers; a shared tensor has its first name.

    Raises:
        ValueError: If a lazy layer has not made its parameters yet.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ValueError(
                f'{name} has no shape yet, because its layer is lazy and has '
                'not run; expected a model that has been run once, such as '
                'by model(images)'
            )
    return tensors


def cut_tensor(tensor: Tensor, cuts: Mapping[int, np.ndarray]) -> Tensor:
    """Returns a new tensor with the given positions, in the same layout."""
    layout = next(
        (f for f in _LAYOUTS if tensor.is_contiguous(memory_format=f)),
        torch.contiguous_format,
    )
    for axis, kept in cuts.items():
        index = torch.as_tensor(kept, dtype=torch.long, device=tensor.device)
        tensor = tensor.index_select(axis, index)
    return tensor.contiguous(memory_format=layout)


def cuts_of(keep: Keep) -> dict[str, dict[int, np.ndarray]]:
    """Regroup a keep mapping by tensor: name -> axis -> positions.

    Attributes are left out.
    """
    cuts: dict[str, dict[int, np.ndarray]] = {}
    for (name, axis), kept in keep.items():
        if axis != ATTRIBUTE:
            cuts.setdefault(name, {})[axis] = kept
    return cuts


def cut_model(model: nn.Module, keep: Keep) -> None:
    """Remove channels from a model, in place.

    Args:
        model (nn.Module): Full-size model.
        keep (Keep): Kept positions. Tensors that are not named stay
            whole.
    """
    tensors = named_tensors(model)
    sliced = cuts_of(keep)
    before = _owners(model, {id(tensors[name]) for name in sliced})
    for name, cuts in sliced.items():
        tensor = tensors[name]
        with torch.no_grad():
            grad = tensor.grad
            tensor.grad = None
            _set_data(tensor, cut_tensor(tensor.data, cuts))
            if grad is not None:
                tensor.grad = cut_tensor(grad, cuts)
    for module, shapes in before.items():
        with torch.no_grad():
            _keep_again(module)
            _refresh_attributes(module, shapes)
    for (name, axis), kept in keep.items():
        if axis == ATTRIBUTE:
            write_width(model, name, len(kept))
    if not model.training:
        compute_again(model)


def cut_saved(
    checkpoint: Mapping[str, Any], model: nn.Module, keep: Keep
) -> None:
    """Cut the tensors of a model in a checkpoint.

    The model and its tensors do not change, also if the checkpoint shares
    them.

    Args:
        checkpoint (Mapping): Its parts; those that hold tensors by the names
            of the model's, also averaged ones, are changed in place.
        model (nn.Module): The model, not yet cut.
        keep (Keep): Kept positions.
    """
    tensors = named_tensors(model)
    cuts = {id(tensors[name]): cut for name, cut in cuts_of(keep).items()}
    names = {  # each name of a shared tensor
        name: cuts[id(tensor)]
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) in cuts
    }
    for part in checkpoint.values():
        for name, cut in names.items() if isinstance(part, dict) else ():
            for key in (name, f'module.{name}'):  # of averaged models
                if isinstance(part.get(key), Tensor):
                    part[key] = cut_tensor(part[key], cut)


def compute_again(model: nn.Module) -> None:
    """Let modules in eval mode recompute tensors derived from their weights.

    Some do that when the mode changes. Nothing happens to models without
    tensors besides parameters and buffers.
    """
    modes = {module: module.training for module in model.modules()}
    if any(map(_keeps_tensors, modes)):
        with torch.no_grad():
            model.train()
            model.eval()
        for module, training in modes.items():
            module.training = training
            if not training:  # tensors made in eval mode have no graph
                _keep_again(module)


def _keeps_tensors(module: nn.Module) -> bool:
    """Returns whether attributes, or dicts and lists there, hold tensors."""
    return any(
        isinstance(leaf, Tensor)
        for key, value in vars(module).items()
        if isinstance(value, (Tensor, dict, list, tuple))
        and key not in _OF_MODULES
        for leaf in tree_leaves(value)
    )


def read_width(model: nn.Module, name: str) -> int | None:
    """Returns the number in an attribute; None if it holds no number.

    Args:
        model (nn.Module): The network.
        name (str): Such as ``'layer1.0.width'`` or, for an element of a list,
            ``'block.dims[0]'``.
    """
    owner, key, place = _split_name(name)
    try:
        value: Any = vars(model.get_submodule(owner)).get(key)
    except AttributeError:
        return None
    if place is not None:
        fits = isinstance(value, (list, tuple)) and place < len(value)
        value = value[place] if fits else None
    return value if type(value) is int else None


def write_width(model: nn.Module, name: str, width: int) -> None:
    """Set an attribute; see :func:`read_width`.

    A list is replaced, because other modules or a config may hold it too.
    """
    owner, key, place = _split_name(name)
    module = model.get_submodule(owner)
    value: Any = width
    if place is not None:
        whole: Any = vars(module)[key]
        value = type(whole)([*whole[:place], width, *whole[place + 1 :]])
    setattr(module, key, value)


def _split_name(name: str) -> tuple[str, str, int | None]:
    """Returns ``('block', 'dims', 0)`` for ``'block.dims[0]'``."""
    owner, _, key = name.rpartition('.')
    key, bracket, place = key.partition('[')
    return owner, key, int(place.rstrip(']')) if bracket else None


def _owners(
    model: nn.Module, ids: set[int]
) -> dict[nn.Module, dict[str, torch.Size]]:
    """Returns the modules that hold one of these tensors, with all shapes.

    Each layer of a tied weight has attributes of its own to refresh. A layer
    also holds the tensors that ``torch.nn.utils`` computes its weight from.
    """
    owners = {}
    for module in model.modules():
        own = {
            **dict(module.named_parameters(recurse=False)),
            **dict(module.named_buffers(recurse=False)),
        }
        computed = [*_kept_weights(module)]
        if is_parametrized(module):
            lists: Any = module.parametrizations
            for name, made in lists.items():
                if any(id(p) in ids for p in made.parameters()):
                    computed.append(name)
        if computed or any(id(tensor) in ids for tensor in own.values()):
            with torch.no_grad():
                own.update({n: getattr(module, n) for n in computed})
            owners[module] = {name: t.shape for name, t in own.items()}
    return owners


def length_of(direction: str) -> str:
    """Returns where ``weight_norm`` stores the length of a direction.

    Args:
        direction (str): Name of a parameter that may be a direction.

    Returns:
        str: '' if the name is not that of one.
    """
    for ending, other in (('_v', '_g'), ('.original1', '.original0')):
        if direction.endswith(ending):
            return direction.removesuffix(ending) + other
    return ''


def _keep_again(module: nn.Module) -> None:
    with torch.no_grad():
        for hook in _kept_weights(module).values():
            hook(module, ())


def _kept_weights(module: nn.Module) -> dict[str, Any]:
    """Returns weights that hooks of torch compute before each forward."""
    found: dict[str, Any] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            found[hook.name] = hook
        elif isinstance(hook, Masking):
            found[hook._tensor_name] = hook
    return found


def _set_data(tensor: Tensor, data: Tensor) -> None:
    """Give a tensor data of another shape.

    While a graph is alive (a loss that is still referenced), autograd keeps
    the old shape and would pass it to the next graph or distributed wrapper.
    A change of the type resets it, so the type changes in between.
    """
    other = torch.float32 if data.dtype == torch.float64 else torch.float64
    tensor.data = data.new_empty(0, dtype=other)
    tensor.data = data


def cut_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, keep: Keep
) -> None:
    """Cut the per-element state (momentum, ...) of a model's parameters.

    Call before :func:`cut_model`: state is recognised by having the shape
    of its parameter.

    Raises:
        ValueError: See :func:`element_state` and :func:`check_own_state`.
            Nothing is cut then.
    """
    check_own_state(optimizer)
    tensors = named_tensors(model)
    slim = [
        (optimizer.state[tensors[name]], key, cut_tensor(value, cuts))
        for name, cuts in cuts_of(keep).items()
        for key, value in element_state(optimizer, tensors[name], name)
    ]
    for state, key, value in slim:
        state[key] = value


def element_state(
    optimizer: torch.optim.Optimizer, parameter: Tensor, name: str
) -> list[tuple[str, Tensor]]:
    """Returns the state that has the shape of its parameter.

    Args:
        optimizer (Optimizer): One that may hold the parameter.
        parameter (Tensor): The parameter.
        name (str): Its name, for the message.

    Raises:
        ValueError: If a state is a tensor of another shape, whose elements
            cannot be matched with those of the parameter.
    """
    found = []
    for key, value in optimizer.state.get(parameter, {}).items():
        for part in tree_leaves(value):
            if not isinstance(part, Tensor) or part.numel() <= 1:
                continue
            if part is not value or value.shape != parameter.shape:
                raise ValueError(
                    f'{type(optimizer).__name__} keeps "{key}" of shape '
                    f'{tuple(part.shape)} for {name} of shape '
                    f'{tuple(parameter.shape)}; expected state of the '
                    f"parameter's shape. {_INSTEAD}"
                )
            found.append((key, part))
    return found


def check_own_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise if an optimiser keeps state that is not of one parameter.

    Raises:
        ValueError: If it wraps another optimiser that keeps state, or
            keeps a tensor larger than its parameter.
    """
    kind = type(optimizer).__name__
    inner = inner_optimizer(optimizer)
    if inner is not None and inner.state is not optimizer.state:
        raise ValueError(
            f'{kind} keeps its state in another optimizer, of the type '
            f'{type(inner).__name__}, where it cannot be cut. {_INSTEAD}'
        )
    for owner, state in optimizer.state.items():
        most = owner.numel() if isinstance(owner, Tensor) else 0
        for part in tree_leaves(state):
            if isinstance(part, Tensor) and part.numel() > max(1, most):
                raise ValueError(
                    f'{kind} keeps {part.numel()} numbers beside a parameter '
                    f'of {most} numbers, which cannot be matched. '
                    f'{_INSTEAD}'
                )


def inner_optimizer(
    optimizer: torch.optim.Optimizer,
) -> torch.optim.Optimizer | None:
    """Returns the optimiser that another one wraps; None if there is none."""
    values = vars(optimizer).values()
    return next(
        (v for v in values if isinstance(v, torch.optim.Optimizer)), None
    )


def _refresh_attributes(
    module: nn.Module, before: Mapping[str, torch.Size]
) -> None:
    """Set a module's attributes, such as in_channels, from its tensors."""
    weight = before.get('weight')  # some modules compute it
    if weight is not None and _is_convolution(module, weight):
        _refresh_convolution(module, weight)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        vector = (
            module.weight if module.weight is not None else module.running_mean
        )
        module.num_features = len(vector)
    elif isinstance(module, nn.GroupNorm):
        channels = len(module.weight)
        module.num_groups = module.num_groups * channels // module.num_channels
        module.num_channels = channels
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


_CONVOLUTION = ('groups', 'in_channels', 'out_channels')

# Attributes of torch's other layers that follow from their tensors.
_NUMBERS = (
    (nn.Linear, ('in_features', 'out_features')),
    (_NormBase, ('num_features',)),
    (nn.GroupNorm, ('num_groups', 'num_channels')),
    (nn.LayerNorm, ('normalized_shape',)),
    (nn.Embedding, ('num_embeddings', 'embedding_dim')),
    (nn.PReLU, ('num_parameters',)),
)


def own_numbers(module: nn.Module) -> tuple[str, ...]:
    """Returns the attributes that :func:`cut_model` sets from tensors."""
    weight = module._parameters.get('weight')
    if _is_convolution(module, () if weight is None else weight.shape):
        return _CONVOLUTION
    stored = (weight, module._buffers.get('running_mean'))
    if all(tensor is None for tensor in stored):
        return ()
    for kind, names in _NUMBERS:
        if isinstance(module, kind):
            return names
    return ()


def own_positions(module: Any) -> dict[str, tuple[str, int, np.ndarray]]:
    """Returns the channels that a layer's attributes count.

    Returns:
        dict: For each attribute of :func:`own_numbers` that is a number, the
        tensor, its axis, and the positions along it that are counted.
    """
    names = own_numbers(module)
    tensor = 'weight' if module._parameters.get('weight') is not None else ''
    if isinstance(module, _NormBase) and not tensor:
        tensor = 'running_mean'
    if not names or not tensor:
        return {}
    shape = getattr(module, tensor).shape
    axes: dict[str, int] = {}
    if names is _CONVOLUTION:
        near, far = ('out_channels', 'in_channels')
        if _is_transposed(module):
            near, far = far, near
        if module.groups > 1:
            first = np.arange(0, shape[0], shape[0] // module.groups)
            return {
                'groups': (tensor, 0, first),
                near: (tensor, 0, np.arange(shape[0])),
                far: (tensor, 0, first.repeat(shape[1])),
            }
        axes = {near: 0, far: 1}
    elif isinstance(module, nn.GroupNorm):
        first = np.arange(0, shape[0], shape[0] // module.num_groups)
        return {
            'num_groups': (tensor, 0, first),
            'num_channels': (tensor, 0, np.arange(shape[0])),
        }
    elif not isinstance(module, nn.LayerNorm):  # its attribute is a tuple
        axes = dict(zip(names, range(len(shape))))
    return {
        name: (tensor, axis, np.arange(shape[axis]))
        for name, axis in axes.items()
    }


def _is_convolution(module: nn.Module, weight: Sequence[int]) -> bool:
    """Returns whether a module has the attributes of a convolution.

    Convolutions of other libraries need not be subclasses of torch's.
    """
    if isinstance(module, _ConvNd):
        return True
    stored = [vars(module).get(name) for name in _CONVOLUTION]
    numbers = [n for n in stored if isinstance(n, int)]
    if len(weight) < 3 or len(numbers) < len(stored):
        return False
    groups, *channels = numbers
    sizes = [weight[1] * groups, weight[0]]
    return channels == (sizes[::-1] if _is_transposed(module) else sizes)


def _is_transposed(module: nn.Module) -> bool:
    return getattr(module, 'transposed', False) is True


def _refresh_convolution(module: Any, before: torch.Size) -> None:
    first, second = module.weight.shape[:2]
    if module.groups > 1:
        module.groups = module.groups * first // before[0]
    if _is_transposed(module):
        module.in_channels = first
        module.out_channels = second * module.groups
    else:
        module.in_channels = second * module.groups
        module.out_channels = first
