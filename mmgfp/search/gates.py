"""Gates: values that multiply what the consumers of units read.

A gate of 0 masks a unit, and gradients reach the values. Searches that learn
widths or choose them by gradients train such values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import Tap, UnitSpace


class Gates:
    """Multiplies the inputs of all consumers while it is attached.

    Args:
        model (nn.Module): The network.
        units (UnitSpace): Of its prunable groups.
        values (Callable): Returns (U,), the gates; is called once for every
            consumer in every forward.
    """

    def __init__(
        self,
        model: nn.Module,
        units: UnitSpace,
        values: Callable[[], Tensor],
    ) -> None:
        self._units = units
        self._values = values
        modules = dict(model.named_modules())
        self._handles = [
            modules[tap.module].register_forward_pre_hook(
                self._gate(tap, index)
            )
            for tap, index in units.consumers()
        ]

    def detach(self) -> None:
        """Let the network be what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _gate(self, tap: Tap, index: np.ndarray) -> Callable:
        numbers = torch.from_numpy(index)

        def gate(module: nn.Module, args: tuple) -> tuple[Any, ...]:
            source = args[0]
            values = self._values()
            if values.shape != (len(self._units),):
                raise ValueError(
                    f'gates of shape {tuple(values.shape)}; expected '
                    f'({len(self._units)},), one for each unit'
                )
            # channels of no group are as they are
            values = torch.cat([values, values.new_ones(1)])
            picked = values[numbers.to(values.device)]
            shape = [1] * source.dim()
            shape[tap.channel_axis] = len(picked)
            return (source * picked.view(shape).to(source.dtype), *args[1:])

        return gate
