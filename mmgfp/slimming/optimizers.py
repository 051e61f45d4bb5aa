"""Checks whether an optimiser's state can be cut, and cuts a saved state.

:mod:`mmgfp.slimming.surgery` cuts the state in use.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.errors import type_and_line
from .surgery import (
    Keep,
    check_own_state,
    cut_tensor,
    cuts_of,
    element_state,
    inner_optimizer,
    named_tensors,
)


def check_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    names: Collection[str],
) -> str:
    """Check before training whether an optimiser's state can be cut.

    The state exists only after a step. So another instance with the same
    settings takes one step, for a copy of one parameter of each shape at a
    time. A state that is added later is checked when it is cut.

    Args:
        optimizer (Optimizer): The optimiser that trains the model.
        model (nn.Module): The network.
        names (Collection[str]): Parameters that may be cut.

    Returns:
        str: Why the check was not possible; '' if it passed.

    Raises:
        ValueError: If the state cannot be cut.
    """
    kind = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get('closure')
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f'{kind} needs a closure in every step, but runners pass none; '
            'expected an optimizer such as SGD, Adam or AdamW while pruning'
        )
    check_own_state(optimizer)
    inner = inner_optimizer(optimizer)
    if inner is not None:
        return check_optimizer(inner, model, names)
    tensors = named_tensors(model)
    name_of = {id(tensors[name]): name for name in names if name in tensors}
    for group in optimizer.param_groups:
        tried = set()
        for parameter in group['params']:
            name = name_of.get(id(parameter))
            form = parameter.shape, parameter.dtype
            if name is None or form in tried:
                continue
            if optimizer.state.get(parameter):  # made by __init__, or resumed
                element_state(optimizer, parameter, name)
                continue
            tried.add(form)
            stand_in, twin = _stand_in(optimizer, group, parameter)
            try:
                # the instance's own `step` is wrapped by schedulers
                type(optimizer).step(stand_in)
            except Exception as error:  # other code may raise any error
                return f'{kind} cannot be checked: {type_and_line(error)}'
            element_state(stand_in, twin, name)
    return ''


def _stand_in(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
) -> tuple[torch.optim.Optimizer, Tensor]:
    """Returns an optimiser of the same class, and its only parameter."""
    twin = nn.Parameter(torch.zeros_like(parameter))
    twin.grad = torch.ones_like(twin)
    settings = {k: v for k, v in group.items() if k != 'params'}
    stand_in = object.__new__(type(optimizer))
    vars(stand_in).update(
        vars(optimizer),
        state=defaultdict(dict),
        param_groups=[dict(copy.deepcopy(settings), params=[twin])],
        _optimizer_step_pre_hooks=OrderedDict(),
        _optimizer_step_post_hooks=OrderedDict(),
    )
    return stand_in, twin


def cut_saved_state(
    saved: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    keep: Keep,
) -> None:
    """Cut the result of ``optimizer.state_dict()``, not the optimiser.

    Args:
        saved (dict): Its entries are replaced; tensors are not changed.
        optimizer (Optimizer): The optimiser that returned it.
        model (nn.Module): The network, not yet cut.
        keep (Keep): See :mod:`mmgfp.slimming.surgery`.

    Raises:
        ValueError: See :func:`mmgfp.slimming.surgery.element_state`.
    """
    cuts = cuts_of(keep)
    name_of = {id(t): name for name, t in named_tensors(model).items()}
    parameters = [p for g in optimizer.param_groups for p in g['params']]
    for number, parameter in enumerate(parameters):
        name = name_of.get(id(parameter), '')
        state = saved['state'].get(number)
        if state is None or name not in cuts:
            continue
        slim = {
            key: cut_tensor(state[key], cuts[name])
            for key, _ in element_state(optimizer, parameter, name)
        }
        saved['state'][number] = {**state, **slim}
