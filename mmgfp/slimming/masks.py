"""Masks: chosen units have no effect and are cut out when that saves time.

Units are masked by zeroing the slices of the consumers' weights that read
them (Group Fisher paper, Section 3.1). The gradients of the slices are zeroed,
too, so that clipping of gradients ignores them and the optimiser leaves the
slices at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from ..groups import UnitSpace
from .positions import axis_sizes, cut_space, kept_positions, masked_positions
from .structure import Structure
from .surgery import (
    Keep,
    cut_model,
    cut_optimizer,
    element_state,
    named_tensors,
)

Chosen = Sequence[np.ndarray]  # per group the units


class Masks:
    """Masks and cuts units of a network during training.

    Args:
        model (nn.Module): The network.
        units (UnitSpace): Units of the network.
        structure (Structure): Structure of the network before any masking.
        cut_to (int): Masked units are cut out when the number of channels
            left in a group is a multiple of this number. 0: units are cut
            out only by :meth:`cut`.

    Attributes:
        units (UnitSpace): Units of the network, including masked ones.
        masked (list[np.ndarray]): Per group, (size,), whether each unit is
            masked.
        structure (Structure): Structure including all cuts so far.
        cuts (int): Number of cuts so far.
        on_cut (list[Callable]): Called with the kept positions before a cut.
        followers (list[Callable]): Called after a cut with the units after
            it, and whether each earlier unit was kept, (U,).
    """

    def __init__(
        self,
        model: nn.Module,
        units: UnitSpace,
        structure: Structure,
        cut_to: int = 1,
    ) -> None:
        self.units, self.structure, self.cut_to = units, structure, cut_to
        self.masked = [np.zeros(size, bool) for size in units.sizes]
        self.cuts = 0
        self.on_cut: list[Callable[[Keep], None]] = []
        self.followers: list[Callable[[UnitSpace, np.ndarray], None]] = []
        self._model = model
        self._handles: list[Any] = []

    def mask(
        self,
        chosen: Chosen,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
    ) -> bool:
        """Mask units, and cut out what ``cut_to`` allows.

        Args:
            chosen (Sequence[np.ndarray]): Per group the units.
            optimizers (Sequence[Optimizer]): Their state is masked and cut.
            copies (Sequence[nn.Module]): Copies of the network (EMA) that
                lose the same units.

        Returns:
            bool: Whether units were cut out.

        Raises:
            ValueError: See :func:`mmgfp.slimming.surgery.element_state`.
        """
        for masked, units in zip(self.masked, chosen):
            masked[units] = True
        return self._cut(self._cuttable(), optimizers, copies)

    def cut(
        self,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
    ) -> bool:
        """Cut out all masked units, as before saving the network.

        Args:
            optimizers (Sequence[Optimizer]): See :meth:`mask`.
            copies (Sequence[nn.Module]): See :meth:`mask`.

        Returns:
            bool: Whether units were cut out.
        """
        return self._cut(self._masked_units(), optimizers, copies)

    def unmasked(self) -> Keep:
        """Returns the kept positions of each axis without masked units."""
        groups = self.units.groups
        sizes = axis_sizes(self._model, groups)
        return kept_positions(groups, self._masked_units(), sizes)

    def _masked_units(self) -> list[np.ndarray]:
        return [np.flatnonzero(masked) for masked in self.masked]

    def _cuttable(self) -> list[np.ndarray]:
        """Returns the masked units that ``cut_to`` allows to cut."""
        cuttable: list[np.ndarray] = []
        for group, units in zip(self.units.groups, self._masked_units()):
            if self.cut_to == 0:
                cuttable.append(units[:0])
                continue
            step = self.cut_to // gcd(self.cut_to, group.width)
            left = group.size - len(units)
            padding = -left % step
            cuttable.append(units[: max(0, len(units) - padding)])
        return cuttable

    def _cut(
        self,
        cut: Chosen,
        optimizers: Sequence[torch.optim.Optimizer],
        copies: Sequence[nn.Module],
    ) -> bool:
        """Slice the network, its copies and the optimisers' state."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        is_cut = any(len(units) for units in cut)
        if is_cut:
            groups = self.units.groups
            sizes = axis_sizes(self._model, groups)
            keep = kept_positions(groups, cut, sizes)
            for optimizer in optimizers:
                cut_optimizer(optimizer, self._model, keep)
            for copy in copies:
                cut_model(copy, keep)
            for follow in self.on_cut:
                follow(keep)
            cut_model(self._model, keep)
            axes = self.structure.compose(keep, sizes)
            self.structure = replace(self.structure, axes=axes)
            stays = [
                np.isin(np.arange(group.size), units, invert=True)
                for group, units in zip(groups, cut)
            ]
            self.units = cut_space(self.units, cut, keep, sizes)
            self.masked = [m[left] for m, left in zip(self.masked, stays)]
            self.cuts += 1
            for followed in self.followers:
                followed(self.units, np.concatenate(stays))
        self._zero_consumers(optimizers, copies)
        return is_cut

    def _zero_consumers(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        copies: Sequence[nn.Module],
    ) -> None:
        """Zero the slices that read masked units, and their gradients."""
        tensors = named_tensors(self._model)
        copied = [named_tensors(copy) for copy in copies]
        read = masked_positions(self.units.groups, self._masked_units())
        for (name, axis), positions in read.items():
            parameter = tensors[name]
            at = torch.from_numpy(positions).to(parameter.device)
            zeroed = [parameter.data, *(copy[name].data for copy in copied)]
            for optimizer in optimizers:
                state = element_state(optimizer, parameter, name)
                zeroed += [value for _, value in state]
            if parameter.grad is not None:
                zeroed.append(parameter.grad)
            for tensor in zeroed:
                tensor.index_fill_(axis, at.to(tensor.device), 0)
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(_Fill(axis, at)))


@unserializable_hook
class _Fill:
    """Hook of a parameter that zeros slices of its gradient.

    Copies of the parameter, also pickled ones, have no such hook.
    """

    def __init__(self, axis: int, at: Tensor) -> None:
        self._axis, self._at = axis, at

    def __call__(self, grad: Tensor) -> Tensor:
        return grad.index_fill(self._axis, self._at, 0)
