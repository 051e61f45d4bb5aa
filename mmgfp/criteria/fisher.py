"""Fisher information of channels (Group Fisher Pruning, ICML 2021)."""

from __future__ import annotations

from torch import Tensor

from .mask_gradients import MaskGradients


class Fisher(MaskGradients):
    """``sum_n (dL_n / dm)^2``, in squared units of loss (Equation 4)."""

    def of_batch(self, gradients: Tensor) -> Tensor:
        """See :meth:`MaskGradients.of_batch`."""
        return gradients.square().sum(0)
