"""Interfaces of criteria, used by searches and runners.

A criterion scores units; units with the lowest score are pruned first. It is
independent of cost and training loop. Most criteria derive from
:class:`mmgfp.criteria.mask_gradients.MaskGradients` or
:class:`mmgfp.criteria.weights.Weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
        when (str): Source of the scores: 'training' for the batches that the
            network trains on; 'weights' for its weights at any time;
            'calibration' for batches without an optimiser step
            (:class:`Calibrated`).
    """

    when: ClassVar[Literal['training', 'weights', 'calibration']]

    def attach(self, model: nn.Module, units: UnitSpace) -> None:
        """Start observing a network.

        Earlier sums stay if ``units`` is the same object as before.
        """

    def detach(self) -> None:
        """Stop observing; scores stay."""

    def end_batch(
        self,
        scale: float | Tensor = 1.0,
        valid: Tensor | None = None,
        on_all_ranks: AllRanks | None = None,
    ) -> Tensor:
        """Add the batch of the last forward and backward pass.

        Args:
            scale (float | Tensor): Factor of the mean loss of the images
                (mixed precision, gradient accumulation); one per unit if it
                has shape (U,). Defaults to 1.
            valid (Tensor, optional): Whether the batch counts, shape ().
                Defaults to true.
            on_all_ranks (Callable, optional): Combines the flags of all
                processes into whether the batch counts in all of them. All
                processes must call it after every batch.

        Returns:
            Tensor: Whether the batch counts and its scores are finite, shape
            (). If not, the batch is left out. The host does not wait for it.
        """

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """Sum over processes the batches added since the last call.

        All processes must call it before :meth:`scores` or
        :meth:`state_dict`.

        Args:
            reduce (Callable): Sums a tensor over processes, in place.
        """

    def scores(self, there: np.ndarray) -> np.ndarray:
        """Returns the score of every unit, (U,); NaN for groups without.

        Args:
            there (np.ndarray): (U,) whether a unit is not masked. Scores of
                masked units are undefined.
        """

    def reset(self, compared: np.ndarray) -> None:
        """Discard the sums after a pruning step.

        Args:
            compared (np.ndarray): (G,) whether the step compared a group;
                other groups keep their sums.
        """

    def cut(self, units: UnitSpace, stays: np.ndarray) -> None:
        """Update the criterion after units were cut out of the network.

        Args:
            units (UnitSpace): The units after the cut.
            stays (np.ndarray): (U,) whether each earlier unit was kept.
        """

    def state_dict(self, stays: np.ndarray) -> dict[str, Any]:
        """Returns the state of kept units for a checkpoint.

        Args:
            stays (np.ndarray): (U,) whether a unit is kept.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`.

        Raises:
            ValueError: If its groups differ from the attached ones.
        """


class ElementCriterion(Criterion, Protocol):
    """Criteria that score single weights, too.

    A criterion attached without groups scores weights only.
    """

    def elements(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns scores of single weights; the lowest is pruned first.

        Scores of pruned weights are undefined.

        Args:
            names (Sequence[str]): Names of parameters of the network.

        Returns:
            dict[str, Tensor]: Scores by name, in the parameter's shape.

        Raises:
            ValueError: If a parameter has no scores.
        """


class Compensating(ElementCriterion, Protocol):
    """Criteria that can change kept weights to compensate for pruned ones.

    Attributes:
        compensates (bool): Whether :meth:`compensated` is to be called, set
            before the criterion observes the network.
    """

    compensates: bool

    def compensated(self, pruned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns new weights and biases after some weights are pruned.

        Args:
            pruned (Mapping[str, Tensor]): By name of a weight, booleans of its
                shape: whether each element is pruned.

        Returns:
            dict[str, Tensor]: New values by name, in the parameter's shape.

        Raises:
            ValueError: If a layer was not measured.
        """


class Calibrated(Criterion, Protocol):
    """Criteria that need a calibration pass before each pruning step.

    The pass runs the network without dropout, batch statistics and optimiser
    steps.

    Attributes:
        batches (int): Batches of the pass in each process.
        fisher (str, optional): Labels of the observed loss: 'true' for labels
            drawn from the predicted distribution, 'empirical' for those of
            the data set; None for 'true' if the network predicts class
            scores, else 'empirical'.
        approximate (Sequence[str]): Names of layers that are measured
            approximately, to save memory. Defaults to ().
    """

    batches: int
    fisher: Labels | None
    approximate: Sequence[str] = ()

    def observing(
        self, layers: Collection[str] | None = None
    ) -> AbstractContextManager[None]:
        """Returns a context; the network is observed only inside.

        Args:
            layers (Collection[str], optional): Layers to observe. Defaults to
                those of the units, or to all if there are none.
        """

    def state_dict(self, stays: np.ndarray) -> dict[str, Any]:
        """See :meth:`Criterion.state_dict`.

        The state is empty, because no checkpoint is saved during a pass.
        """
        return {}

    def unmeasured(self) -> list[str]:
        """Returns the names of layers without measurements in the pass."""
