"""Gates: values that multiply the inputs of the consumers of units.

A gate of 0 masks a unit. The values get gradients, which searches use to
learn or choose widths.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..criteria.layer_rows import is_matrix_layer
from ..groups import Tap, UnitSpace

# PyTorch before 2.1 calls no hook after an error of a module; the next call
# then restores its weight.
_ALWAYS: dict[str, Any] = {}
if 'always_call' in signature(nn.Module.register_forward_hook).parameters:
    _ALWAYS['always_call'] = True


class Gates:
    """Multiplies the inputs of all consumers while it is attached.

    With one gate per unit, the weights of convolutions and linear layers are
    multiplied instead, which gives the same outputs and stores no further
    activations.

    Args:
        model (nn.Module): The network.
        units (UnitSpace): Units of its prunable groups.
        values (Callable): Returns the gates, (U,), or (N, U) with one row per
            image of the batch; called once for every consumer in every
            forward.
        grouped (bool): Whether inputs of grouped convolutions are multiplied,
            too. If not, only later layers that read the same units are
            multiplied. Defaults to True.
    """

    def __init__(
        self,
        model: nn.Module,
        units: UnitSpace,
        values: Callable[[], Tensor],
        grouped: bool = True,
    ) -> None:
        self._units = units
        self._values = values
        modules = dict(model.named_modules())
        self._handles = []
        for tap, index in _gated(units, grouped):
            gate = _Gate(tap, torch.from_numpy(index), self._checked)
            module = modules[tap.module]
            self._handles += [
                module.register_forward_pre_hook(gate.before),
                module.register_forward_hook(gate.after, **_ALWAYS),
            ]

    def detach(self) -> None:
        """Remove the gates from the network."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _checked(self) -> Tensor:
        """Returns the gates with a 1 at the end, for channels of no group."""
        values = self._values()
        number = len(self._units)
        if values.dim() not in (1, 2) or values.shape[-1] != number:
            raise ValueError(
                f'gates of shape {tuple(values.shape)}; expected ({number},), '
                f'one for each unit, or (images, {number})'
            )
        return torch.cat([values, values.new_ones(*values.shape[:-1], 1)], -1)


def gated_groups(units: UnitSpace, grouped: bool = True) -> frozenset[str]:
    """Returns the names of the groups that :class:`Gates` multiply.

    Args:
        units (UnitSpace): See :class:`Gates`.
        grouped (bool): See :class:`Gates`.
    """
    return frozenset(
        units.groups[g].name
        for _, index in _gated(units, grouped)
        for g in units.groups_among(index)
    )


def _gated(units: UnitSpace, grouped: bool) -> list[tuple[Tap, np.ndarray]]:
    return [
        (tap, index)
        for tap, index in units.consumers()
        if grouped or not _is_grouped(tap, units)
    ]


class _Gate:
    """Multiplies one consumer."""

    def __init__(
        self, tap: Tap, unit: Tensor, values: Callable[[], Tensor]
    ) -> None:
        self._tap = tap
        self._unit = unit
        self._values = values
        self._full: list[nn.Parameter] = []  # weights of the current calls

    def before(self, module: nn.Module, args: tuple) -> tuple[Any, ...]:
        """Multiply the weight or the first argument."""
        self.after(module)
        values = self._values()
        picked = values[..., self._unit.to(values.device)]
        if picked.dim() == 1 and _is_linear_in_weight(module):
            self._scale_weight(module, picked)
            return args
        source = args[0]
        if picked.dim() == 2:
            picked = picked[self._images(source, len(picked))]
        shape = [1] * source.dim()
        shape[self._tap.channel_axis] = len(self._unit)
        if picked.dim() == 2:
            shape[self._tap.layout.axis] = len(picked)
            if self._tap.channel_axis < self._tap.layout.axis:
                picked = picked.T
        return (source * picked.reshape(shape).to(source.dtype), *args[1:])

    def after(self, module: nn.Module, *_: Any) -> None:
        """Restore the weight, also after an error of the layer."""
        if self._full:
            module._parameters['weight'] = self._full.pop()

    def _scale_weight(self, module: nn.Module, picked: Tensor) -> None:
        weight = module._parameters['weight']
        assert weight is not None
        factors = picked.new_ones(weight.shape[self._tap.axis])
        position = torch.from_numpy(self._tap.position).to(picked.device)
        factors = factors.index_put((position,), picked)
        shape = [1] * weight.dim()
        shape[self._tap.axis] = len(factors)
        self._full.append(weight)
        # the module reads it like a parameter
        scaled = weight * factors.view(shape).to(weight.dtype)
        module._parameters['weight'] = scaled  # type: ignore[assignment]

    def _images(self, source: Tensor, images: int) -> Tensor:
        """Returns the image of every row of the input, (rows,)."""
        layout = self._tap.layout
        rows = source.shape[layout.axis]
        if layout.order in ('rois', 'picked') or not layout.fits(rows, images):
            raise ValueError(
                f'gates of {images} images at {self._tap.module}, whose input '
                f'has {rows} rows in the order {layout.order!r}: expected '
                'rows that belong to the images in turn, or one gate per unit'
            )
        return layout.owners(rows, images, device=source.device)


def _is_linear_in_weight(module: nn.Module) -> bool:
    """Returns whether a factor of a weight slice acts like one of its input.

    Not so for layers with another forward, which may normalise the weight,
    and for layers with a parametrization, which compute it.
    """
    return (
        is_matrix_layer(module)
        and 'weight' in module._parameters
        and type(module).forward.__module__.startswith('torch.nn.modules')
    )


def _is_grouped(tap: Tap, units: UnitSpace) -> bool:
    return any(
        member.role == 'grouped' and member.tensor == tap.weight
        for group in units.groups
        for member in group.members
    )
