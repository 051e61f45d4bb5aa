"""Floors of each group, and which groups are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .prunable import Prunable
from .quotas import Quotas, group_kinds


@dataclass(frozen=True)
class Floor:
    """Smallest width of each group.

    Attributes:
        min_channels (int): Number of channels. Defaults to 1.
        min_ratio (float): Ratio of the group's original units. Defaults to 0.
        round_to (int | str): Every group keeps a multiple of this number of
            channels; 'auto' for 8, and in groups of less than 32 channels
            the largest power of two of which there are at least four.
            Defaults to 1.
    """

    min_channels: int = 1
    min_ratio: float = 0.0
    round_to: int | Literal['auto'] = 1

    def __str__(self) -> str:
        return ', '.join(f'{k}={v}' for k, v in vars(self).items())

    def units(self, original: int, width: int) -> int:
        """Returns the number of units that a group keeps.

        Args:
            original (int): Units of the group in the unpruned network.
            width (int): Channels per unit.
        """
        least = max(
            1,
            math.ceil(self.min_channels / width),
            # 0.55 * 100 is a little more than 55
            math.ceil(round(self.min_ratio * original, 6)),
        )
        step = self.step(original, width)
        return math.ceil(least / step) * step

    def step(self, original: int, width: int) -> int:
        """Returns the number of units cut together; see :meth:`units`."""
        if self.round_to == 'auto':
            quarter = max(1, original * width // 4)
            multiple = min(8, 1 << (quarter.bit_length() - 1))
        else:
            multiple = self.round_to
        return multiple // math.gcd(multiple, width)


class Limits:
    """Limits of each group of a network.

    Args:
        net (Prunable): The network.
        floor (Floor): Floors of all groups.
        isomorphic (bool): See :class:`mmgfp.search.pruner.Pruner`.
        ratios (Mapping[str, float]): See :class:`mmgfp.search.pruner.Pruner`.

    Attributes:
        quotas (Quotas | None): Groups that are compared with each other; None
            for all.
    """

    def __init__(
        self,
        net: Prunable,
        floor: Floor,
        isomorphic: bool,
        ratios: Mapping[str, float],
    ) -> None:
        self._net = net
        self.floor, self.ratios = floor, dict(ratios)
        self.quotas: Quotas | None = None
        if isomorphic or ratios:
            groups = net.units.groups
            kinds = group_kinds(net.model, groups) if isomorphic else {}
            self.quotas = Quotas(
                [kinds.get(group.name, 0) for group in groups],
                net.originals,
                np.array([ratios.get(g.name, np.nan) for g in groups]),
            )

    def least(self) -> list[int]:
        """Returns per group the number of units that must stay."""
        return [
            replace(
                self.floor,
                min_ratio=self.ratios.get(group.name, self.floor.min_ratio),
            ).units(original, group.width)
            for group, original in zip(
                self._net.units.groups, self._net.originals
            )
        ]

    def steps(self) -> list[int]:
        """Returns per group the number of units that are cut together."""
        return [
            self.floor.step(original, group.width)
            for group, original in zip(
                self._net.units.groups, self._net.originals
            )
        ]

    def reachable(self, without: Sequence[str] = ()) -> dict[str, float]:
        """Returns the least remaining ratio of every metric.

        Args:
            without (Sequence[str]): Groups that are not pruned.
        """
        units = [
            0 if group.name in without else max(0, (~masked).sum() - least)
            for group, masked, least in zip(
                self._net.units.groups, self._net.masked, self.least()
            )
        ]
        return self._net.ratios(np.array(units))
