"""Search and proof of the channel groups of a model."""

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
from .probe import find_layouts
from .rules import find_rule
from .rules_extension import watch_compiled
from .selfcheck import check_groups
from .slots import Trace
from .trace import trace_labels


class NoOutputsError(TypeError):
    """Raised if the outputs of a network hold no tensor to compare."""


def find_groups(
    model: nn.Module,
    run: Run,
    images: int = 1,
    train: Run | None = None,
    log: Callable[[str], object] | None = None,
    strict: bool = False,
) -> list[ChannelGroup]:
    """Find and prove the channel groups of a model.

    The model's mode, parameters, buffers and random state do not change.

    Args:
        model (nn.Module): A built model.
        run (Callable): ``run(model)`` runs it on demo input and returns its
            outputs: tensors, or lists, mappings or objects with tensors.
            Numbers are allowed beside them.
        images (int): Images in the demo input. Two or more are needed to find
            the image of each row of a layer's input. Defaults to 1.
        train (Callable, optional): ``train(model)`` returns the losses on
            the same number of images, in training mode except for norms and
            dropout. If it raises no error, it is traced, too, with layers
            that only training uses.
        log (Callable, optional): Called with one line at the beginning of
            each stage; a large model takes a minute or more.
        strict (bool): Whether a group that fails its proof is an error
            instead of a frozen group. Defaults to False.

    Raises:
        DifferenceError: If a group fails its proof and ``strict``.
        RuntimeError: If the model does not run on the demo input.
        ValueError: If a lazy layer has no weights yet.
        NoOutputsError: If the outputs hold no tensor.
        UnsteadyError: If rounding errors decide the outputs.

    Returns:
        list[ChannelGroup]: Prunable and frozen groups in execution order.
    """
    run, train = _looking_into(run), train and in_training(train)
    log = log or (lambda stage: None)
    modes = {m: m.training for m in model.modules()}
    devices = sorted(
        {p.device.index for p in model.parameters() if p.device.type == 'cuda'}
    )
    with torch.random.fork_rng(devices=devices):
        try:
            model.eval()
            log('tracing channels')
            with _values_kept(model):
                trace = _trace(model, run, train)
            if train is not None and trace.unused and not trace.trained:
                _warn_of_unused(trace.unused)
            if trace.unclear:
                log(_numbers_that_stay(trace.unclear))
            groups = [_freeze_single(group) for group in build_groups(trace)]
            log('assigning rows of layer inputs to images')
            groups = find_layouts(model, groups, run, images, train)
            log(f'proving {len(groups)} channel groups')
            groups = check_groups(model, groups, run, train, strict=strict)
        finally:
            for module, training in modes.items():
                module.training = training
    return groups


@contextmanager
def _values_kept(model: nn.Module) -> Iterator[None]:
    """Restore parameters and buffers that a forward writes into."""
    tensors = list(named_tensors(model).values())
    before = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before):
            if not torch.equal(tensor, value):
                tensor.data.copy_(value)


def _looking_into(run: Run) -> Run:
    """Returns the same forward with its outputs as a list of tensors."""

    def looked_into(model: nn.Module) -> list[Tensor]:
        outputs = run(model)
        tensors, numbers = look_into(outputs)
        if not any_floats(tensors):
            raise NoOutputsError(
                f'run(model) returned a value of the type '
                f'{type(outputs).__name__} that holds no floating-point '
                'numbers in tensors; expected all outputs of the network as '
                'tensors in lists, mappings or attributes of objects, because '
                'channels that reach an output are not pruned, and slim '
                'networks are compared by their outputs'
            )
        return tensors + numbers

    return looked_into


def _numbers_that_stay(names: Sequence[str]) -> str:
    some = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
    return (
        f'{len(names)} attributes named like widths do not change, because '
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
        _try(model, run)  # raises a clear error if the forward itself fails
        raise


def _warn_of_unused(parameters: Sequence[str]) -> None:
    layers = list(dict.fromkeys(layer_of(p) for p in parameters))
    some = ', '.join(layers[:3]) + (', ...' if len(layers) > 3 else '')
    warnings.warn(
        f'{len(layers)} layers do not run in the demo forward ({some}), and '
        'the losses cannot be computed on made-up ground truth. If training '
        'uses these layers, put the layers before them into `ignore`.',
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
            'size, or set another one with `input_shape=(H, W)`.'
        ) from error


def restrict_groups(
    groups: Sequence[ChannelGroup],
    scope: str = 'all',
    ignore: Sequence[str] = (),
) -> list[ChannelGroup]:
    """Freeze groups that the user excludes.

    Args:
        groups (Sequence[ChannelGroup]): All groups.
        scope (str): 'all', or 'internal' for channels that one layer makes
            and one layer reads ("-I" in the Group Fisher paper). Defaults to
            'all'.
        ignore (Sequence[str]): Patterns as in :mod:`fnmatch`; a group is
            frozen if a layer whose outputs are cut matches.

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
                f'ignore={pattern!r} matches no layer whose outputs are cut; '
                'expected names as `mmgfp groups` prints them, with * and ? '
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
