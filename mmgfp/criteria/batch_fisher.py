"""Squared gradients of batches, as in cheaper variants of Fisher pruning."""

from __future__ import annotations

from torch import Tensor

from .mask_gradients import MaskGradients


class BatchFisher(MaskGradients):
    """``sum_b (sum_n dL_n / dm)^2``: squares the gradient of each batch.

    The result depends on the batch size.
    """

    def of_batch(self, gradients: Tensor) -> Tensor:
        """See :meth:`MaskGradients.of_batch`."""
        return gradients.sum(0).square()
