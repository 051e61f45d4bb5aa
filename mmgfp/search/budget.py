"""The budget of a search, and the widths that it may choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..cost.model import Metric
from .limits import Floor
from .prunable import Prunable


@dataclass(frozen=True)
class Budget:
    """Remaining ratio of one metric, with the floors of all groups.

    Attributes:
        metric (str): 'flops', 'acts', 'params' or 'latency'.
        ratio (float): Largest remaining ratio of the unpruned network's cost.
        floor (Floor): Floors of all groups. Defaults to one channel.
        fixed (frozenset[str]): Names of groups that keep their width.
    """

    metric: Metric
    ratio: float
    floor: Floor = field(default_factory=Floor)
    fixed: frozenset[str] = frozenset()

    def choices(
        self, net: Prunable, most: int | None = None
    ) -> list[np.ndarray]:
        """Returns the allowed widths of each group, ascending.

        A width is a number of units. The last one is the current width.

        Args:
            net (Prunable): The network, without masked units.
            most (int, optional): Largest number of widths of a group, equally
                spaced and rounded up to :attr:`Floor.round_to`. Defaults to
                all widths.

        Returns:
            list[np.ndarray]: Per group (k,) widths.
        """
        found = []
        for group, original in zip(net.units.groups, net.originals):
            size = group.size
            least = min(self.floor.units(original, group.width), size)
            step = self.floor.step(original, group.width)
            if group.name in self.fixed:
                widths = np.array([size])
            else:
                widths = np.append(np.arange(least, size, step), size)
                if most is not None:
                    ratios = np.arange(1, most + 1) / most
                    wanted = np.ceil(np.round(ratios * size, 6))
                    at = np.searchsorted(widths, wanted)
                    widths = widths[np.unique(at.clip(0, len(widths) - 1))]
            found.append(widths)
        return found

    def cost(self, net: Prunable, widths: Sequence[int] | np.ndarray) -> float:
        """Returns the remaining ratio of the metric with these widths."""
        cut = net.units.sizes - np.asarray(widths)
        return net.ratios(cut)[self.metric]

    def meets(self, net: Prunable, widths: Sequence[int] | np.ndarray) -> bool:
        """Returns whether networks with these widths are within the budget."""
        # rounding makes sums of equal costs differ
        return self.cost(net, widths) <= self.ratio * (1 + 1e-9)

    def check(self, net: Prunable) -> None:
        """Raise if the budget cannot be met, or is met already.

        Raises:
            ValueError: With the smallest ratio that can be reached.
        """
        choices = self.choices(net)
        least = self.cost(net, [widths[0] for widths in choices])
        if least > self.ratio:
            kept = f', and {len(self.fixed)} groups keep their width'
            raise ValueError(
                f'target={{{self.metric!r}: {self.ratio}}} cannot be reached: '
                f'with {self.floor} at least {least:.3f} of {self.metric} '
                f'remains{kept if self.fixed else ""}. Raise the target or '
                'lower the floors.'
            )
        now = self.cost(net, net.units.sizes)
        if now <= self.ratio:
            raise ValueError(
                f'the target is already met: {self.metric} is at {now:.3f} of '
                f'the original, target={{{self.metric!r}: {self.ratio}}}. '
                'Load another checkpoint or choose a smaller target.'
            )
