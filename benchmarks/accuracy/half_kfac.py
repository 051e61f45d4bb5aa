"""A criterion that separates two effects of K-FAC's scores of weights.

Scores decide how many weights each layer keeps, and which. Here K-FAC decides
one, and magnitude the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from mmgfp.criteria.kfac import KFAC
from mmgfp.registry import CRITERIA

Part = Literal['ratios', 'order']


@CRITERIA.register_module()
class HalfKFAC(KFAC):
    """Scores of single weights, in part by K-FAC and in part by magnitude.

    Args:
        part (str): What K-FAC decides: the 'ratios' of the layers, or the
            'order' within each layer.
        **options: Of :class:`mmgfp.criteria.kfac.KFAC`.
    """

    def __init__(self, part: Part, **options: Any) -> None:
        super().__init__(**options)
        if part not in get_args(Part):
            raise ValueError(f"part={part!r}: expected 'ratios' or 'order'")
        self.part = part

    def elements(self, names: Sequence[str]) -> dict[str, Tensor]:
        """See :meth:`mmgfp.criteria.kfac.KFAC.elements`."""
        found = super().elements(names)
        for name, scores in found.items():
            magnitude = self._model.get_parameter(name).detach().abs()
            magnitude = magnitude.to(scores.dtype)
            if self.part == 'ratios':
                found[name] = rearranged(scores, magnitude)
            else:
                found[name] = rearranged(magnitude, scores)
        return found


def rearranged(values: Tensor, order: Tensor) -> Tensor:
    """Returns the same values in the order of another tensor.

    The lowest value is where ``order`` is lowest, and so on.
    """
    new = values.new_empty(values.numel())
    new[order.flatten().argsort(stable=True)] = values.flatten().sort().values
    return new.view_as(values)
