"""Kronecker-factored curvature of layers, as in Network Automatic Pruning.

NAP (arXiv 2101.06608) and MLPrune rank all weights or channels of a network
by the growth of the loss that a Kronecker-factored Hessian predicts. They do
not specify the sum of single weights over coupled channels;
docs/methods/nap.md lists the choices of this implementation.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import Member, UnitSpace, layer_of
from .base import AllRanks, Calibrated, Labels
from .curvature import (
    LEAST,
    Curvature,
    Damping,
    Side,
    require_finite,
    sides,
)
from .layer_matrix import LayerMatrix
from .layer_rows import (
    conv_groups,
    is_matrix_layer,
    is_transposed,
)
from .layer_sums import Diagonal, Factor, LayerSums
from .layer_taps import LayerTaps

Aggregate = Literal['sum', 'block']
Formula = Literal['OBS', 'OBD']
# members of groups in a layer, and (size,) whether each unit is not masked
Masked = Sequence[tuple[Member, np.ndarray]]


class KFAC(Calibrated):
    """Predicted growth of the loss without a unit or a single weight.

    The factors A and G of each layer are described in
    :mod:`mmgfp.criteria.curvature`.

    Args:
        aggregate (str): Score of a unit in a layer: that of removing its
            weights together, as a 'block' of the curvature, or the 'sum' of
            the scores of its single weights. Defaults to 'block'.
        batches (int): Batches of the calibration pass in each process.
            Defaults to 64.
        fisher (str, optional): 'true' for labels drawn from the predicted
            distribution, which requires class scores; 'empirical' for those
            of the data set. Defaults to 'true' if there are class scores,
            else to 'empirical'.
        damping (str): 'relative': as 'pi', with a strength s for each layer
            such that the mean of ``s w^2 / 2`` over its weights is
            ``strength`` times the mean score of all weights without damping;
            'pi' or 'identity', see
            :func:`mmgfp.criteria.curvature.sides`. Defaults to 'relative'.
        strength (float, optional): Strength of the damping 'relative' or
            'pi'; 'identity' has none. Defaults to 0.1 for channels and 1 for
            single weights; of 'pi' to 1e-3.
        limit (int): Size of a factor (inputs of a group times the kernel, or
            outputs of a group) above which it keeps diagonal blocks of this
            size only. Memory grows with its square. Defaults to 8192.
        formula (str): 'OBD' for the growth of the loss when the other weights
            of the layer stay as they are (Optimal Brain Damage), for a single
            weight ``w^2 G_ii A_jj / 2``; 'OBS' for the growth when they adapt
            (Optimal Brain Surgeon), ``w^2 / (2 [G^-1]_ii [A^-1]_jj)``.
            Defaults to 'OBD'.

    Attributes:
        compensates (bool): Whether :meth:`compensated` is to be called.
            Defaults to False. It needs whole factors, for which scores of
            single weights by 'OBD' have no use.

    Raises:
        ValueError: If an argument is invalid.
    """

    when = 'calibration'
    compensates = False

    def __init__(
        self,
        aggregate: Aggregate = 'block',
        batches: int = 64,
        fisher: Labels | Literal[True] | None = None,
        damping: Damping = 'relative',
        strength: float | None = None,
        limit: int = 8192,
        formula: Formula = 'OBD',
    ) -> None:
        if fisher is True:  # MMEngine's reading of 'true' on a command line
            fisher = 'true'
        for name, value, kinds in (
            ('aggregate', aggregate, get_args(Aggregate)),
            ('fisher', fisher, (*get_args(Labels), None)),
            ('damping', damping, get_args(Damping)),
            ('formula', formula, get_args(Formula)),
        ):
            if value not in kinds:
                raise ValueError(
                    f'{name}={value!r}: expected one of '
                    f'{", ".join(map(repr, kinds))}'
                )
        for name, number in (('batches', batches), ('limit', limit)):
            if type(number) is not int or number < 1:
                raise ValueError(
                    f'{name}={number!r}: expected a whole number from 1'
                )
        if strength is not None and (
            isinstance(strength, bool)
            or not isinstance(strength, (int, float))
            or not 0 <= strength < float('inf')
        ):
            raise ValueError(
                f'strength={strength!r}: expected a number, at least 0'
            )
        if damping == 'identity' and strength is not None:
            raise ValueError(
                f"strength={strength!r} contradicts damping='identity', which "
                "has none: leave it out, or use the damping 'relative' or 'pi'"
            )
        self.aggregate, self.batches, self.fisher = aggregate, batches, fisher
        self.damping, self.strength, self.limit = damping, strength, limit
        self.formula = formula
        self._taps: LayerTaps | None = None
        self._units = UnitSpace([])
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[str, LayerSums] = {}
        self._batch: dict[str, LayerSums] = {}
        self._counts: Tensor | None = None  # (2,) images and batches
        self._reduced = False

    # -- observing --------------------------------------------------------

    def attach(self, model: nn.Module, units: UnitSpace) -> None:
        """See :meth:`Criterion.attach`.

        Without groups all layers of the network are observed.
        """
        if self._units is not units:
            self._forget()
        self._model, self._units = model, units

    @contextmanager
    def observing(
        self, layers: Collection[str] | None = None
    ) -> Iterator[None]:
        """See :meth:`Calibrated.observing`."""
        groups = self._units.groups
        if groups and layers is None:
            layers = {m.layer for group in groups for m in group.members}
        found = {
            name: module
            for name, module in self._model.named_modules()
            if is_matrix_layer(module)
            and isinstance(module.weight, nn.Parameter)
        }
        if layers is not None:  # and others that share a weight with them
            wanted = {id(found[name].weight) for name in layers & found.keys()}
            found = {
                name: module
                for name, module in found.items()
                if id(module.weight) in wanted
            }
        self._layers = found
        # layers that share one weight are calls of the first of them
        first: dict[tuple, str] = {}
        self._owners = {
            name: first.setdefault(_weight_and_form(module), name)
            for name, module in self._layers.items()
        }
        if self._counts is None:
            device = next(self._model.parameters()).device
            self._counts = torch.zeros(2, dtype=torch.float64, device=device)
            self._sums = {
                name: self._empty(name)
                for name in dict.fromkeys(self._owners.values())
            }
        self.approximate = [
            name for name, sums in self._sums.items() if sums.is_approximate
        ]
        self._taps = LayerTaps(self._model, self._layers, self._see)
        try:
            yield
        finally:
            self._taps.detach()
            self._taps, self._batch = None, {}

    def _empty(self, owner: str) -> LayerSums:
        """Returns empty sums of a layer and those that share its weight."""
        modules = [
            self._layers[name]
            for name, first in self._owners.items()
            if first == owner
        ]
        alone = self.formula == 'OBD' and not self._units.groups
        diagonals = alone and not self.compensates
        return LayerSums.zeros(modules, None if diagonals else self.limit)

    def _see(
        self, name: str, module: nn.Module, source: Tensor, gradient: Tensor
    ) -> None:
        name = self._owners[name]
        if name not in self._batch:
            self._batch[name] = self._empty(name)
        self._batch[name].add(module, source, gradient)

    def end_batch(
        self,
        scale: float | Tensor = 1.0,
        valid: Tensor | None = None,
        on_all_ranks: AllRanks | None = None,
    ) -> Tensor:
        """See :meth:`Criterion.end_batch`."""
        finite = torch.ones((), dtype=torch.bool) if valid is None else valid
        batch, self._batch = self._batch, {}
        for sums in batch.values():
            for tensor in sums.tensors():
                finite = tensor.isfinite().all() & finite.to(tensor.device)
        if on_all_ranks is not None:
            finite = on_all_ranks(finite)
        if self._taps is None:
            return finite
        if self._reduced:
            raise RuntimeError(
                'a batch after the sum over processes: expected a reset '
                'between calibration passes'
            )
        assert self._counts is not None
        images = self._taps.images
        counts = self._counts.new_tensor([images, 1])
        self._counts += torch.where(finite.to(counts.device), counts, 0.0)
        for name, sums in batch.items():
            # gradients are those of a mean over the images
            factor = (images / scale) ** 2
            for block in sums.gradients.blocks:
                block *= factor
            for total, new in zip(self._sums[name].tensors(), sums.tensors()):
                total += torch.where(finite, new, 0.0)
        return finite

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """See :meth:`Criterion.all_reduce`."""
        if self._counts is None or self._reduced:
            return
        reduce(self._counts)
        for sums in self._sums.values():
            for tensor in sums.tensors():
                reduce(tensor)
        self._reduced = True

    def unmeasured(self) -> list[str]:
        """See :meth:`Calibrated.unmeasured`."""
        groups = self._units.groups
        layers = dict.fromkeys(
            layer
            for group in groups
            for layer in group.layers('producer', 'consumer', 'grouped')
        )
        names = layers if groups else self._sums
        return [
            name
            for name in names
            if name not in self._sums or not float(self._sums[name].rows)
        ]

    # -- scores -----------------------------------------------------------

    def scores(self, there: np.ndarray) -> np.ndarray:
        """See :meth:`Criterion.scores`.

        A group has none if the pass ran none of its layers.
        """
        found = np.full(len(self._units), np.nan)
        left, parts = self._units.split(there), self._units.split(found)
        members: dict[str, list[tuple[int, Member]]] = {}
        for g, group in enumerate(self._units.groups):
            for member in group.members:
                if member.tensor == f'{member.layer}.weight':
                    members.setdefault(member.layer, []).append((g, member))
        masked = {
            name: [(member, left[g]) for g, member in mine]
            for name, mine in members.items()
        }
        levels = self._levels(masked)
        for name, mine in members.items():
            layer = self._curvature(name, levels, masked[name])
            for g, member in mine if layer is not None else ():
                assert layer is not None
                index = member.index[left[g]]
                part = parts[g]
                part[left[g]] = np.nan_to_num(part[left[g]]) + self._of_units(
                    *layer, index, member.axis
                )
        return found

    def _of_units(
        self,
        matrix: LayerMatrix,
        curvature: Curvature,
        index: np.ndarray,
        axis: int,
    ) -> np.ndarray:
        """Returns the scores of units in one layer, (m,).

        Args:
            matrix (LayerMatrix): The layer.
            curvature (Curvature): The layer's curvature.
            index (np.ndarray): (m, b) positions of the units.
            axis (int): Axis of the layer's weight with these positions.
        """
        if matrix.is_grouped:
            groups = matrix.groups(index)
            if self.aggregate == 'block':
                scores = curvature.of_groups()
            else:
                scores = curvature.elements().sum((1, 2))
            found = scores[groups.to(scores.device)].sum(1)
        elif self.aggregate == 'block':
            if axis == 0:
                found = curvature.of_row_blocks(matrix.rows(index))
            else:
                found = curvature.of_column_blocks(matrix.columns(index))
        else:
            positions = matrix.columns(index) if axis else matrix.rows(index)
            scores = curvature.elements()[0].sum(0 if axis else 1)
            found = scores[positions.to(scores.device)].sum(1)
        return found.cpu().numpy()

    def elements(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns scores of single weights.

        Args:
            names (Sequence[str]): Weights of convolutions and linear layers.

        Returns:
            dict[str, Tensor]: Scores by name, in the weight's shape.

        Raises:
            ValueError: If the curvature of a weight was not measured.
        """
        self._check_measured(names)
        found, levels = {}, self._levels({})
        for tensor in names:
            matrix, curvature = self._of_weight(tensor, levels)
            found[tensor] = matrix.as_weight(curvature.elements())
        return found

    def compensated(self, pruned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Compensating.compensated`.

        The predicted growth of the loss is minimised for each output alone;
        changes of other outputs are left out.
        """
        self._check_measured(pruned)
        if any(isinstance(s.inputs, Diagonal) for s in self._sums.values()):
            raise RuntimeError(
                'compensation needs whole factors: expected `compensates` to '
                'be true before the calibration pass'
            )
        found, levels = {}, self._levels({})
        for tensor, where in pruned.items():
            matrix, curvature = self._of_weight(tensor, levels)
            new = matrix.compensated(curvature, where)
            found[tensor] = matrix.as_weight(new)
            bias = matrix.as_bias(new)
            if bias is not None:
                found[tensor.removesuffix('weight') + 'bias'] = bias
        return found

    def _of_weight(
        self, tensor: str, levels: Mapping[str, float]
    ) -> tuple[LayerMatrix, Curvature]:
        """Returns the layer of a measured weight."""
        layer = self._curvature(layer_of(tensor), levels, [])
        assert layer is not None
        return layer

    def _check_measured(self, names: Iterable[str]) -> None:
        lost = [
            name
            for name in names
            if not name.endswith('.weight')
            or (sums := self._sums.get(layer_of(name))) is None
            or not float(sums.rows)
        ]
        if lost:
            raise ValueError(
                f'the curvature of {", ".join(lost)} was not measured: '
                'expected weights of convolutions or linear layers that the '
                'loss depends on; name the others in `ignore`'
            )

    def _levels(self, masked: Mapping[str, Masked]) -> dict[str, float]:
        """Returns each layer's strength in the units of its curvature.

        A relative strength is a ratio of scores. The order of scores then
        depends neither on the scale of the loss, nor on that of a layer
        without bias whose next layer has the inverse scale.

        Args:
            masked (Mapping): Members and whether their units are not masked,
                by layer.
        """
        strength = self.strength
        if self.damping != 'relative':
            level = 1e-3 if strength is None else strength
            return dict.fromkeys(self._sums, level)
        if strength is None:  # measured: docs/methods/nap.md
            strength = 0.1 if self._units.groups else 1.0
        squares: dict[str, float] = {}  # mean of each layer
        total, count = 0.0, 0
        for name in self._sums:
            measured = self._factors(name, masked.get(name, ()), whole=False)
            if measured is None:
                continue
            matrix, *diagonals = measured
            require_finite(name, *diagonals)
            inputs, gradients = (
                Side(side.diagonal().of_each()) for side in diagonals
            )
            scores = matrix.curvature(inputs, gradients).elements()
            weights = matrix.without_bias(matrix.weight)
            # weights that were pruned before have neither
            kept = max(int(weights.count_nonzero()), 1)
            squares[name] = float(weights.square().sum()) / kept
            total += float(matrix.without_bias(scores).sum())
            count += kept
        mean = max(total / max(count, 1), LEAST)
        # The product of both dampings adds w^2 / 2 times the level to each
        # score; products of a damping and a factor add to it.
        return {
            name: 2 * strength * mean / max(square, LEAST)
            for name, square in squares.items()
        }

    def _factors(
        self, name: str, masked: Masked, whole: bool = True
    ) -> tuple[LayerMatrix, Factor | Diagonal, Factor | Diagonal] | None:
        """Returns a layer without masked units and its factors A and G.

        Returns None if the layer did not run; the diagonals of the factors if
        not ``whole``.
        """
        sums = self._sums.get(name)
        if sums is None or self._counts is None or not float(sums.rows):
            return None
        matrix = LayerMatrix(self._layers[name], masked)
        inputs, gradients = matrix.kept(
            *(sums.factors() if whole else sums.diagonals())
        )
        images = self._counts[0].item()
        return (
            matrix,
            inputs.scaled(1 / images),
            gradients.scaled(1 / sums.rows),
        )

    def _curvature(
        self, name: str, levels: Mapping[str, float], masked: Masked
    ) -> tuple[LayerMatrix, Curvature] | None:
        """Returns a layer without masked units; None if it did not run."""
        measured = self._factors(name, masked)
        if measured is None:
            return None
        mine = self._layers[name].weight
        for other in self._sums.keys() - {name}:
            if self._layers[other].weight is mine:
                raise ValueError(
                    f'{name} and {other} share one weight in different '
                    'forms: only one of them has a bias, is transposed, or '
                    'has such groups. Their curvature cannot be added up: '
                    'name both in `ignore`, or use another criterion'
                )
        matrix, inputs, gradients = measured
        assert self._counts is not None
        images, batches = self._counts.tolist()
        damped = sides(
            *(name, inputs, gradients),
            float(self._sums[name].rows) / images,
            batches,
            'identity' if self.damping == 'identity' else 'pi',
            levels[name],
            inverted=self.formula == 'OBS',
        )
        return matrix, matrix.curvature(*damped)

    def reset(self, compared: np.ndarray) -> None:
        """See :meth:`Criterion.reset`; all sums are discarded."""
        self._forget()

    def cut(self, units: UnitSpace, stays: np.ndarray) -> None:
        """See :meth:`Criterion.cut`."""
        self._units = units
        self._forget()


def _weight_and_form(module: nn.Module) -> tuple:
    """Returns what layers have in common whose factors add up."""
    biased = module.bias is not None
    form = biased, is_transposed(module), conv_groups(module)
    return id(module.weight), *form
