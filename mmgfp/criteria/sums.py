"""Sums over batches for each unit, with counts for each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..groups import UnitSpace


class UnitSums:
    """Sums since the last pruning step in one flat vector, (U + 2 G,).

    It holds the sums of the U units; for each of the G groups the number of
    images with a mask gradient; and for each group the number of iterations
    in which no gradient reached the input of one of its consumers.

    Args:
        units (UnitSpace): The units.
        device (torch.device): Device of the vector.
    """

    def __init__(self, units: UnitSpace, device: torch.device) -> None:
        self.units = units
        size = len(units) + 2 * len(units.groups)
        # of this process since the last call of all_reduce
        self._own = torch.zeros(size, dtype=torch.float64, device=device)
        # of all processes until then
        self._shared = self.empty()

    def empty(self) -> Tensor:
        """Returns a vector of zeros for a batch."""
        return torch.zeros_like(self._own)

    def split(self, vector: Tensor) -> Sequence[Tensor]:
        """Returns the sums (U,), images (G,) and unreached (G,) as views."""
        groups = len(self.units.groups)
        return vector.split([len(self.units), groups, groups])

    def add(self, batch: Tensor) -> None:
        """Add the vector of a batch."""
        self._own = self._own + batch

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """Sum over processes, as :meth:`Criterion.all_reduce`."""
        reduce(self._own)
        self._shared, self._own = self.total(), self.empty()

    def total(self) -> Tensor:
        """Returns the sums of all processes and of this one's last batches.

        The last batches are those since the last :meth:`all_reduce`.
        """
        return self._shared + self._own

    def reset(self, factors: np.ndarray) -> None:
        """Multiply the sums of the units and set the counts to zero.

        Args:
            factors (np.ndarray): Factor of each unit, (U,).
        """
        total = self.total()
        sums, *counts = self.split(total)
        sums *= torch.from_numpy(factors).to(sums.device)
        for count in counts:
            count.zero_()
        self._shared, self._own = total, self.empty()

    def cut(self, units: UnitSpace, stays: np.ndarray) -> None:
        """Keep the units that stay, as :meth:`Criterion.cut`."""
        counts = np.ones(2 * len(units.groups), bool)
        index = torch.from_numpy(np.concatenate([stays, counts]))
        index = index.to(self._own.device)
        self._own, self._shared = self._own[index], self._shared[index]
        self.units = units

    def state_dict(self, stays: np.ndarray) -> dict[str, Any]:
        """Returns the state for a checkpoint, by name of the group.

        Args:
            stays (np.ndarray): (U,) whether the sum of a unit is kept.

        Returns:
            dict: ``sums`` of the units, ``images`` and ``unreached``.
        """
        sums, images, unreached = (
            part.numpy() for part in self.split(self.total().cpu())
        )
        names = [group.name for group in self.units.groups]
        split = self.units.split
        return {
            'sums': {
                name: torch.from_numpy(part[kept])
                for name, part, kept in zip(names, split(sums), split(stays))
            },
            'images': dict(zip(names, map(int, images))),
            'unreached': dict(zip(names, map(int, unreached))),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`.

        Raises:
            ValueError: If its groups differ from the present ones.
        """
        # earlier versions had a single criterion
        saved = state.get('sums', state.get('fisher', {}))
        for group in self.units.groups:
            found = saved.get(group.name)
            if found is None or len(found) != group.size:
                raise ValueError(
                    f'the checkpoint holds scores of '
                    f'{"no" if found is None else len(found)} units for the '
                    f'channel group {group.name}, expected {group.size}: '
                    'resume with the config that was interrupted'
                )
        names = [group.name for group in self.units.groups]
        images, unreached = state.get('images'), state.get('unreached')
        if images is None or unreached is None:  # of an earlier version
            images = {name: int(saved[name].any()) for name in names}
            unreached = dict.fromkeys(names, 0)
        counts = [float(c[n]) for c in (images, unreached) for n in names]
        # a runner may have put the checkpoint on another device
        device = self._own.device
        self._shared = torch.cat(
            [
                *(saved[name].double().to(device) for name in names),
                torch.tensor(counts, dtype=torch.float64, device=device),
            ]
        )
        self._own = self.empty()
