"""Base class of criteria that observe mask gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import UnitSpace
from .base import AllRanks, Criterion
from .sums import UnitSums
from .taps import Taps


class MaskGradients(Criterion):
    """Criteria that sum a function of each batch's mask gradients.

    Args:
        decay (float): Factor of the sums after a pruning step. Defaults to 0,
            as in the Group Fisher paper.

    Raises:
        ValueError: If ``decay`` is not in [0, 1).
    """

    when = 'training'

    def __init__(self, decay: float = 0.0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f'decay={decay!r}: expected the factor of the scores after '
                'a pruning step, at least 0 and less than 1'
            )
        self.decay = decay
        self._taps: Taps | None = None
        self._model: nn.Module
        self._sums = UnitSums(UnitSpace([]), torch.device('cpu'))

    @abstractmethod
    def of_batch(self, gradients: Tensor) -> Tensor:
        """Returns the summand of a batch.

        Args:
            gradients (Tensor): (N, U) mask gradients, each of the loss of its
                image alone; loss scales are divided out.

        Returns:
            Tensor: Summand of each unit, (U,).
        """

    def attach(self, model: nn.Module, units: UnitSpace) -> None:
        """See :meth:`Criterion.attach`."""
        if self._sums.units is not units:
            self.detach()
            self._model = model
            self._sums = UnitSums(units, next(model.parameters()).device)
        if self._taps is None:
            self._taps = Taps(model, units)

    def detach(self) -> None:
        """See :meth:`Criterion.detach`."""
        if self._taps is not None:
            self._taps.detach()
            self._taps = None

    def end_batch(
        self,
        scale: float | Tensor = 1.0,
        valid: Tensor | None = None,
        on_all_ranks: AllRanks | None = None,
    ) -> Tensor:
        """See :meth:`Criterion.end_batch`.

        The loss is assumed to be a mean over the images. Gradients are
        multiplied by their number, so that every image has the same weight in
        batches of unequal size.
        """
        batch = self._sums.empty()
        finite = torch.ones((), dtype=torch.bool, device=batch.device)
        if valid is not None:
            finite = finite & valid
        if self._taps is not None:
            finite = finite & self._add_batch(self._taps, scale, batch)
        if on_all_ranks is not None:
            finite = on_all_ranks(finite)
        self._sums.add(torch.where(finite, batch, 0.0))
        return finite

    def _add_batch(
        self, taps: Taps, scale: float | Tensor, batch: Tensor
    ) -> Tensor:
        """Add the mask gradients; returns whether all are finite, ()."""
        scores, images, unreached = self._sums.split(batch)
        for group in taps.take_unreached():
            unreached[group] += 1
        gradients = taps.take()
        if gradients is None:  # other processes may have gradients
            return torch.ones((), dtype=torch.bool, device=batch.device)
        if isinstance(scale, Tensor):
            scale = scale.double().to(gradients.device)
        gradients = gradients.double() * (len(gradients) / scale)
        scores += self.of_batch(gradients)
        images += taps.images_per_group(gradients)
        return gradients.isfinite().all() & scores.isfinite().all()

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """See :meth:`Criterion.all_reduce`."""
        self._sums.all_reduce(reduce)

    def scores(self, there: np.ndarray) -> np.ndarray:
        """See :meth:`Criterion.scores`.

        A group has none if, since the last step, no consumer had a gradient,
        all gradients were zero, or no gradient reached the input of one
        consumer, for example because a hook froze the layers before it.
        """
        scores, images, unreached = self._sums.split(self._sums.total())
        lacks = ((images == 0) | (unreached > 0)).cpu().numpy()
        found = scores.cpu().numpy().copy()
        found[lacks[self._sums.units.group_of]] = np.nan
        return found

    def reset(self, compared: np.ndarray) -> None:
        """See :meth:`Criterion.reset`."""
        factors = np.where(compared, self.decay, 1.0)
        self._sums.reset(factors[self._sums.units.group_of])

    def cut(self, units: UnitSpace, stays: np.ndarray) -> None:
        """See :meth:`Criterion.cut`."""
        self._sums.cut(units, stays)
        if self._taps is not None:
            self.detach()
            self.attach(self._model, units)

    def state_dict(self, stays: np.ndarray) -> dict[str, Any]:
        """See :meth:`UnitSums.state_dict`."""
        return self._sums.state_dict(stays)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Criterion.load_state_dict`."""
        self._sums.load_state_dict(state)
