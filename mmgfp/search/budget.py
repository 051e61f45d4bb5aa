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

    def _least(self, net: Prunable, most: int | None = None) -> float:
        """Returns the ratio of the cost with the smallest allowed widths."""
        return self.cost(net, [w[0] for w in self.choices(net, most)])

    def cost(self, net: Prunable, widths: Sequence[int] | np.ndarray) -> float:
        """Returns the remaining ratio of the metric with these widths."""
        cut = net.units.sizes - np.asarray(widths)
        return net.ratios(cut)[self.metric]

    def meets(self, net: Prunable, widths: Sequence[int] | np.ndarray) -> bool:
        """Returns whether networks with these widths are within the budget."""
        # rounding makes sums of equal costs differ
        return self.cost(net, widths) <= self.ratio * (1 + 1e-9)

    def check(self, net: Prunable, most: int | None = None) -> None:
        """Raise if the budget cannot be met, or is met already.

        Args:
            net (Prunable): See :meth:`choices`.
            most (int, optional): See :meth:`choices`.

        Raises:
            ValueError: With the smallest ratio that can be reached.
        """
        least = self._least(net, most)
        if least > self.ratio:
            kept = f', and {len(self.fixed)} groups keep their width'
            some, others = '', ''
            if self._least(net) < least:
                some, others = f' and candidates={most}', ' or more candidates'
            raise ValueError(
                f'target={{{self.metric!r}: {self.ratio}}} cannot be reached: '
                f'with {self.floor}{some} at least {least:.4f} of '
                f'{self.metric} remains{kept if self.fixed else ""}. Raise '
                f'the target{others}, or lower the floors.'
            )
        now = self.cost(net, net.units.sizes)
        if now <= self.ratio:
            raise ValueError(
                f'the target is already met: {self.metric} is at {now:.3f} of '
                f'the original, target={{{self.metric!r}: {self.ratio}}}. '
                'Load another checkpoint or choose a smaller target.'
            )
