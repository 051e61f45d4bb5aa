"""Rounding the widths of a slim network after pruning.

This is for networks that were pruned without ``round_to``. The scores in the
structure decide which kept channels are pruned, or which pruned ones are
restored. Restored channels have the weights of the full network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from ..cost.model import count_cost, record_calls
from ..groups import ChannelGroup
from ..libraries.channel_groups import demo_groups
from ..libraries.forward import cost_runner
from ..libraries.loading import load_weights
from ..libraries.models import build_full_model
from ..libraries.pipeline import input_shape
from ..slimming.checkpoint import load_plain_checkpoint, weights_of
from ..slimming.history import STAYS, GroupScores
from ..slimming.positions import axis_sizes, cut_units, kept_positions
from ..slimming.structure import KEY, Axis, Structure
from ..slimming.surgery import cuts_of, named_tensors

Direction = Literal['down', 'up', 'nearest']


@dataclass(frozen=True)
class Change:
    """Change of one channel group by rounding.

    Attributes:
        group (str): Name of the group.
        original (int): Channels of its first producer in the full network.
        before (int): Channels after pruning.
        after (int): Channels after rounding.
    """

    group: str
    original: int
    before: int
    after: int


@dataclass(frozen=True)
class Rounded:
    """A slim network whose channels were rounded.

    Attributes:
        model (nn.Module): The network.
        structure (Structure): Its structure, with its cost.
        before (dict): ``flops``, ``params`` and ``acts`` before rounding.
        changes (list[Change]): Changes of the pruned groups.
    """

    model: nn.Module
    structure: Structure
    before: dict[str, int]
    changes: list[Change]


def round_network(
    config: Config,
    slim: nn.Module,
    structure: Structure,
    multiple: int,
    direction: Direction = 'down',
    weights: str | os.PathLike | None = None,
) -> Rounded:
    """Round the widths of a slim network.

    Args:
        config (Config): Pruning config, or the generated one.
        slim (nn.Module): The slim network; not changed.
        structure (Structure): Its structure, with scores.
        multiple (int): See :func:`round_structure`.
        direction (str): See :func:`round_structure`. Defaults to 'down'.
        weights (str | os.PathLike, optional): Checkpoint of the full network,
            with the weights of restored channels.

    Raises:
        ValueError: If the structure or the checkpoint does not fit, or the
            checkpoint holds a slim network.
    """
    shape = structure.input_shape or input_shape(config)
    full = build_full_model(config)
    groups = demo_groups(full, shape)
    wanted, changes = round_structure(
        structure, full, groups, multiple, direction
    )
    if weights is not None:
        loaded = load_plain_checkpoint(weights)
        if KEY in loaded:
            raise ValueError(
                f'the full weights {os.fspath(weights)} are those of a slim '
                'network; expected the checkpoint that pruning began with'
            )
        load_weights(full, weights_of(loaded, weights), weights)
    put_back(full, slim, structure)
    wanted.apply(full)
    before, after = (_cost(model, shape) for model in (slim, full))
    # latency needs a table and is not counted
    original = {m: n for m, n in wanted.cost_before.items() if m in after}
    wanted = replace(wanted, cost_before=original, cost_after=after)
    return Rounded(full, wanted, before, changes)


def _cost(model: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    run = cost_runner(shape)
    return count_cost(model, record_calls(model, lambda: run(model)))['']


def round_structure(
    structure: Structure,
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    multiple: int,
    direction: Direction,
) -> tuple[Structure, list[Change]]:
    """Choose channels so that every group keeps a multiple.

    Args:
        structure (Structure): Structure of the slim network, with scores.
        model (nn.Module): The full network.
        groups (Sequence[ChannelGroup]): Its channel groups.
        multiple (int): Channels of a pruned group are rounded to multiples of
            this.
        direction (str): 'down' to prune the least important kept channels;
            'up' to restore the most important pruned ones; 'nearest' for the
            smaller change, 'up' if equal. No group gets more channels than in
            the full network. Groups with fewer than ``multiple`` channels are
            not pruned.

    Raises:
        ValueError: If the structure has no scores, or those of other groups.

    Returns:
        tuple[Structure, list[Change]]: The new structure, still with the cost
        of the old one, and the changes of the pruned groups.
    """
    record = structure.scores
    if record is None:
        raise ValueError(
            f'the structure of {structure.architecture} holds no scores, '
            'which order its channels; expected one that '
            'mmgfp.PruningHook saved. Or prune with round_to.'
        )
    already_cut = cut_units(groups, structure)
    scores = dict(record.groups)
    cut, changes = [], []
    for group, units in zip(groups, already_cut):
        known = record.groups.get(group.name)
        if known is None or not len(units):
            cut.append(units)
            continue
        _check(structure, group, known, units)
        left = group.size - len(units)
        stay = _rounded(left, group, multiple, direction)
        order = known.order()
        cut.append(np.sort(order[: group.size - stay]))
        removed = known.removed.copy()
        removed[order[group.size - stay :]] = STAYS
        removed[order[len(units) : group.size - stay]] = record.step + 1
        scores[group.name] = replace(known, removed=removed)
        widths = [n * group.width for n in (group.size, left, stay)]
        changes.append(Change(group.name, *widths))
    sizes = axis_sizes(model, groups)
    axes = {
        key: Axis(sizes[key], kept)
        for key, kept in kept_positions(groups, cut, sizes).items()
    }
    record = replace(record, groups=scores, step=record.step + 1)
    return replace(structure, axes=axes, scores=record), changes


def _check(
    structure: Structure,
    group: ChannelGroup,
    known: GroupScores,
    already_cut: np.ndarray,
) -> None:
    if len(known.removed) != group.size or not np.array_equal(
        np.flatnonzero(known.removed != STAYS), already_cut
    ):
        raise ValueError(
            f'the structure of {structure.architecture} holds scores that do '
            f'not fit its channels (group {group.name}); expected the config '
            'that was pruned, and an unchanged structure'
        )


def _rounded(
    left: int, group: ChannelGroup, multiple: int, direction: Direction
) -> int:
    """Returns the number of units to keep of ``left``."""
    step = multiple // math.gcd(multiple, group.width)
    less = left // step * step
    more = min(math.ceil(left / step) * step, group.size)
    if direction == 'down':
        return less or left
    if direction == 'up' or not less:
        return more
    return less if left - less < more - left else more


def put_back(full: nn.Module, slim: nn.Module, structure: Structure) -> None:
    """Copy the weights of a slim network to their place in the full one.

    Args:
        full (nn.Module): The full network; other weights do not change.
        slim (nn.Module): The slim network.
        structure (Structure): Structure of the slim network.
    """
    kept = cuts_of(structure.keep)
    weights = named_tensors(slim)
    with torch.no_grad():
        for name, tensor in named_tensors(full).items():
            if tensor.ndim == 0:
                tensor.copy_(weights[name])
                continue
            cuts = kept.get(name, {})
            place = [
                cuts.get(a, np.arange(n)) for a, n in enumerate(tensor.shape)
            ]
            index = map(torch.from_numpy, np.ix_(*place))
            tensor[tuple(index)] = weights[name]
