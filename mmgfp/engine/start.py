"""Preparation of pruning: groups, cost, and checks of the target."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence
from logging import Logger
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ..cost.latency import LatencyTable
from ..cost.model import METRICS, record_calls
from ..groups import ChannelGroup
from ..libraries.channel_groups import demo_groups
from ..libraries.forward import cost_runner
from ..report.table import groups_table, render
from ..search.prunable import Prunable
from ..search.pruner import Pruner
from ..search.schedule import Schedule
from ..slimming.optimizers import check_optimizer
from ..slimming.structure import Structure, full_shapes
from ..tracing.finder import restrict_groups

# Seconds without a line in the log.
PATIENCE = 5


def prepare_groups(
    model: nn.Module,
    shape: Sequence[int],
    scope: str,
    ignore: Sequence[str],
    logger: Logger,
) -> list[ChannelGroup]:
    """Find and prove the channel groups of a full-size model; log them."""
    began = time.time()

    def log(stage: str) -> None:
        passed = time.time() - began
        if passed > PATIENCE:
            logger.info(f'{stage}, {passed:.0f} s so far')

    found = demo_groups(model, shape, log)
    groups = restrict_groups(found, scope, ignore)
    logger.info(
        f'found {len(groups)} channel groups in {time.time() - began:.1f} s\n'
        f'{render(groups_table(groups))}'
    )
    return groups


def warn_of_start(runner: Runner, hook: Hook) -> None:
    """Warn before pruning that starts within a training, or untrained."""
    if runner.iter:
        runner.logger.warning(
            'the resumed checkpoint is not of a run with this '
            f'{type(hook).__name__}: pruning starts after iteration '
            f'{runner.iter} of {runner.max_iters}. For a whole run use '
            'load_from, without resuming'
        )
    elif not runner.cfg.get('load_from'):
        runner.logger.warning(
            'load_from is not set: what is pruned in an untrained network is '
            'not meaningful'
        )


def prepare_net(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    shape: Sequence[int],
    structure: Structure | None,
    cut_to: int | None,
    latency: LatencyTable | None,
    logger: Logger,
) -> Prunable:
    """Count the cost of the model at (H, W); log it.

    ``cut_to`` defaults to 1 on a CPU and 8 elsewhere.

    Raises:
        ValueError: If the latency table is for another network.
    """
    if latency is not None:
        latency.check(full_shapes(model, structure))
    elif structure is not None and 'latency' in structure.cost_before:
        logger.warning(
            'the network was pruned with a latency table; without one, its '
            'latency is not logged or saved'
        )
    if cut_to is None:
        on_cpu = next(model.parameters()).device.type == 'cpu'
        cut_to = 1 if on_cpu else 8
    was_training = model.training
    calls = record_calls(model.eval(), lambda: cost_runner(shape)(model))
    model.train(was_training)
    net = Prunable(model, groups, calls, structure, cut_to, latency)
    cost = net.cost()
    logger.info(
        f'{len(net.originals)} of {len(groups)} channel groups can be pruned; '
        f'cost at {tuple(shape)}: '
        + ', '.join(f'{m} {cost[m]:,.0f}' for m in METRICS)
        + (f', latency {cost["latency"]:.1f} ms' if latency else '')
    )
    return net


def check_not_compiled(model: nn.Module) -> None:
    """Raise if a part of the model is compiled with ``torch.compile``.

    Raises:
        ValueError: If a part is compiled.
    """
    for name, module in model.named_modules():
        compiled = [k for k, v in vars(module).items() if _is_compiled(v)]
        if compiled or _is_compiled(module):
            what = '.'.join(filter(None, [name, *compiled[:1]]))
            raise ValueError(
                f'{what or "the model"} is compiled; expected a model without '
                'compiled code, whose hooks do not run and which would be '
                'compiled again after each pruning step. Remove `compile` '
                'from the config while pruning; the slim network can be '
                'compiled.'
            )


def _is_compiled(value: Any) -> bool:
    return (
        hasattr(value, '_torchdynamo_orig_callable')
        or type(value).__name__ == 'OptimizedModule'
        or getattr(value, '_compiled_call_impl', None) is not None
    )


def check_optimizers(
    optimizers: Sequence[torch.optim.Optimizer],
    net: Prunable,
    logger: Logger,
) -> None:
    """Raise if an optimiser's state cannot be cut with the network.

    Raises:
        ValueError: With the optimiser and what to use instead.
    """
    names = {m.tensor for group in net.units.groups for m in group.members}
    for optimizer in optimizers:
        if problem := check_optimizer(optimizer, net.model, names):
            logger.warning(
                f'{problem}; an error is raised when channels are cut if '
                'its state does not fit'
            )


def check_possible(
    pruner: Pruner,
    schedule: Schedule,
    max_iterations: int,
    accumulation: int,
    restrictions: str,
) -> None:
    """Raise if the target can never be reached.

    Args:
        pruner (Pruner): Pruner of the current network.
        schedule (Schedule): Has the target.
        max_iterations (int): Iterations of the whole training.
        accumulation (int): Iterations per optimiser step.
        restrictions (str): The user's restrictions, for the message.

    Raises:
        ValueError: With the smallest ratio that can be reached.
    """
    metric, target = schedule.metric, schedule.target
    least = pruner.limits.reachable()[metric]
    if least > target:
        raise ValueError(
            f'target={{{metric!r}: {target}}} cannot be reached: with '
            f'{restrictions} at least {least:.3f} of {metric} remains. Raise '
            'the target or lower the floors.'
        )
    # the last step may have fewer iterations
    steps = math.ceil(max_iterations / accumulation)
    if schedule.interval > steps:
        raise ValueError(
            f'interval={schedule.interval}: the training has only {steps} '
            f'optimiser steps (max_iters={max_iterations}, '
            f'accumulative_counts={accumulation}), so nothing would be '
            'pruned. Lower the interval or train longer.'
        )


def check_work_dir(folder: str | os.PathLike, stems: Iterable[str]) -> None:
    """Raise if results of an earlier run would be replaced.

    Args:
        folder (str | os.PathLike): Work dir of the runner.
        stems (Iterable[str]): Names of the ratios to save.

    Raises:
        ValueError: If one of them was fine-tuned, which needs its structure.
    """
    for stem in stems:
        finetuned = Path(folder, f'{stem}_finetune')
        if Path(folder, f'{stem}.json').exists() and finetuned.is_dir():
            raise ValueError(
                f'{folder} holds {stem}.json of an earlier run, which '
                f'{finetuned} was trained with; pruning again would replace '
                'it. Use another --work-dir, or remove that folder.'
            )


def check_not_met(schedule: Schedule, ratio: float) -> None:
    """Raise if the target is already reached.

    Raises:
        ValueError: If the target is met before pruning starts.
    """
    if ratio <= schedule.target:
        raise ValueError(
            f'the target is already met: {schedule.metric} is at {ratio:.3f} '
            f'of the original, target={{{schedule.metric!r}: '
            f'{schedule.target}}}. Load another checkpoint, choose a smaller '
            'target, or fine-tune with the config that pruning generated.'
        )
