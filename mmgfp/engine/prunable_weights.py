"""Selection of the single weights that can be pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..cost.model import Calls
from ..cost.zeros import weights_that_carry_zeros
from ..criteria.layer_rows import (
    conv_groups,
    is_matrix_layer,
    is_transposed,
)
from ..groups import layer_of
from ..search.sparsity import Shapes


def prunable_weights(
    model: nn.Module,
    calls: Calls,
    run: Callable[[nn.Module], Any],
    ignore: Sequence[str],
    shapes: Shapes,
    plain: bool,
    log: Callable[[str], object],
) -> dict[str, int]:
    """Returns the prunable weights of convolutions and linear layers.

    Args:
        model (nn.Module): The network.
        calls (Calls): From :func:`mmgfp.cost.model.record_calls`.
        run (Callable): Runs the network on demo input.
        ignore (Sequence[str]): Patterns of layers, as in :mod:`fnmatch`.
        shapes (Shapes): Blocks or pattern of weights pruned together.
        plain (bool): Whether only weights of plain convolutions and linear
            layers are prunable, whose curvature can be measured.
        log (Callable): Called with the excluded layers and the reason.

    Returns:
        dict[str, int]: Axis of the outputs by name of the parameter.

    Raises:
        ValueError: If a pattern matches no layer, or nothing can be pruned.
    """
    names, computed = weights_that_carry_zeros(model, calls, run)
    _check_patterns(ignore, [layer_of(name) for name in names])
    found = {}
    whole: dict[str, list[str]] = {}
    if computed:
        whole['compute their kernels from their weights'] = computed
    for name in names:
        layer, weight = layer_of(name), model.get_parameter(name)
        module, axis = model.get_submodule(layer), calls.output_axis[name] or 0
        if getattr(module, 'transposed', False) is True:
            axis = 1
        if any(fnmatchcase(layer, pattern) for pattern in ignore):
            continue
        if not weight.requires_grad:
            whole.setdefault('do not train', []).append(layer)
        elif plain and not _is_plain(model, name, layer):
            why = 'are no plain convolutions or linear layers'
            whole.setdefault(why, []).append(layer)
        elif not shapes.fits(_of_a_group(module, weight, axis)):
            why = 'have a number of inputs that the pattern does not divide'
            whole.setdefault(why, []).append(layer)
        else:
            found[name] = axis
    for why, layers in whole.items():
        log(
            f'the weights of {len(layers)} layers are not pruned, because '
            f'they {why}: {", ".join(layers[:5])}'
            f'{", ..." if len(layers) > 5 else ""}'
        )
    if not found:
        raise ValueError(
            'no weights can be pruned: expected convolutions or linear layers '
            'that train and are not excluded by ignore or pattern'
        )
    return found


def _of_a_group(
    module: nn.Module, weight: Tensor, axis: int
) -> tuple[int, int]:
    """Returns the numbers of outputs and inputs of each group of a layer."""
    outputs, inputs = weight.movedim(axis, 0).shape[:2]
    if is_transposed(module):
        return outputs, inputs // conv_groups(module)
    return outputs, inputs


def _check_patterns(patterns: Sequence[str], layers: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            some = ', '.join(layers[:3])
            raise ValueError(
                f'ignore={pattern!r} matches no layer whose weights can be '
                f'pruned; expected names such as {some}, with * and ? as '
                'wildcards'
            )


def _is_plain(model: nn.Module, name: str, layer: str) -> bool:
    """Returns whether a weight is one of a layer that is called."""
    module = model.get_submodule(layer)
    around = model.get_submodule(layer.rpartition('.')[0])
    return (
        is_matrix_layer(module)
        and name == f'{layer}.weight'
        and module.weight is model.get_parameter(name)
        # its output projection is read, not called
        and not isinstance(around, nn.MultiheadAttention)
    )


def outputs_first(tensor: Tensor, axis: int) -> np.ndarray:
    """Returns a tensor in a weight's shape with its outputs as first axis."""
    tensor = tensor.detach().cpu().movedim(axis, 0)
    if tensor.dtype == torch.bfloat16:  # unknown to NumPy
        tensor = tensor.float()
    return tensor.numpy()


def outputs_back(
    arrays: Mapping[str, np.ndarray], axes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Undo :func:`outputs_first`."""
    return {
        name: torch.from_numpy(array).movedim(0, axes[name]).contiguous()
        for name, array in arrays.items()
    }
