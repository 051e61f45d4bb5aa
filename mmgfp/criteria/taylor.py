"""First-order Taylor expansion of the loss (Molchanov et al., 2017)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .mask_gradients import MaskGradients


class Taylor(MaskGradients):
    """``|sum_n dL_n / dm|``, in units of loss."""

    def of_batch(self, gradients: Tensor) -> Tensor:
        """See :meth:`MaskGradients.of_batch`."""
        return gradients.sum(0)

    def scores(self, there: np.ndarray) -> np.ndarray:
        """See :meth:`Criterion.scores`."""
        return abs(super().scores(there))
