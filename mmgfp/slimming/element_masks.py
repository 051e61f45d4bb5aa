"""Masks of single weights: pruned weights are zero and stay zero.

The gradient, momentum and averaged copies of a pruned weight are zero, too.
Pruned weights are set to zero after every optimiser step, so that optimiser
state of another shape cannot change them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from ..utils.trees import tree_leaves
from .surgery import named_tensors


class Density(NamedTuple):
    """Number of weights of a parameter, and number of unpruned weights."""

    weights: int
    left: int


class WeightMasks:
    """Keeps pruned weights of a network at zero while it trains.

    Args:
        model (nn.Module): The network.

    Attributes:
        pruned (dict[str, Tensor]): By name of a parameter, booleans of its
            shape: whether each element is pruned.
    """

    def __init__(self, model: nn.Module) -> None:
        self.pruned: dict[str, Tensor] = {}
        self._model = model
        self._handles: list[Any] = []

    def put(
        self,
        pruned: Mapping[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
    ) -> None:
        """Replace the masks; weights pruned before keep the value zero.

        Args:
            pruned (Mapping[str, Tensor]): By name of a parameter, booleans of
                its shape.
            optimizers (Sequence[Optimizer]): Optimisers that train the
                network; their state of pruned weights is set to zero.
            copies (Sequence[nn.Module]): Copies of the network (EMA).

        Raises:
            ValueError: If there is no such parameter, or it has another
                shape. Nothing is pruned then.
        """
        _check_fit(self._model, pruned)
        self.lift()
        for model in (self._model, *copies):
            tensors = named_tensors(model)
            for name, gone in pruned.items():
                _zero(tensors[name].data, gone)
        tensors = named_tensors(self._model)
        for name, gone in pruned.items():
            parameter = tensors[name]
            gone = gone.to(parameter.device)
            self.pruned[name] = gone
            for optimizer in optimizers:
                for state in _element_state(optimizer, parameter):
                    _zero(state, gone)
            if parameter.grad is not None:
                _zero(parameter.grad, gone)
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(_Fill(gone)))
        masked = {
            id(tensors[name]): gone for name, gone in self.pruned.items()
        }
        self._handles += [
            optimizer.register_step_post_hook(_Restore(optimizer, masked))
            for optimizer in optimizers
        ]

    def lift(self) -> None:
        """Remove all hooks; the zeros stay until the next optimiser step."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.pruned.clear()

    def density(self) -> dict[str, Density]:
        """Returns the density of each parameter with pruned weights."""
        return {
            name: Density(gone.numel(), gone.numel() - lost)
            for name, gone in self.pruned.items()
            if (lost := int(gone.sum()))
        }

    def zeros_that_stay(self) -> dict[str, Tensor]:
        """Returns the positions of weights that are zero, but not pruned.

        :func:`pruned_weights` needs them to find the pruned weights. Usually
        there are none.
        """
        tensors = named_tensors(self._model)
        found = {}
        for name, gone in self.pruned.items():
            zeros = (tensors[name].data == 0) & ~gone
            if zeros.any():
                found[name] = zeros.flatten().nonzero().flatten().cpu()
        return found


def pruned_weights(
    model: nn.Module,
    density: Mapping[str, Density],
    zeros_that_stay: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Returns which weights of a network are pruned, from its zeros.

    Args:
        model (nn.Module): The network with the weights of a checkpoint.
        density (Mapping[str, Density]): Recorded density of the parameters
            with pruned weights.
        zeros_that_stay (Mapping[str, Tensor], optional): Positions of zeros
            that are not pruned, see :meth:`WeightMasks.zeros_that_stay`. By
            default every zero is pruned.

    Returns:
        dict[str, Tensor]: See :attr:`WeightMasks.pruned`.

    Raises:
        ValueError: If a parameter is missing, has another size, or has
            fewer zeros than pruned weights.
    """
    tensors = named_tensors(model)
    pruned = {}
    for name, known in density.items():
        if name not in tensors or tensors[name].numel() != known.weights:
            raise _misfit(
                model, name, f'of {known.weights} weights', tensors.get(name)
            )
        gone = tensors[name].data == 0
        stays = (zeros_that_stay or {}).get(name)
        if stays is not None:
            gone.view(-1)[stays.to(gone.device)] = False
        lost, expected = int(gone.sum()), known.weights - known.left
        if lost < expected:
            raise ValueError(
                f'{name} has {lost} zeros, expected {expected}, the number of '
                f'pruned weights among its {known.weights}. The weights are '
                'not those that the structure was saved with, or were trained '
                'without it. Load the checkpoint beside the structure, or one '
                'that was trained from it.'
            )
        pruned[name] = gone
    return pruned


def _check_fit(model: nn.Module, pruned: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, gone in pruned.items():
        found = parameters.get(name)
        if found is None or found.shape != gone.shape:
            expected = f'of shape {tuple(gone.shape)}'
            raise _misfit(model, name, expected, found)


def _misfit(
    model: nn.Module, name: str, expected: str, found: Tensor | None
) -> ValueError:
    shape = 'none' if found is None else f'one of shape {tuple(found.shape)}'
    return ValueError(
        f'the mask of single weights does not fit {type(model).__name__}: '
        f'expected a parameter {name} {expected}, got {shape}. Use the config '
        'and the structure that the weights were pruned with.'
    )


def _element_state(
    optimizer: torch.optim.Optimizer, parameter: Tensor
) -> Iterator[Tensor]:
    """Returns the optimiser state in the shape of its parameter.

    State of another shape needs no change, because zeros are restored after
    every step.
    """
    for part in tree_leaves(optimizer.state.get(parameter, {})):
        if isinstance(part, Tensor) and part.shape == parameter.shape:
            yield part


@unserializable_hook
class _Fill:
    """Hook of a parameter that sets pruned elements of its gradient to zero.

    Copies of the parameter, also pickled ones, have no such hook.
    """

    def __init__(self, gone: Tensor) -> None:
        self._gone = gone

    def __call__(self, grad: Tensor) -> Tensor:
        return grad.masked_fill(self._gone, 0)


class _Restore:
    """Hook of an optimiser that sets pruned weights to zero after a step."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, masked: Mapping[int, Tensor]
    ) -> None:
        self._weights = [
            (parameter, masked[id(parameter)])
            for group in optimizer.param_groups
            for parameter in group['params']
            if id(parameter) in masked
        ]

    def __call__(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        for parameter, gone in self._weights:
            _zero(parameter, gone)


@torch.no_grad()
def _zero(tensor: Tensor, gone: Tensor) -> None:
    tensor.masked_fill_(gone.to(tensor.device), 0)
