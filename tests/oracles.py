"""Slow and obvious counterparts of what mmgfp does.

Nothing here uses the self-check, the taps or the surgery of mmgfp: masking
multiplies the input of every consumer with zeros and ones, slicing indexes
tensors one by one, costs are counted in module hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmgfp.groups import ChannelGroup, Member
from mmgfp.utils.trees import tree_leaves

Removal = dict[str, np.ndarray]  # group name -> removed units
Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *Transposed)


def layout(groups: Iterable[ChannelGroup]) -> set[tuple]:
    """The prunable groups in the form of ``nets.Net.prunable``."""
    return {
        (frozenset(g.producers), frozenset(g.consumers), g.size, g.width)
        for g in groups
        if not g.frozen
    }


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and norm statistics, in float32.

    Not those of ``selfcheck``: what finds and proves the groups must not make
    the networks that test it.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        own = {
            **dict(module.named_parameters(recurse=False)),
            **dict(module.named_buffers(recurse=False)),
        }
        for name, tensor in own.items():
            if not tensor.is_floating_point():
                continue
            values = torch.rand(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                fan_in = tensor[0].numel()
                if isinstance(module, Transposed):
                    fan_in = tensor[:, 0].numel()
                values = (values - 0.5) * (12 / fan_in) ** 0.5
            elif name in ('bias', 'running_mean'):
                values = values - 0.5
            else:
                values = values + 0.5
            tensor.data.copy_(values)
    return model


def choose_units(
    groups: Sequence[ChannelGroup], share: float = 0.4, seed: int = 0
) -> Removal:
    """Random units to remove of every prunable group, never all."""
    rng = np.random.default_rng(seed)
    removal = {}
    for group in groups:
        if not group.frozen:
            count = int(np.clip(round(share * group.size), 1, group.size - 1))
            removal[group.name] = rng.choice(group.size, count, replace=False)
    return removal


# -- masking -----------------------------------------------------------------


@contextmanager
def masked(model: nn.Module, groups: Sequence[ChannelGroup], removal: Removal):
    """Multiply the input of every consumer with a mask while inside."""
    modules = dict(model.named_modules())
    masks: dict[str, np.ndarray] = {}
    for group in groups:
        for member in group.members:
            if group.name in removal and member.role in (
                'consumer',
                'grouped',
            ):
                module = modules[member.layer]
                gone = member.index[removal[group.name]].ravel()
                inputs = _inputs(module)
                mask = masks.setdefault(member.layer, np.ones(inputs))
                mask[_input_channels(module, gone)] = 0
    handles = [
        modules[name].register_forward_pre_hook(_multiply(mask))
        for name, mask in masks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _inputs(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.in_channels


def _input_channels(module: nn.Module, gone: np.ndarray) -> np.ndarray:
    """Input channels behind removed positions of the weight."""
    if getattr(module, 'groups', 1) == 1 or isinstance(module, Transposed):
        return gone
    outputs = module.out_channels // module.groups
    inputs = module.in_channels // module.groups
    first = np.unique(gone // outputs) * inputs
    return (first[:, None] + np.arange(inputs)).ravel()


def _multiply(mask: np.ndarray) -> Callable:
    def hook(module: nn.Module, args: tuple) -> tuple:
        x = args[0]
        shape = [1] * x.dim()
        axis = -1 - len(getattr(module, 'kernel_size', ()))
        shape[axis] = len(mask)
        return x * torch.as_tensor(mask, dtype=x.dtype).view(shape), *args[1:]

    return hook


# -- slicing -----------------------------------------------------------------


def kept(
    model: nn.Module, groups: Sequence[ChannelGroup], removal: Removal
) -> dict[tuple[str, int], np.ndarray]:
    """Positions that stay, by (tensor, axis)."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    keep: dict[tuple[str, int], list[int]] = {}
    for group in groups:
        if group.name not in removal:
            continue
        for member in group.members:
            key = (member.tensor, member.axis)
            if member.role == 'width':
                size = attribute(model, member.tensor)
            else:
                size = tensors[member.tensor].shape[member.axis]
            keep.setdefault(key, list(range(size)))
            for unit in removal[group.name]:
                for position in member.index[unit]:
                    keep[key].remove(int(position))
    return {key: np.array(stay) for key, stay in keep.items()}


def attribute(model: nn.Module, name: str) -> int:
    """The number behind ``'layer1.0.width'`` or ``'block.dims[0]'``."""
    where: Any = model
    for part in name.replace('[', '.').rstrip(']').split('.'):
        where = (
            where[int(part)]
            if isinstance(where, (list, tuple))
            else (where._modules.get(part) or getattr(where, part))
        )
    return where


def member(group: ChannelGroup, tensor: str, axis: int) -> Member:
    (found,) = (
        m for m in group.members if (m.tensor, m.axis) == (tensor, axis)
    )
    return found


# -- comparing ---------------------------------------------------------------


def outputs(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in tree_leaves(run(model)) if isinstance(t, Tensor)]


def worst_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest magnitude, per output.

    An output of few elements may be nearly zero by chance; its magnitude
    counts as one hundredth of the largest one's at least.
    """
    assert len(a) == len(b) > 0
    least = max(float(x.abs().max()) for x in a) / 100
    worst = 0.0
    for x, y in zip(a, b):
        assert x.shape == y.shape
        assert torch.isfinite(x).all()
        scale = max(float(x.abs().max()), least)
        worst = max(worst, float((x - y).abs().max()) / scale)
    return worst


def masked_is_slim(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    run: Callable[[nn.Module], Any],
    cut_model: Callable,
    seed: int = 0,
) -> None:
    """Assert that removing random units equals masking them."""
    model = randomize(copy.deepcopy(model), seed).train().eval()
    removal = choose_units(groups, seed=seed)
    assert removal, 'nothing to remove'
    whole = outputs(model, run)
    with masked(model, groups, removal):
        expected = outputs(model, run)
    # the mask has an effect at all
    assert max(
        float((a - b).abs().max()) for a, b in zip(whole, expected)
    ) > 1e-3 * float(max(t.abs().max() for t in whole))
    before = sum(p.numel() for p in model.parameters())
    cut_model(model, kept(model, groups, removal))
    assert sum(p.numel() for p in model.parameters()) < before
    assert worst_difference(expected, outputs(model, run)) < 1e-5


# -- cost --------------------------------------------------------------------


def count_by_hooks(
    model: nn.Module, run: Callable[[nn.Module], Any], images: int = 1
) -> dict[str, int]:
    """Multiply-accumulates, parameters and activations, call by call.

    From the attributes of the modules and the shapes they see; nothing is
    read from the weights, whose sizes pruning changes.
    """
    total = {'flops': 0, 'acts': 0}

    def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
        if isinstance(module, nn.Linear):
            per_output = module.in_features
            elements = out.numel()
        elif isinstance(module, Transposed):
            per_output = module.out_channels // module.groups
            per_output *= int(np.prod(module.kernel_size))
            elements = args[0].numel()
        else:
            per_output = module.in_channels // module.groups
            per_output *= int(np.prod(module.kernel_size))
            elements = out.numel()
        total['flops'] += elements * per_output // images
        total['acts'] += out.numel() // images

    handles = [
        m.register_forward_hook(hook)
        for m in model.modules()
        if isinstance(m, (nn.Linear, *Conv))
    ]
    outputs(model, run)
    for handle in handles:
        handle.remove()
    params = sum(
        p.numel() for p in {id(p): p for p in model.parameters()}.values()
    )
    return {**total, 'params': params}
