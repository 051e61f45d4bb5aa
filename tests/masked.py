"""Networks that multiply by hand with a mask in front of every consumer.

``units`` are the groups' sizes; with ``masks`` set, autograd tells the mask
gradients without any tap.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pruning import sums
from torch import Tensor, nn

from mmgfp import Pruner


class Masked(nn.Module):
    units: ClassVar[dict[str, int]]
    masks: dict[str, Tensor] | None = None

    def m(self, group: str, x: Tensor, width: int = 1) -> Tensor:
        """Mask channels in axis 1."""
        if self.masks is None:
            return x
        mask = self.masks[group].repeat_interleave(width)
        return x * mask.view(1, -1, *[1] * (x.dim() - 2))

    def last(self, group: str, x: Tensor) -> Tensor:
        """Mask channels in the last axis."""
        return x if self.masks is None else x * self.masks[group]

    def new_masks(self) -> dict[str, Tensor]:
        """Fresh masks of ones, in use from now on."""
        self.masks = {
            g: torch.ones(n).double().requires_grad_()
            for g, n in self.units.items()
        }
        return self.masks


def assert_scores(
    pruner: Pruner, expected: dict, tolerance: float = 1e-9
) -> None:
    found = {
        g.name: f
        for g, f in zip(pruner.net.units.groups, sums(pruner), strict=True)
    }
    assert found.keys() == expected.keys()
    for group, scores in expected.items():
        torch.testing.assert_close(
            torch.from_numpy(found[group]),
            scores,
            rtol=tolerance,
            atol=tolerance * float(scores.max()),
            msg=lambda text, group=group: f'{group}: {text}',
        )
