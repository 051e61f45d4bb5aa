"""Attributes that count channels although no forward reads them.

Blocks whose branches are merged after training (``switch_to_deploy``,
``fuse``) build new layers from numbers such as ``in_channels``. The name of
such a number says whether it counts the module's inputs, its outputs or the
channels of its layers. It must be equal to their number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..slimming.surgery import (
    own_numbers,
    own_positions,
    read_width,
    write_width,
)
from ..utils.trees import tree_leaves
from .label_layers import axis_labels
from .slots import SlotTable

Side = Literal['in', 'out', 'any', 'groups']

_NAMES: dict[Side, str] = {
    'in': """in_channels in_channel in_chs in_chans in_planes inplanes in_dim
        in_dims in_features in_size input_dim input_dims input_channels""",
    'out': """out_channels out_channel out_chs out_chans out_planes outplanes
        out_dim out_dims out_features out_size output_dim output_dims
        output_channels""",
    'any': """channels channel chs num_channels num_chs planes width dim dims
        embed_dim embed_dims num_features features hidden_dim hidden_dims
        hidden_channels hidden_features hidden_size mid_channels mid_chs
        mid_planes feat_channels d_model""",
    'groups': 'groups num_groups',
}
_SIDES: dict[str, Side] = {
    name: side for side, names in _NAMES.items() for name in names.split()
}


# sides ('in', 'out', ...) of a layer's numbers that an attribute may mean
_INSIDE: dict[Side, tuple[Side, ...]] = {
    'in': ('in',),
    'out': ('out',),
    'any': ('in', 'out', 'any'),
    'groups': ('groups',),
}


@dataclass(frozen=True)
class Width:
    """An attribute named like a width, or an element of one."""

    name: str
    value: int
    side: Side
    place: int | None


@dataclass
class Passing:
    """Inputs and outputs of the modules with such attributes.

    Attributes:
        widths (dict): The attributes by module.
        seen (dict): By module and side, the label layers and the position of
            each tensor.
    """

    widths: Mapping[nn.Module, Sequence[Width]]
    seen: dict[tuple[nn.Module, Side], list[tuple[tuple[Tensor, ...], int]]]
    model: nn.Module = field(repr=False)

    @classmethod
    def through(cls, model: nn.Module) -> Passing:
        """Returns an empty record for the modules of a network."""
        widths = {
            module: found
            for name, module in model.named_modules()
            if (found := list(_widths(name, module)))
        }
        return cls(widths, defaultdict(list), model)

    def note(
        self,
        module: nn.Module,
        side: Side,
        value: Any,
        layers: Callable[[Tensor], tuple[Tensor, ...]],
    ) -> None:
        """Record the input or the output of a module."""
        if module in self.widths:
            tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
            for place, tensor in enumerate(tensors):
                self.seen[module, side].append((layers(tensor), place))

    def counted(
        self, table: SlotTable, slots: int
    ) -> dict[str, list[np.ndarray]]:
        """Returns by attribute the labels (n, k) that it may count."""
        names = {id(tensor): name for name, tensor in table.tensors.items()}
        found = {}
        for module, widths in self.widths.items():
            inside = list(_numbers_inside(module, table, names))
            for width in widths:
                there = list(self._passing(module, width, slots))
                fitting = [
                    (labels, near)
                    for side, labels, near in inside
                    if len(labels) == width.value
                    and side in _INSIDE[width.side]
                ]
                within = [labels for labels, near in fitting if near]
                if width.side == 'any':
                    there += within
                elif width.side == 'groups':
                    there = within or there  # none within: depthwise
                else:
                    there = there or within
                there = there or [labels for labels, _ in fitting]
                if there:
                    found[width.name] = there
        return found

    def _passing(
        self, module: nn.Module, width: Width, slots: int
    ) -> Iterator[np.ndarray]:
        sides: tuple[Side, ...] = ('in', 'out')
        if width.side in sides:
            sides = (width.side,)
        for side in sides:
            for layers, place in self.seen.get((module, side), ()):
                if not layers or width.place not in (None, place):
                    continue
                shape = layers[0].shape
                for axis in {1, len(shape) - 1}:  # -1: of a single number
                    inside = 0 <= axis < len(shape)
                    if inside and shape[axis] == width.value:
                        labels = axis_labels(layers, axis, slots)
                        if (labels >= 0).any():
                            yield labels


def _widths(prefix: str, module: nn.Module) -> Iterator[Width]:
    known = own_numbers(module)
    for key, value in vars(module).items():
        side = _SIDES.get(key)
        if side is None or key in known:
            continue
        name = f'{prefix}.{key}' if prefix else key
        if type(value) is int and value > 1:
            yield Width(name, value, side, None)
        elif isinstance(value, (list, tuple)):
            for i, number in enumerate(value):
                if type(number) is int and number > 1:
                    yield Width(f'{name}[{i}]', number, side, i)


def _numbers_inside(
    module: nn.Module, table: SlotTable, names: Mapping[int, str]
) -> Iterator[tuple[Side, np.ndarray, bool]]:
    """Returns the labels counted by layers inside, and whether near.

    The numbers of a module's direct layers are near. Numbers of groups
    always are, because all layers of a block have equally many groups.
    """
    children = set(_children(module))
    for layer in module.modules():
        if layer is not module:
            for key, labels in own_labels(layer, table, names).items():
                side = _SIDES.get(key)
                if side is not None:
                    near = layer in children or side == 'groups'
                    yield side, labels[:, None], near


def _children(module: nn.Module) -> Iterator[nn.Module]:
    """Yields child modules, also those in containers of torch."""
    for child in module.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield from _children(child)
        else:
            yield child


def own_labels(
    module: nn.Module, table: SlotTable, names: Mapping[int, str]
) -> dict[str, np.ndarray]:
    """Returns the slots that the numbers of a layer count, (n,) by name.

    Args:
        module (nn.Module): Any module.
        table (SlotTable): Slots of the network.
        names (Mapping): Names of the network's tensors by their id.
    """
    found = {}
    for key, (tensor, axis, at) in own_positions(module).items():
        place = names[id(getattr(module, tensor))], axis
        if place in table:
            found[key] = table.slots(*place)[at]
    return found


def unread(
    model: nn.Module, run: Callable[[], Any], widths: Mapping[str, int]
) -> set[str]:
    """Returns the attributes whose value has no effect on the outputs.

    Args:
        model (nn.Module): In eval mode; restored afterwards.
        run (Callable): Runs it on demo input.
        widths (Mapping): Smaller values of the attributes by name.
    """
    before = {name: read_width(model, name) for name in widths}
    owners: dict[str, list[str]] = defaultdict(list)
    for name in widths:
        owners[name.rpartition('.')[0]].append(name)
    expected = _outputs(run)

    def has_no_effect(names: Sequence[str]) -> bool:
        try:
            for name in names:
                write_width(model, name, widths[name])
            return _same(expected, _outputs(run))
        except Exception:  # the user's forward may raise anything
            return False
        finally:
            for name in names:
                write_width(model, name, before[name] or 0)

    def search(parts: list[list[str]]) -> list[str]:
        """Bisect by modules, then by attributes of one module."""
        names = [name for part in parts for name in part]
        if not names or has_no_effect(names):
            return names
        if len(parts) == 1 and len(names) > 1:
            parts = [[name] for name in names]
        half = len(parts) // 2
        return search(parts[:half]) + search(parts[half:]) if half else []

    return set(search(list(owners.values())))


def _outputs(run: Callable[[], Any]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [t for t in tree_leaves(run()) if isinstance(t, Tensor)]


def _same(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    return len(before) == len(after) and all(map(torch.equal, before, after))
