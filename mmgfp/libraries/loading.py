"""Loading of weights: all weights of a model are loaded, or an error.

``load_state_dict(strict=False)``, which the libraries use, keeps random
weights if a name or a shape differs.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..utils.errors import in_one_line

# Prefixes of names in wrappers: distributed training, torch.compile.
PREFIXES = ('module.', '_orig_mod.')
PREPROCESSOR = 'data_preprocessor'  # its numbers are those of the config
# Advice for slim networks without a matching config or structure.
ADVICE = (
    'Use the config of its training; for a slim network the config generated '
    'by pruning, or the pruning config and a checkpoint that holds the '
    'structure: publish_model.py keeps it with `--save-keys meta '
    'state_dict mmgfp_structure`.'
)


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Any],
    where: str | os.PathLike,
    may_differ: Callable[[str, int], bool] | None = None,
) -> None:
    """Load weights, and raise if a tensor of the model is not loaded.

    Names may have a prefix of a wrapper. Tensors of parts that the model does
    not have (an auxiliary head, averaged copies) are left out with a warning.
    Tensors computed by a constructor (counters, indices) may be missing. A
    tensor with two names, in the checkpoint or in the model, is loaded by one
    of them.

    Args:
        model (nn.Module): The model.
        weights (Mapping): Tensors by name, as in a checkpoint.
        where (str | os.PathLike): Their source, for the message.
        may_differ (Callable, optional): Called with the name of a tensor and
            an axis; returns whether the config may change its size there,
            such as the number of classes. A tensor whose other axes fit does
            not change, with a warning. None may differ if layers have another
            number of channels between them, in the outputs of one and the
            inputs of another. Defaults to false for all.

    Raises:
        ValueError: If a tensor is missing, unexpected or has another shape.
            Other tensors may have been loaded.
    """
    where = os.fspath(where)
    own = model.state_dict(keep_vars=True)  # the same objects are shared ones
    weights = _without_prefixes(weights, own, where)
    if not own.keys() & weights.keys():
        raise ValueError(
            f'the checkpoint {where} has no tensor of the model; '
            f'expected names such as {next(iter(own), "")!r}, '
            f'got {_some(list(weights))}'
        )
    resized = []
    if may_differ and not _other_channels(model, own, weights):
        resized = _resized(own, weights, may_differ)
    differences = _shapes(own, weights)
    for name in resized:
        del weights[name]
    try:
        result = model.load_state_dict(weights, strict=False)
    except Exception as error:  # a layer may read weights in its own way
        raise ValueError(
            f'the checkpoint {where} does not fit the config: '
            f'{differences or in_one_line(error)}. {ADVICE}'
        ) from error
    parts = {_part(name) for name in own}
    loaded = [name for name in own if name in weights]
    shared = {id(own[name]) for name in loaded}
    missing = [
        name
        for name in result.missing_keys
        # a layer may leave out tensors that it computes itself
        if name not in weights
        and name not in resized
        and id(own[name]) not in shared
        and _is_number(own[name])
        and _part(name) != PREPROCESSOR
    ]
    others = [
        name
        for name in result.unexpected_keys
        if _is_number(weights[name]) and _part(name) != PREPROCESSOR
    ]
    # a loss may assign a part of one head to another, with a second name
    others = [
        name
        for name in others
        if not any(
            _are_equal(weights[name], weights[other])
            for other in loaded
            if other != name and _is_number(weights[other])
        )
    ]
    unexpected = [name for name in others if _part(name) in parts]
    if missing or unexpected:
        raise ValueError(
            f'the checkpoint {where} does not fit the config: of '
            f'{len(own)} tensors of the model {len(missing)} are missing'
            f'{_named(missing)}, and {len(unexpected)} others are there'
            f'{_named(unexpected)}. {ADVICE}'
        )
    if resized:
        warnings.warn(
            f'{len(resized)} tensors have another size than in the checkpoint '
            f'{where} and keep their initial values: {_some(resized)}',
            stacklevel=2,
        )
    if others:
        warnings.warn(
            f'{len(others)} tensors of the checkpoint {where} belong to parts '
            f'that the model does not have and are left out: {_some(others)}',
            stacklevel=2,
        )


def _part(name: str) -> str:
    """Returns the name of the network's child that holds a tensor."""
    return name.partition('.')[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _are_equal(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors are equal bit by bit."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(_bits(a), _bits(b))
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().contiguous().view(torch.uint8)


def _without_prefixes(
    weights: Mapping[str, Any], own: Mapping[str, Tensor], where: str
) -> dict[str, Any]:
    """Returns the weights without prefixes of wrappers in the names."""
    found: Any = copy.copy(weights)
    if hasattr(weights, '_metadata'):
        found._metadata = weights._metadata.copy()
    removed = True
    while removed:
        removed = False
        for prefix in PREFIXES:
            if any(name.startswith(prefix) for name in own):
                continue  # a part of the model has that name
            removed |= any(name.startswith(prefix) for name in found)
            consume_prefix_in_state_dict_if_present(found, prefix)
    if len(found) < len(weights):
        raise ValueError(
            f'the checkpoint {where} has tensors twice, with and without '
            f'{" or ".join(PREFIXES)} before the name; expected them once'
        )
    return found


def _shapes(own: Mapping[str, Tensor], weights: Mapping[str, Any]) -> str:
    """Returns a text about the first tensor of another shape, or ''.

    It also says how many names differ: then the network is another one.
    """
    differ = [
        name
        for name, tensor in own.items()
        if isinstance(weights.get(name), Tensor)
        and weights[name].shape != tensor.shape
    ]
    if not differ:
        return ''
    name = differ[0]
    missing = [n for n in own if n not in weights and _is_number(own[n])]
    others = [n for n in weights if n not in own and _is_number(weights[n])]
    names = (
        f' in shape, {len(missing)} are missing and {len(others)} others are '
        'there'
    )
    return (
        f'{name} has shape {tuple(weights[name].shape)}, the model '
        f'{tuple(own[name].shape)}; {len(differ)} of {len(own)} tensors differ'
        f'{names if missing or others else ""}'
    )


def _resized(
    own: Mapping[str, Tensor],
    weights: Mapping[str, Any],
    may_differ: Callable[[str, int], bool],
) -> list[str]:
    """Returns the tensors that differ only along allowed axes."""
    names = []
    for name, tensor in own.items():
        axes = _different_axes(weights.get(name), tensor)
        if axes and all(may_differ(name, axis) for axis in axes):
            names.append(name)
    return names


def _other_channels(
    model: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Any]
) -> bool:
    """Returns whether the number of channels between two layers differs.

    Then a layer has other outputs, and one that reads them other inputs, by
    the same factor where maps are flattened. A layer with other classes or
    images alone differs on one side only.
    """
    made, read = set(), set()
    for prefix, module in model.named_modules():
        if not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        name = f'{prefix}.weight'.lstrip('.')
        if name not in own:  # it is computed from others
            continue
        tensor: Tensor = own[name]
        given: Any = weights.get(name)
        outputs, inputs = 0, 1
        if isinstance(module, _ConvTransposeNd):
            outputs, inputs = inputs, outputs
        for axis in _different_axes(given, tensor):
            pair = given.shape[axis], tensor.shape[axis]
            # each output of a depthwise convolution reads a channel
            depthwise = getattr(module, 'groups', 1) == len(tensor) > 1
            if axis == outputs or depthwise:
                made.add(pair)
            if axis == inputs or depthwise:
                read.add(pair)
    return any(a * c == b * d and a % b == 0 for a, d in read for b, c in made)


def _different_axes(given: Any, tensor: Tensor) -> list[int]:
    if not isinstance(given, Tensor) or given.dim() != tensor.dim():
        return []
    return [
        axis
        for axis, (a, b) in enumerate(zip(given.shape, tensor.shape))
        if a != b
    ]


def _named(names: Sequence[str]) -> str:
    return f' ({_some(names)})' if names else ''


def _some(names: Sequence[str]) -> str:
    """Returns the first three of many names, in one line."""
    more = ', ...' if len(names) > 3 else ''
    return ', '.join(ascii(name) for name in names[:3]) + more
