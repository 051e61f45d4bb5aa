"""Narrower networks that share the weights of the full one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..groups import UnitSpace
from ..slimming.positions import axis_sizes, kept_positions
from ..slimming.surgery import cut_model, cuts_of
from ..utils.copies import whole_copy


def first_units(
    units: UnitSpace, widths: Sequence[int] | np.ndarray
) -> list[np.ndarray]:
    """Returns the units to cut so that the first of each group stay.

    Args:
        units (UnitSpace): All units.
        widths (Sequence[int]): (G,) number of kept units of each group.
    """
    order = [np.arange(size)[::-1] for size in units.sizes]
    return _worst(units, widths, order)


def best_units(
    units: UnitSpace,
    widths: Sequence[int] | np.ndarray,
    scores: np.ndarray,
) -> list[np.ndarray]:
    """Returns the units to cut so that those with the best scores stay.

    Args:
        units (UnitSpace): All units.
        widths (Sequence[int]): (G,) number of kept units of each group.
        scores (np.ndarray): Scores, (U,); of equal scores later units stay.
    """
    order = [np.argsort(s, kind='stable') for s in units.split(scores)]
    return _worst(units, widths, order)


def _worst(
    units: UnitSpace,
    widths: Sequence[int] | np.ndarray,
    order: Sequence[np.ndarray],
) -> list[np.ndarray]:
    cut = []
    for group, width, worst_first in zip(units.groups, widths, order):
        if not 0 < width <= group.size:
            raise ValueError(
                f'width={width} of the group {group.name}: expected 1 to '
                f'{group.size} units'
            )
        cut.append(np.sort(worst_first[: group.size - int(width)]))
    return cut


class Subnet(nn.Module):
    """Runs without some units, on slices of the full network's parameters.

    The full parameters get gradients. Buffers, such as the statistics of
    batch norms, are copies.

    Args:
        model (nn.Module): The full network.
        units (UnitSpace): Units of its prunable groups.
        cut (Sequence[np.ndarray]): Per group the units to leave out.
    """

    def __init__(
        self,
        model: nn.Module,
        units: UnitSpace,
        cut: Sequence[np.ndarray],
    ) -> None:
        super().__init__()
        sizes = axis_sizes(model, units.groups)
        keep = kept_positions(units.groups, cut, sizes)
        self.shell = whole_copy(model)
        cut_model(self.shell, keep)
        # the full network must not be a submodule
        self._full = [model]
        self._cuts = {
            name: {axis: torch.from_numpy(kept) for axis, kept in cuts.items()}
            for name, cuts in cuts_of(keep).items()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run with the arguments of the full network."""
        weights = {
            name: self._slice(name, parameter)
            for name, parameter in self._full[0].named_parameters()
        }
        return functional_call(self.shell, weights, args, kwargs)

    def _slice(self, name: str, tensor: Tensor) -> Tensor:
        for axis, kept in self._cuts.get(name, {}).items():
            tensor = tensor.index_select(axis, kept.to(tensor.device))
        return tensor
