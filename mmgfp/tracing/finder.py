"""From a model and a way to run it to proven channel groups."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..groups import ChannelGroup, layer_of
from ..slimming.surgery import named_tensors
from ..utils.modes import in_training
from ..utils.precision import Run
from ..utils.trees import any_floats, look_into
from .group_building import build_groups
from .labels import trace_labels
from .probe import find_layouts
from .rules import find_rule
from .rules_extension import watch_compiled
from .selfcheck import check_groups
from .slots import Trace


class NoOutputsError(TypeError):
    """Nothing that a network returns can be compared."""


def find_groups(
    model: nn.Module,
    run: Run,
    images: int = 1,
    train: Run | None = None,
    tell: Callable[[str], object] | None = None,
) -> list[ChannelGroup]:
    """Find and prove the channel groups of a model.

    The model's mode, parameters, buffers and random state are left as they
    were.

    Args:
        model (nn.Module): A built model.
        run (Callable): ``run(model)`` runs it on demo input and returns its
            outputs: tensors, in lists, mappings or attributes of objects,
            and maybe numbers.
        images (int): Images in the demo input. With two or more it is found
            out which image each row of a layer's input belongs to. Defaults
            to 1.
        train (Callable, optional): Runs the model for its losses on as many
            images; it is in training mode then, but for norms and dropout.
            Where that works, what layers are given is learnt from it, and so
            are the channels of layers that only training uses.
        tell (Callable, optional): Is given words for each stage when it
            begins; a large model takes a minute or more.

    Raises:
        RuntimeError: If the model does not run on the demo input.
        ValueError: If a lazy layer has no weights yet.
        NoOutputsError: If what the run returns holds no tensor.
        UnsteadyError: If rounding errors decide what it puts out there.

    Returns:
        list[ChannelGroup]: In execution order, frozen ones included.
    """
    run, train = _looking_into(run), train and in_training(train)
    tell = tell or (lambda stage: None)
    modes = {m: m.training for m in model.modules()}
    devices = sorted(
        {p.device.index for p in model.parameters() if p.device.type == 'cuda'}
    )
    with torch.random.fork_rng(devices=devices):
        try:
            model.eval()
            tell('following channels through the network')
            with _values_kept(model):
                trace = _trace(model, run, train)
            if train is not None and trace.unused and not trace.trained:
                _warn_of_unused(trace.unused)
            if trace.unclear:
                tell(_numbers_that_stay(trace.unclear))
            groups = [_freeze_single(group) for group in build_groups(trace)]
            tell('telling which rows belong to which image')
            groups = find_layouts(model, groups, run, images, train)
            tell(f'proving {len(groups)} channel groups')
            groups = check_groups(model, groups, run, train)
        finally:
            for module, training in modes.items():
                module.training = training
    return groups


@contextmanager
def _values_kept(model: nn.Module) -> Iterator[None]:
    """What forwards write into parameters and buffers is taken back."""
    tensors = list(named_tensors(model).values())
    before = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before):
            if not torch.equal(tensor, value):
                tensor.data.copy_(value)


def _looking_into(run: Run) -> Run:
    """The same forward; what it returns as a list of what can be compared."""

    def looked_into(model: nn.Module) -> list[Tensor]:
        outputs = run(model)
        tensors, numbers = look_into(outputs)
        if not any_floats(tensors):
            raise NoOutputsError(
                f'run(model) returned a value of the type '
                f'{type(outputs).__name__} that holds no floating-point '
                'numbers in tensors; expected all that the network puts out, '
                'as tensors in lists, mappings or attributes of objects: '
                'channels that reach an output must stay, and slim networks '
                'are compared by their outputs'
            )
        return tensors + numbers

    return looked_into


def _numbers_that_stay(names: Sequence[str]) -> str:
    some = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
    return (
        f'{len(names)} numbers named like widths stay as they are, because '
        f'the forward reads them or has other channels of that number: {some}'
    )


def _freeze_single(group: ChannelGroup) -> ChannelGroup:
    if group.frozen or group.size > 1:
        return group
    return group.freeze('there is only one unit: removing it leaves nothing')


def _trace(model: nn.Module, run: Run, train: Run | None) -> Trace:
    try:
        return trace_labels(
            model,
            lambda: run(model),
            find_rule,
            watch_compiled,
            train and (lambda: train(model)),
        )
    except Exception:
        _try(model, run)  # is the forward at fault?
        raise


def _warn_of_unused(parameters: Sequence[str]) -> None:
    layers = list(dict.fromkeys(layer_of(p) for p in parameters))
    some = ', '.join(layers[:3]) + (', ...' if len(layers) > 3 else '')
    warnings.warn(
        f'{len(layers)} layers take no part in the demo forward ({some}), and '
        'the losses cannot be computed on made-up ground truth. If training '
        'uses these layers, name the ones that make their input in `ignore`.',
        stacklevel=3,
    )


def _try(model: nn.Module, run: Run) -> None:
    try:
        with torch.no_grad():
            run(model)
    except NoOutputsError:
        raise
    except Exception as error:
        raise RuntimeError(
            f'{type(model).__name__} does not run on the demo input '
            f'({type(error).__name__}: {error}). Channel groups are found '
            'from one forward: check that the model runs on an input of this '
            'size, or give another one with `input_shape=(H, W)`.'
        ) from error


def restrict_groups(
    groups: Sequence[ChannelGroup],
    scope: str = 'all',
    ignore: Sequence[str] = (),
) -> list[ChannelGroup]:
    """Freeze groups that the user does not want pruned.

    Args:
        groups (Sequence[ChannelGroup]): As found.
        scope (str): 'all', or 'internal' for channels that one layer makes
            and one layer reads (the paper's "-I"). Defaults to 'all'.
        ignore (Sequence[str]): Patterns as in :mod:`fnmatch`; a group is
            frozen if a layer that loses outputs matches.

    Raises:
        ValueError: If a pattern matches no layer of any group.
    """
    for pattern in ignore:
        if not any(
            fnmatchcase(layer, pattern)
            for g in groups
            for layer in g.producers
        ):
            raise ValueError(
                f'ignore={pattern!r} matches no layer that loses outputs; '
                'expected names as tools/groups.py prints them, with * and ? '
                "as wildcards, such as 'backbone.layer1.*'"
            )
    result = []
    for group in groups:
        if not group.frozen:
            hit = next(
                (
                    p
                    for p in ignore
                    for layer in group.producers
                    if fnmatchcase(layer, p)
                ),
                None,
            )
            if hit is not None:
                group = group.freeze(f'ignored by the pattern {hit!r}')
            elif scope == 'internal' and not group.internal:
                group = group.freeze(
                    "coupled across layers, and scope='internal'"
                )
        result.append(group)
    return result
