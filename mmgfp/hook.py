"""The training hook: prunes while the runner trains. No mathematics."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from .adapt import demo_runner, input_shape, trace_shape, unwrap
from .artifacts import save_ratio
from .cost import METRICS, Metric, record_calls
from .finder import find_groups, restrict_groups
from .pruner import GroupFisherPruner
from .randomness import random_state, set_random_state
from .registry import HOOKS
from .schedule import Schedule
from .selection import Floor
from .structure import KEY, Structure
from .table import groups_table, render

STATE_KEY = 'mmgfp_pruning'

# So many batches in a row without finite gradients end the run. Mixed
# precision with a dynamic loss scale skips a few at first.
_MAX_SKIPPED = 20


@HOOKS.register_module()
class FisherPruningHook(Hook):
    """Group Fisher Pruning (ICML 2021) inside any mmengine runner.

    Finds coupled channels when training starts, accumulates their Fisher
    information and removes the least important ones every ``interval``
    optimiser steps, until the target is reached. Checkpoints are always slim
    and hold the structure; resuming continues exactly.

    Args:
        target (dict): Remaining share to stop at, of one metric: ``flops``
            (multiply-accumulates), ``acts`` (activations) or ``params``, such
            as ``dict(flops=0.5)``.
        interval (int): Optimiser steps per pruning step. Defaults to 10.
        normalize_by (str): What scores are divided by: the 'acts' or 'flops'
            that removing a channel saves now, or 'none'. Defaults to 'acts'.
        channels_per_step (int | str): Choices per pruning step: a number, or
            'auto' for equal amounts of the target's metric over the first
            ``prune_share`` of the training. Defaults to 1, as in the paper.
        prune_share (float): For ``channels_per_step='auto'``. Defaults to 0.6.
        scope (str): 'all', or 'internal' for channels that one layer makes
            and one reads (the paper's "-I"). Defaults to 'all'.
        save_at (Sequence[float]): Remaining shares of the target's metric at
            which to save, besides the target. Defaults to (0.75, 0.5, 0.25).
        after_target (str): 'stop' to end training (at the end of the epoch in
            epoch-based loops), 'train' to go on recovering. Defaults to
            'stop'.
        min_channels (int): Channels that every group keeps. Defaults to 1.
        min_ratio (float): Share of its channels that every group keeps.
            Defaults to 0.
        round_to (int): Channels are removed so that a multiple of this stays
            of every group. Defaults to 1.
        ignore (Sequence[str]): Patterns of layers that lose no outputs, such
            as 'backbone.layer1.*'. Defaults to ().
        input_shape (Sequence[int], optional): (H, W) that cost is counted at.
            Defaults to that of the test pipeline.
        finetune (dict, optional): Overrides for the fine-tuning config
            written with every saved ratio.

    Raises:
        ValueError: If an argument has an impossible value.
    """

    # Before the EMA hook loads weights and before the logger hook.
    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        target: Mapping[str, float],
        interval: int = 10,
        normalize_by: str = 'acts',
        channels_per_step: int | str = 1,
        prune_share: float = 0.6,
        scope: str = 'all',
        save_at: Sequence[float] = (0.75, 0.5, 0.25),
        after_target: str = 'stop',
        min_channels: int = 1,
        min_ratio: float = 0.0,
        round_to: int = 1,
        ignore: Sequence[str] = (),
        input_shape: Sequence[int] | None = None,
        finetune: Mapping[str, Any] | None = None,
    ) -> None:
        metric, share = _read_target(target)
        _one_of('normalize_by', normalize_by, ('acts', 'flops', 'none'))
        _one_of('scope', scope, ('all', 'internal'))
        _one_of('after_target', after_target, ('stop', 'train'))
        _whole('interval', interval)
        _whole('min_channels', min_channels)
        _whole('round_to', round_to)
        if channels_per_step != 'auto':
            _whole('channels_per_step', channels_per_step, " or 'auto'")
        _share('prune_share', prune_share, top=1.0)
        if min_ratio != 0:
            _share('min_ratio', min_ratio)
        self.schedule = Schedule(
            metric, share, interval, channels_per_step, prune_share
        )
        self.normalize_by = normalize_by
        self.scope = scope
        self.save_at = _read_save_at(save_at, share)
        self.after_target = after_target
        self.floor = Floor(min_channels, min_ratio, round_to)
        self.ignore = _read_ignore(ignore)
        self.input_shape = _read_shape(input_shape)
        self.finetune = dict(finetune or {})

        self.pruner: GroupFisherPruner | None = None
        self._structure: Structure | None = None  # of a loaded checkpoint
        self._loaded: dict[str, Any] = {}  # pruning state to resume from
        self._steps = 0  # optimiser steps since the last pruning step
        self._saved: list[float] = []  # shares of save_at already saved
        self._removed = 0  # channels
        self._skipped = 0  # batches without finite gradients, in a row
        self._skipped_total = 0
        self._scale = 1.0
        self._bad_batch = False
        self._stepped = False  # whether this iteration ended a step
        self._exporting = False
        self._restore_random: Mapping[str, Any] | None = None
        self._clock = (0.0, 1.0)  # time and remaining share, last logged
        self._handles: list[Any] = []

    # -- start ------------------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        """Find and prove channel groups, count cost, attach the taps."""
        model = unwrap(runner.model)
        shape = self.input_shape or input_shape(runner.cfg)
        if self._structure is not None and self._structure.input_shape:
            shape = self._structure.input_shape
        self.input_shape = tuple(shape)
        self.pruner = self._make_pruner(runner, model)
        if self._loaded:
            self.pruner.load_state_dict(self._loaded['pruner'])
            self._restore_random = self._loaded['random']
        ratio = self.pruner.ratio(self.schedule.metric)
        self._clock = (time.time(), ratio)
        if ratio <= self.schedule.target:
            self._already_there(runner, ratio)
            return
        self._check_reachable()
        self.pruner.attach()
        for optimizer in _optimizers(runner):
            self._handles += [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]

    def _make_pruner(
        self, runner: Runner, model: nn.Module
    ) -> GroupFisherPruner:
        assert self.input_shape is not None
        began = time.time()
        run = demo_runner(trace_shape(model, self.input_shape), images=2)
        groups = restrict_groups(
            find_groups(model, run, images=2), self.scope, self.ignore
        )
        was_training = model.training
        calls = record_calls(
            model.eval(), lambda: demo_runner(self.input_shape)(model)
        )
        model.train(was_training)
        pruner = GroupFisherPruner(
            model,
            groups,
            calls,
            self.normalize_by,
            self.floor,
            self._structure,
        )
        cost = pruner.cost()
        runner.logger.info(
            f'found {len(groups)} channel groups in '
            f'{time.time() - began:.1f} s, {len(pruner.groups)} can be '
            f'pruned; cost at {self.input_shape}: '
            + ', '.join(f'{m} {cost[m]:,.0f}' for m in METRICS)
            + '\n'
            + render(groups_table(groups))
        )
        return pruner

    def _already_there(self, runner: Runner, ratio: float) -> None:
        metric, target = self.schedule.metric, self.schedule.target
        if not runner._resume:
            raise ValueError(
                f'the target is already met: {metric} is at {ratio:.3f} of '
                f'the original, target={{{metric!r}: {target}}}. Load another '
                'checkpoint, choose a smaller target, or fine-tune with the '
                'config that pruning generated.'
            )
        runner.logger.info(
            f'{metric} is at {ratio:.3f}, the target of '
            f'{target} was met before'
        )
        self._finish(runner)

    def _check_reachable(self) -> None:
        assert self.pruner is not None
        metric, target = self.schedule.metric, self.schedule.target
        least = self.pruner.reachable()
        if least[metric] > target:
            raise ValueError(
                f'target={{{metric!r}: {target}}} cannot be reached: with '
                f'min_channels={self.floor.min_channels}, '
                f'min_ratio={self.floor.min_ratio}, '
                f'round_to={self.floor.round_to}, scope={self.scope!r} and '
                f'ignore={self.ignore} at least {least[metric]:.3f} of '
                f'{metric} stays. Raise the target or lower the floors.'
            )

    # -- each iteration ---------------------------------------------------

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Note the loss scale of this iteration."""
        if self._restore_random is not None:
            set_random_state(self._restore_random)
            self._restore_random = None
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        self._scale = float(scaler.get_scale()) if scaler else 1.0
        self._bad_batch = False

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        """Leave the weights alone when this batch has no finite gradient."""
        assert self.pruner is not None
        if not _everywhere(self.pruner.batch_is_finite()):
            self._bad_batch = True
            for group in optimizer.param_groups:
                for parameter in group['params']:
                    parameter.grad = None

    def _after_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        self._stepped = not self._bad_batch

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Accumulate scores; prune when it is time."""
        pruner = self.pruner
        if pruner is None or not self._handles:
            return
        if self._bad_batch or not _everywhere(pruner.batch_is_finite()):
            self._skip_batch(runner)
            return
        self._skipped = 0
        pruner.accumulate(self._scale)
        if self._stepped:
            self._stepped = False
            self._steps += 1
            if self._steps >= self.schedule.interval:
                self._prune(runner)
        for metric in METRICS:
            runner.message_hub.update_scalar(
                f'train/{metric}', pruner.ratio(metric)
            )

    def _skip_batch(self, runner: Runner) -> None:
        assert self.pruner is not None
        self.pruner.discard()
        self._stepped = False
        self._skipped += 1
        self._skipped_total += 1
        runner.logger.warning(
            f'iteration {runner.iter + 1}: gradients are not finite; the '
            f'batch is skipped ({self._skipped_total} so far)'
        )
        if self._skipped >= _MAX_SKIPPED:
            raise RuntimeError(
                f'gradients were NaN or infinite in {self._skipped} batches '
                'in a row, expected finite losses. Lower the learning rate, '
                'clip gradients, or look for damaged images and boxes.'
            )

    def _prune(self, runner: Runner) -> None:
        assert self.pruner is not None
        pruner, schedule = self.pruner, self.schedule
        goal = schedule.goal(runner.iter + 1, runner.max_iters)
        wrapped = is_model_wrapper(runner.model)
        removals = pruner.prune(
            lambda n: schedule.step_is_done(
                n, pruner.ratio(schedule.metric), goal
            ),
            optimizers=list(_optimizers(runner)),
            copies=list(_averaged_models(runner)),
            reduce=_sum_over_ranks,
        )
        self._steps = 0
        self._removed += sum(r.channels for r in removals)
        if removals and wrapped:
            _rewrap(runner)
        ratio = pruner.ratio(schedule.metric)
        self._log_progress(
            runner, ratio, [f'{r.group} ({r.channels})' for r in removals]
        )
        for share in [
            s for s in self.save_at if ratio <= s and s not in self._saved
        ]:
            self._saved.append(share)
            self._save(runner, share)
        if ratio <= schedule.target:
            runner.logger.info(
                f'target reached: {schedule.metric} at '
                f'{ratio:.4f} of the original'
            )
            self._finish(runner)
        elif not removals and schedule.channels_per_step != 'auto':
            raise ValueError(
                f'nothing is left to prune above the floors: '
                f'{schedule.metric} is at {ratio:.3f}, target '
                f'{schedule.target}. Lower min_channels, min_ratio or '
                'round_to, or raise the target.'
            )

    def _finish(self, runner: Runner) -> None:
        """Stop observing; from here on training costs what it always did."""
        assert self.pruner is not None
        self.pruner.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.after_target == 'stop':
            runner.train_loop.stop_training = True

    # -- reports and files ------------------------------------------------

    def _log_progress(
        self, runner: Runner, ratio: float, chosen: Sequence[str]
    ) -> None:
        """One line for every hundredth that went, with the time left."""
        then, before = self._clock
        if before - ratio < 0.01 and ratio > self.schedule.target:
            return
        now = time.time()
        left = (
            (now - then)
            / max(before - ratio, 1e-9)
            * max(0.0, ratio - self.schedule.target)
        )
        self._clock = (now, ratio)
        assert self.pruner is not None
        shares = ', '.join(f'{m} {self.pruner.ratio(m):.3f}' for m in METRICS)
        last = ', '.join(chosen[-3:])
        runner.logger.info(
            f'pruning: {shares}; {self._removed} channels pruned, last '
            f'{last}; target {self.schedule.metric} '
            f'{self.schedule.target} in about {_duration(left)}'
        )

    def _save(self, runner: Runner, share: float) -> None:
        if not dist.is_main_process():
            return
        assert self.pruner is not None
        stem = f'{self.schedule.metric}_{share:.2f}'
        self._exporting = True
        try:
            path = save_ratio(
                runner, self._current_structure(runner), stem, self.finetune
            )
        finally:
            self._exporting = False
        runner.logger.info(
            f'saved {path} with its structure, fine-tuning config and picture'
        )

    def _current_structure(self, runner: Runner) -> Structure:
        assert self.pruner is not None
        return self.pruner.structure(
            source=str(runner.cfg.filename or runner.experiment_name),
            input_shape=self.input_shape or (),
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the structure, and what resuming needs, into a checkpoint."""
        if self.pruner is None:
            return
        checkpoint[KEY] = self._current_structure(runner).to_dict()
        if self._exporting:  # for others: weights, meta and structure only
            for key in ('message_hub', 'ema_state_dict'):
                checkpoint.pop(key, None)
            return
        checkpoint[STATE_KEY] = {
            'pruner': self.pruner.state_dict(),
            'steps': self._steps,
            'saved': list(self._saved),
            'removed': self._removed,
            'skipped': self._skipped_total,
            'random': random_state(),
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Make the network slim before slim weights are loaded."""
        if KEY not in checkpoint:
            return
        structure = Structure.from_dict(checkpoint[KEY], 'the checkpoint')
        wrapped = is_model_wrapper(runner.model)
        structure.apply(unwrap(runner.model))
        for copy in _averaged_models(runner):
            structure.apply(copy)
        if wrapped:
            _rewrap(runner)
        self._structure = structure
        if runner._resume and STATE_KEY in checkpoint:
            state = self._loaded = checkpoint[STATE_KEY]
            self._steps, self._removed = state['steps'], state['removed']
            self._saved = list(state['saved'])
            self._skipped_total = state['skipped']


# -- arguments -------------------------------------------------------------


def _read_target(target: Any) -> tuple[Metric, float]:
    if not isinstance(target, Mapping) or len(target) != 1:
        raise ValueError(
            f'target={target!r}: expected one metric and its '
            'remaining share, such as dict(flops=0.5)'
        )
    ((metric, share),) = target.items()
    _one_of('the metric of target', metric, METRICS)
    _share(f'target[{metric!r}]', share)
    return metric, float(share)


def _read_save_at(save_at: Any, target: float) -> list[float]:
    """The shares above the target, and the target, from large to small."""
    if isinstance(save_at, (int, float)) or isinstance(save_at, str):
        raise ValueError(
            f'save_at={save_at!r}: expected a list of remaining '
            'shares, such as (0.75, 0.5)'
        )
    for share in save_at:
        _share('save_at', share)
    return sorted(
        {float(s) for s in save_at if s > target} | {target}, reverse=True
    )


def _read_ignore(ignore: Any) -> tuple[str, ...]:
    if isinstance(ignore, str) or not all(isinstance(p, str) for p in ignore):
        raise ValueError(
            f'ignore={ignore!r}: expected a list of layer name '
            "patterns, such as ['backbone.layer1.*']"
        )
    return tuple(ignore)


def _read_shape(shape: Any) -> tuple[int, int] | None:
    if shape is None:
        return None
    if (
        not isinstance(shape, Sequence)
        or isinstance(shape, str)
        or len(shape) != 2
        or not all(isinstance(n, int) and n > 0 for n in shape)
    ):
        raise ValueError(
            f'input_shape={shape!r}: expected (height, width) '
            'in pixels, such as (800, 1280)'
        )
    return shape[0], shape[1]


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(
            f'{name}={value!r}: expected one of '
            f'{", ".join(map(repr, choices))}'
        )


def _whole(name: str, value: Any, otherwise: str = '') -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f'{name}={value!r} ({type(value).__name__}): '
            f'expected a whole number from 1{otherwise}'
        )


def _share(name: str, value: Any, top: float = 0.0) -> None:
    good = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (0 < value < 1 or value == top > 0)
    )
    if not good:
        raise ValueError(
            f'{name}={value!r} ({type(value).__name__}): '
            'expected a share between 0 and 1, such as 0.5'
        )


# -- the runner ------------------------------------------------------------


def _optimizers(runner: Runner) -> Iterator[torch.optim.Optimizer]:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapper):
        yield wrapper.optimizer
    else:
        for part in wrapper.values():
            yield part.optimizer


def _averaged_models(runner: Runner) -> Iterator[nn.Module]:
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model'):
            yield hook.ema_model.module


def _rewrap(runner: Runner) -> None:
    """Wrap the model for distributed training anew: its buckets changed."""
    model = unwrap(runner.model)
    runner.model = model
    gc.collect()  # the old wrapper's reducer lets go of the parameters
    runner.model = runner.wrap_model(
        runner.cfg.get('model_wrapper_cfg'), model
    )


def _sum_over_ranks(tensor: Tensor) -> None:
    dist.all_reduce(tensor)


def _everywhere(good: bool) -> bool:
    """Whether something holds on all ranks."""
    if dist.get_world_size() == 1:
        return good
    flag = torch.tensor(float(good), device=dist.get_comm_device())
    dist.all_reduce(flag, 'min')
    return bool(flag)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'
