"""What criteria are: the interfaces that searches and runners use.

A criterion scores units; the least goes first. It knows neither cost nor
training loop. Most of them derive from
:class:`mmgfp.criteria.mask_gradients.MaskGradients` or
:class:`mmgfp.criteria.weights.Weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from ..groups import UnitSpace

AllRanks = Callable[[Tensor], Tensor]
Labels = Literal['true', 'empirical']


class Criterion(Protocol):
    """Scores of the U units of G groups.

    Attributes:
        when (str): 'training' if scores come from the batches that a network
            trains on; 'weights' if they come from its weights at any time;
            'calibration' if they come from batches that it does not learn
            from (:class:`Calibrated`).
    """

    when: ClassVar[Literal['training', 'weights', 'calibration']]

    def attach(self, model: nn.Module, units: UnitSpace) -> None:
        """Start observing a network.

        Earlier sums stay if they are of the same :class:`UnitSpace` object.
        """

    def detach(self) -> None:
        """Stop observing; scores stay."""

    def end_batch(
        self,
        scale: float | Tensor = 1.0,
        valid: Tensor | None = None,
        on_all_ranks: AllRanks | None = None,
    ) -> Tensor:
        """Count the batch that has gone through forward and backward.

        Args:
            scale (float | Tensor): What the mean of the images' losses was
                multiplied with (mixed precision, gradient accumulation); of
                each unit if it has shape (U,). Defaults to 1.
            valid (Tensor, optional): Whether the batch counts, shape (). By
                default it does.
            on_all_ranks (Callable, optional): Turns whether the batch counts
                in this process into whether it does in all of them, which
                have to call it after every batch.

        Returns:
            Tensor: Whether it counts and its scores are finite, shape (). If
            not, nothing of it is kept. The host does not wait for it.
        """

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """Sum over processes what each has summed since the last call.

        All processes have to call it before they ask for scores or state.

        Args:
            reduce (Callable): Sums a tensor over processes, in place.
        """

    def scores(self, there: np.ndarray) -> np.ndarray:
        """Returns the score of every unit, (U,); NaN for groups without.

        Args:
            there (np.ndarray): (U,) whether a unit is not masked. Scores of
                masked units mean nothing.
        """

    def reset(self, compared: np.ndarray) -> None:
        """Discard the sums after a pruning step.

        Args:
            compared (np.ndarray): (G,) whether the step compared a group;
                others keep what was summed.
        """

    def cut(self, units: UnitSpace, stays: np.ndarray) -> None:
        """Follow a network from which units were cut out.

        Args:
            units (UnitSpace): Those that are left.
            stays (np.ndarray): (U,) whether each of those before is left.
        """

    def state_dict(self, stays: np.ndarray) -> dict[str, Any]:
        """Returns what resuming needs, of the units that stay, (U,)."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: If it is of other groups.
        """


class ElementCriterion(Criterion, Protocol):
    """Criteria that score single weights, too.

    Attached with no groups, they are to score weights alone.
    """

    def elements(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns scores of the elements of weights; the least goes first.

        Scores of weights that are pruned mean nothing.

        Args:
            names (Sequence[str]): Of parameters of the network.

        Returns:
            dict[str, Tensor]: By name, of the parameter's shape.

        Raises:
            ValueError: If there are no scores of one of them.
        """


class Compensating(ElementCriterion, Protocol):
    """Criteria that also say how weights that stay replace those that go."""

    def compensated(self, gone: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns what weights and biases become when some weights go.

        Args:
            gone (Mapping[str, Tensor]): By name of a weight, which of its
                elements go or have gone, of its shape.

        Returns:
            dict[str, Tensor]: By name, of the parameter's shape.

        Raises:
            ValueError: If a layer was not measured.
        """


class Calibrated(Criterion, Protocol):
    """Criteria that need a calibration pass before each pruning step.

    The network is in evaluation mode in it, and its weights stay.

    Attributes:
        batches (int): Of the pass, in each process.
        fisher (str, optional): Whose gradients are observed: 'true' for
            labels drawn from what the network predicts, 'empirical' for those
            of the data set; None for 'true' where it predicts class scores.
    """

    batches: int
    fisher: Labels | None

    def observing(self) -> AbstractContextManager[None]:
        """Returns a context; the network is observed only inside."""

    def unmeasured(self) -> list[str]:
        """Returns the names of layers to measure that the pass left out."""
