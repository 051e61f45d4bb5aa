"""What checkpoints keep of pruned weights, so that training resumes exactly.

The weights themselves are zeros. Beside the structure, under
:data:`SPARSITY_KEY`, is which zeros are not pruned - mostly none - and how far
pruning is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from ..libraries.models import unwrap
from ..slimming.element_masks import Density, WeightMasks, pruned_weights
from ..utils.plain import shown
from ..version import __version__
from .runner import averaged_models, optimizers

SPARSITY_KEY = 'mmgfp_sparsity'
SPARSITY_VERSION = 1

_ZEROS = 'zeros_that_stay'
_ADVICE = (
    'Resume from another checkpoint, or train on from this one with load_from '
    'and without resuming.'
)


def sparse_state(masks: WeightMasks, **more: Any) -> dict[str, Any]:
    """What a checkpoint keeps, in plain types and tensors.

    Args:
        masks (WeightMasks): Of the network.
        **more: How far pruning is.
    """
    return {
        'version': SPARSITY_VERSION,
        'mmgfp': __version__,
        _ZEROS: masks.zeros_that_stay(),
        **more,
    }


def read_sparse_state(
    state: Any, parts: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """Check what :func:`sparse_state` gave.

    Args:
        state (Any): As loaded.
        parts (Mapping[str, type], optional): What there has to be besides
            the zeros.

    Raises:
        ValueError: If it is of another version, or incomplete.
    """
    if not isinstance(state, dict):
        raise ValueError(
            f'the checkpoint holds {shown(state)} under {SPARSITY_KEY!r}, '
            f'expected the state of pruned weights. {_ADVICE}'
        )
    version = state.get('version')
    if version != SPARSITY_VERSION or type(version) is not int:
        raise ValueError(
            f'the checkpoint holds the state of pruned weights in version '
            f'{shown(version)}; this mmgfp {__version__} resumes version '
            f'{SPARSITY_VERSION}. It was written by mmgfp '
            f'{shown(state.get("mmgfp"))}: install that release. {_ADVICE}'
        )
    for part, kind in {_ZEROS: dict, **(parts or {})}.items():
        if type(state.get(part)) is not kind:
            raise ValueError(
                f'the checkpoint holds a state of pruned weights of which '
                f'{part} is missing or not known. {_ADVICE}'
            )
    if not all(isinstance(at, Tensor) for at in state[_ZEROS].values()):
        raise ValueError(
            f'the checkpoint holds a state of pruned weights of which '
            f'{_ZEROS} is not known. {_ADVICE}'
        )
    return state


def put_masks(
    runner: Runner, masks: WeightMasks, pruned: Mapping[str, Tensor]
) -> None:
    """Prune weights of a runner's network, averages and optimisers."""
    copies = [average.module for average in averaged_models(runner)]
    masks.put(pruned, optimizers(runner), copies)


def put_parameters(runner: Runner, values: Mapping[str, Tensor]) -> None:
    """Change parameters of a runner's network and, as much, its averages.

    Args:
        runner (Runner): The runner.
        values (Mapping[str, Tensor]): By name, what parameters become.
    """
    model = unwrap(runner.model)
    copies = [unwrap(average.module) for average in averaged_models(runner)]
    with torch.no_grad():
        for name, value in values.items():
            parameter = model.get_parameter(name)
            change = value.to(parameter) - parameter
            for network in (model, *copies):
                network.get_parameter(name).add_(change)


def pruned_before(
    model: nn.Module,
    density: Mapping[str, Density],
    state: Mapping[str, Any],
    warn: Callable[[str], object],
) -> dict[str, Tensor]:
    """Which weights of a loaded network are pruned.

    Args:
        model (nn.Module): With the weights of a checkpoint.
        density (Mapping[str, Density]): As recorded in its structure.
        state (Mapping[str, Any]): From :func:`read_sparse_state`; empty if
            training does not resume.
        warn (Callable): Warns of zeros that were not pruned before.

    Raises:
        ValueError: See :func:`~mmgfp.slimming.element_masks.pruned_weights`.
    """
    pruned = pruned_weights(model, density, state.get(_ZEROS))
    more = {
        name: lost - (density[name].weights - density[name].left)
        for name, gone in pruned.items()
        if (lost := int(gone.sum()))
    }
    if any(more.values()):
        warn(
            f'{sum(more.values())} weights are zero that were not pruned '
            f'({_some([name for name, n in more.items() if n])}); they stay '
            'zero like the others'
        )
    return pruned


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return f'{", ".join(names[:most])}{rest}'
