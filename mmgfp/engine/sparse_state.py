"""State of pruned weights in checkpoints, for an exact resume.

The pruned weights themselves are zeros. Beside the structure, under
:data:`SPARSITY_KEY`, are the positions of zeros that are not pruned (usually
none) and the progress of pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.runner import Runner
from torch import Tensor, nn

from ..libraries.models import unwrap
from ..search.compensation import change_parameters
from ..slimming.element_masks import Density, WeightMasks, pruned_weights
from ..utils.plain import shown
from ..version import __version__
from .runner import averaged_models, optimizers

SPARSITY_KEY = 'mmgfp_sparsity'
SPARSITY_VERSION = 1

_ZEROS = 'zeros_that_stay'
_ADVICE = (
    'Resume from another checkpoint, or continue from this one with load_from '
    'and without resuming.'
)


def sparse_state(masks: WeightMasks, **more: Any) -> dict[str, Any]:
    """Returns the state for a checkpoint, in plain types and tensors.

    Args:
        masks (WeightMasks): Masks of the network.
        **more: Progress of pruning.
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
    """Check the result of :func:`sparse_state`.

    Args:
        state (Any): The loaded state.
        parts (Mapping[str, type], optional): Required entries besides the
            zeros, with their types.

    Raises:
        ValueError: If it has another version, or is incomplete.
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
                f'the checkpoint holds a state of pruned weights in which '
                f'{part} is missing or unknown. {_ADVICE}'
            )
    if not all(isinstance(at, Tensor) for at in state[_ZEROS].values()):
        raise ValueError(
            f'the checkpoint holds a state of pruned weights in which '
            f'{_ZEROS} is unknown. {_ADVICE}'
        )
    return state


def put_masks(
    runner: Runner, masks: WeightMasks, pruned: Mapping[str, Tensor]
) -> None:
    """Prune weights of a runner's network, averaged copies and optimisers."""
    copies = [average.module for average in averaged_models(runner)]
    masks.put(pruned, optimizers(runner), copies)


def put_parameters(runner: Runner, values: Mapping[str, Tensor]) -> None:
    """Change parameters of a runner's network, and its averages equally.

    Args:
        runner (Runner): The runner.
        values (Mapping[str, Tensor]): New values by name of the parameter.
    """
    copies = [unwrap(average.module) for average in averaged_models(runner)]
    change_parameters([unwrap(runner.model), *copies], values)


def pruned_before(
    model: nn.Module,
    density: Mapping[str, Density],
    state: Mapping[str, Any],
    warn: Callable[[str], object],
) -> dict[str, Tensor]:
    """Returns which weights of a loaded network are pruned.

    Args:
        model (nn.Module): The network with the weights of a checkpoint.
        density (Mapping[str, Density]): Density recorded in its structure.
        state (Mapping[str, Any]): From :func:`read_sparse_state`; empty if
            training does not resume.
        warn (Callable): Called with a warning about zeros that were not
            pruned before.

    Returns:
        dict[str, Tensor]: By name, booleans in the parameter's shape.

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
            f'{sum(more.values())} weights are zero, but were not pruned '
            f'({_some([name for name, n in more.items() if n])}); they stay '
            'zero like pruned weights'
        )
    return pruned


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return f'{", ".join(names[:most])}{rest}'
