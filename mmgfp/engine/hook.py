"""The training hook: prunes while the runner trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast, get_args

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..criteria.base import Calibrated
from ..libraries.models import unwrap
from ..registry import HOOKS
from ..search.pruner import Normalizer, Pruner
from ..search.quotas import group_ratios
from ..slimming.structure import KEY
from .calibration import calibrate
from .channel_hook import ChannelHook
from .progress import Progress, Tally, listed, unscored_line
from .resume import separate_loader
from .runner import (
    Trainers,
    averaged_models,
    before_each_batch,
    cut_checkpoint,
    network_has_changed,
    on_main_process,
    optimizers,
    same_on_all_ranks,
    saves_checkpoint,
    sum_over_ranks,
    true_on_all_ranks,
)
from .saved import check_finetune_config, stems
from .settings import (
    flag,
    named_arguments,
    one_of,
    read_criterion,
    read_cut_to,
    read_floor,
    read_ignore,
    read_latency,
    read_overrides,
    read_ratios,
    read_save_at,
    read_schedule,
    read_shape,
    refuse_unknown,
)
from .start import (
    check_not_compiled,
    check_not_met,
    check_optimizers,
    check_possible,
    check_work_dir,
    prepare_net,
    warn_of_start,
)
from .state import STATE_KEY, read_state, stamped
from .steps import StepGuard


@HOOKS.register_module(name=['PruningHook', 'FisherPruningHook'])
class PruningHook(ChannelHook):
    """Prunes channels inside any MMEngine runner.

    It finds coupled channels when training starts, scores them with a
    criterion (by default Fisher information as in Group Fisher Pruning, ICML
    2021), and prunes the least important ones every ``interval`` optimiser
    steps until the target is reached. Checkpoints are always slim and hold the
    structure. Resuming continues exactly.

    Args:
        target (dict): Remaining ratio to stop at, of one metric: ``flops``
            (multiply-accumulates), ``acts`` (activations), ``params`` or
            ``latency``, such as ``dict(flops=0.5)``.
        criterion (dict, optional): The criterion that scores channels, such as
            ``dict(type='Taylor')``: one of :data:`mmgfp.registry.CRITERIA`
            with its arguments. Defaults to ``dict(type='Fisher')``.
        interval (int): Optimiser steps per pruning step. With several
            optimisers, iterations in which one took a step that trains
            prunable layers. Defaults to 10.
        normalize_by (str): Scores are divided by the 'acts', 'flops' or
            'latency' that cutting the channel saves, or by nothing ('none').
            Defaults to 'acts'.
        channels_per_step (int | str): Choices per pruning step: a number, or
            'auto' for equal amounts of the target's metric over the first
            ``prune_share`` of the training. Defaults to 1, as in the paper.
        prune_share (float, optional): For ``channels_per_step='auto'``.
            Defaults to 0.6.
        scope (str): 'all', or 'internal' for channels that one layer makes
            and one reads (the paper's "-I"). Defaults to 'all'.
        save_at (Sequence[float], optional): Remaining ratios of the target's
            metric at which to save, besides the target. Defaults to those of
            (0.75, 0.5, 0.25) that are above the target.
        after_target (str): 'stop' to end training (at the end of the epoch in
            epoch-based loops), 'train' to continue training. Defaults to
            'stop'.
        min_channels (int): Channels that every group keeps. Defaults to 1.
        min_ratio (float): Ratio of its channels that every group keeps.
            Defaults to 0.
        round_to (int | str): Every group keeps a multiple of this number of
            channels; 'auto' for 8, and less in groups of less than 32
            channels. Defaults to 1.
        cut_to (int, optional): Chosen channels are masked, and cut out when
            the group keeps a multiple of this number: odd widths are slow on
            a GPU. 0 cuts as late as possible. Saved networks have no masks.
            Defaults to 8 on a GPU and 1, which cuts at once, on a CPU.
        ignore (Sequence[str]): Patterns of layers whose outputs are not
            pruned, such as 'backbone.layer1.*'. Defaults to ().
        ratios (Mapping[str, float], optional): Ratios of their outputs that
            layers keep, by pattern, such as ``{'backbone.layer4.*': 0.7}``.
            They are compared with no other layer.
        isomorphic (bool): Whether channels are compared only with those of
            layers of the same types (Fang et al., ECCV 2024). Defaults to
            False.
        compensate (bool): Whether layers that read pruned channels adapt
            their other weights at each pruning step; for
            ``criterion=dict(type='KFAC')``. Defaults to False.
        input_shape (Sequence[int], optional): (H, W) for counting cost.
            Defaults to the size in the config's pipelines.
        latency_table (str, optional): File of ``mmgfp latency-table``;
            needed if latency is the target or scores are divided by it.
        finetune (dict, optional): Overrides for the fine-tuning config
            written with every saved ratio.
        report (bool): Whether to write a page about the run, 'report.html',
            when training ends. Defaults to False.

    Raises:
        FileNotFoundError: If there is no such latency table.
        ValueError: If an argument is invalid.
    """

    state_key = STATE_KEY

    def __init__(
        self,
        target: Mapping[str, float] | None = None,
        criterion: Mapping[str, Any] | None = None,
        interval: int = 10,
        normalize_by: Normalizer = 'acts',
        channels_per_step: int | str = 1,
        prune_share: float | None = None,
        scope: str = 'all',
        save_at: Sequence[float] | None = None,
        after_target: str = 'stop',
        min_channels: int = 1,
        min_ratio: float = 0.0,
        round_to: int | str = 1,
        cut_to: int | None = None,
        ignore: Sequence[str] = (),
        ratios: Mapping[str, float] | None = None,
        isomorphic: bool = False,
        compensate: bool = False,
        input_shape: Sequence[int] | None = None,
        latency_table: str | None = None,
        finetune: Mapping[str, Any] | None = None,
        report: bool = False,
        **unknown: Any,
    ) -> None:
        known = named_arguments(type(self), PruningHook)
        refuse_unknown(
            *(type(self).__name__, unknown, known),
            criterion=criterion or dict(type='Fisher'),
        )
        one_of('normalize_by', normalize_by, get_args(Normalizer))
        one_of('scope', scope, ('all', 'internal'))
        one_of('after_target', after_target, ('stop', 'train'))
        flag('isomorphic', isomorphic)
        flag('compensate', compensate)
        flag('report', report)
        super().__init__(
            *(scope, read_ignore(ignore), read_shape(input_shape)),
            *(read_overrides(finetune), after_target, report),
        )
        self.schedule = read_schedule(
            target, interval, channels_per_step, prune_share
        )
        self.criterion = read_criterion(criterion, compensate=compensate)
        self.compensate = compensate
        self.normalize_by = normalize_by
        self.save_at = read_save_at(save_at, self.schedule.target)
        self._stems = stems(self.schedule.metric, self.save_at)
        self.floor = read_floor(min_channels, min_ratio, round_to)
        self.cut_to = read_cut_to(cut_to)
        self.ratios = read_ratios(ratios)
        self.isomorphic = isomorphic
        self.latency = read_latency(
            latency_table, normalize_by, self.schedule.metric
        )

        self.pruner: Pruner | None = None
        self._guard: StepGuard | None = None  # while pruning
        self._unscored: list[str] = []  # groups that the last step left out
        self._tally = Tally()

    def read_state(self, state: Any) -> dict[str, Any]:
        """See :func:`mmgfp.engine.state.read_state`."""
        return read_state(state)

    # -- start ------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        """Check the runner; register the hook that cuts checkpoints."""
        super().before_run(runner)
        if not any(
            isinstance(hook, CheckpointCutter) for hook in runner.hooks
        ):
            runner.register_hook(CheckpointCutter(self))

    def before_train(self, runner: Runner) -> None:
        """Find and prove channel groups, count cost, attach the criterion."""
        model = unwrap(runner.model)
        check_not_compiled(model)
        check_finetune_config(runner.cfg, self.finetune)
        groups = self._groups or self._find_groups(runner)
        net = prepare_net(
            model,
            groups,
            self._shape(runner),
            self._structure,
            self.cut_to,
            self.latency,
            runner.logger,
        )
        pruner = self.pruner = Pruner(
            net,
            self.criterion,
            self.normalize_by,
            self.floor,
            self.isomorphic,
            group_ratios(groups, self.ratios),
            self.compensate,
        )
        separate_loader(runner.train_dataloader, runner.seed)
        ratio = pruner.net.ratio(self.schedule.metric)
        if self._resumed:
            pruner.load_state_dict(self._resumed['pruner'])
            self.random.resume_from(self._resumed['random'])
            before_each_batch(runner, self.random.restore)
            self._tally = Tally(**self._resumed['tally'])
            self._compare_targets(runner, self._resumed.get('target'))
            if ratio <= self.schedule.target:
                runner.logger.info('the checkpoint has reached the target')
                self._log_next(runner, self._stems[self.schedule.target])
                self._finish(runner)
                return
        else:
            warn_of_start(runner, self)
            check_not_met(self.schedule, ratio)
            check_work_dir(runner.work_dir, self._stems.values())
            passed = [share for share in self.save_at if ratio <= share]
            self._tally = Tally(start=ratio, saved=passed)
        check_optimizers(optimizers(runner), pruner.net, runner.logger)
        self._trainers = Trainers(runner, pruner.net.units.groups)
        check_possible(
            pruner,
            self.schedule,
            runner.max_iters,
            self._trainers.accumulation,
            f'{self.floor}, ratios={self.ratios}, scope={self.scope!r} and '
            f'ignore={list(self.ignore)}',
        )
        last = self.schedule.last_step(
            runner.max_iters, self._trainers.accumulation
        )
        self._progress = Progress(self.schedule, ratio, runner.iter, last)
        self._ratios = pruner.net.ratios()
        self._guard = StepGuard(
            model, optimizers(runner), counted=self._trainers.optimizers
        )
        self._guard.resume(self._tally.skipped_in_a_row)
        pruner.net.masks.on_cut = [self._guard.cut]
        self._log_plan(runner)
        pruner.attach()

    def _log_plan(self, runner: Runner) -> None:
        """Log what is pruned; warn if calibration takes most of the time."""
        assert self.pruner is not None
        criterion, schedule = self.pruner.criterion, self.schedule
        runner.logger.info(
            f'pruning by {type(criterion).__name__} with '
            f'normalize_by={self.normalize_by!r}: a step every '
            f'{schedule.interval} optimiser steps, until {schedule.metric} '
            f'is at {schedule.target}'
        )
        if criterion.when != 'calibration':
            return
        batches = cast(Calibrated, criterion).batches
        if batches > self.schedule.interval:
            runner.logger.warning(
                f'a calibration pass of {batches} batches precedes each '
                f'pruning step, every {self.schedule.interval} training '
                'steps, and takes most of the time. Expected an `interval` '
                f'of several times {batches} and '
                "channels_per_step='auto', or fewer `batches` of the criterion"
            )

    def _compare_targets(self, runner: Runner, before: Any) -> None:
        target = {self.schedule.metric: self.schedule.target}
        if before not in (None, target):
            runner.logger.warning(
                f'resumed with target={target} instead of {before}: with '
                "channels_per_step='auto' the pace changes"
            )

    # -- each iteration ---------------------------------------------------

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Start observing a batch."""
        super().before_train_iter(runner, batch_idx, data_batch)
        if self._guard is not None:
            assert self.pruner is not None
            self._guard.begin()
            # stepping changes it
            self._factor = self._trainers.loss_factor(
                self.pruner.net.units.groups
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Accumulate scores; prune after every ``interval`` steps."""
        if self._guard is not None:
            self._observe(runner, self._guard)
        if saves_checkpoint(runner):
            self._settle(runner)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def _observe(self, runner: Runner, guard: StepGuard) -> None:
        assert self.pruner is not None
        tally = self._tally
        # All ranks agree in every iteration, not only when scores are summed:
        # a batch can be bad on one rank alone (its scores overflow, or its
        # gradients are only accumulated so far), and before the next batch
        # all ranks have to restore and count the same.
        finite = self.pruner.criterion.end_batch(
            self._factor, guard.is_finite(), true_on_all_ranks
        )
        if not guard.end_batch(finite):
            self._log_bad_batches(runner)
            return
        tally.steps += guard.stepped
        if tally.steps >= self.schedule.interval:
            self._log_bad_batches(runner)
            self._prune(runner)
        hub = runner.message_hub
        for metric, ratio in self._ratios.items():
            hub.update_scalar(f'train/{metric}', ratio)
        hub.update_scalar('train/channels_pruned', tally.removed)

    def _log_bad_batches(self, runner: Runner) -> None:
        assert self._guard is not None
        new, self._tally.skipped_in_a_row = self._guard.num_skipped()
        self._tally.skipped += new
        if new:
            runner.logger.warning(
                f'iteration {runner.iter + 1}: gradients are not finite; '
                f'the batch is skipped ({self._tally.skipped} so far)'
                if self._guard.waits
                else f'up to iteration {runner.iter + 1}: gradients were not '
                f'finite in {new} batches and counted as zero '
                f'({self._tally.skipped} so far)'
            )

    def _prune(self, runner: Runner) -> None:
        assert self.pruner is not None
        pruner, schedule, tally = self.pruner, self.schedule, self._tally
        net, metric = pruner.net, schedule.metric
        cuts = net.masks.cuts
        goal = schedule.goal(
            runner.iter + 1,
            runner.max_iters,
            tally.start,
            self._trainers.accumulation,
        )
        if pruner.criterion.when == 'calibration':
            if schedule.step_is_done(0, net.ratio(metric), goal):
                tally.steps = 0  # no pass: an earlier step went so far
                return
            calibrate(runner, pruner.criterion, net.units)
        pruner.criterion.all_reduce(sum_over_ranks)
        scores = pruner.scores()
        unscored = pruner.unscored(scores)
        # groups with scores must not replace those without
        least = pruner.limits.reachable(unscored)[metric]
        waits = bool(unscored) and (
            least > schedule.target
            or not pruner.limits.ratios.keys().isdisjoint(unscored)
        )
        self._log_unscored(runner, unscored, waits)
        removals = pruner.prune(
            lambda n: (
                waits or schedule.step_is_done(n, net.ratio(metric), goal)
            ),
            optimizers(runner),
            [average.module for average in averaged_models(runner)],
            scores=scores,
            agree=same_on_all_ranks,
            iteration=runner.iter + 1,
            progress=lambda: (
                (tally.start - net.ratio(metric))
                / (tally.start - schedule.target)
            ),
        )
        if net.masks.cuts > cuts:
            network_has_changed(runner)
        tally.steps = 0
        self._ratios = net.ratios()
        ratio = self._ratios[metric]
        if removals:
            tally.removed += sum(r.channels for r in removals)
            runner.message_hub.update_info('last_pruned', str(removals[-1]))
        elif ratio > goal and not waits:
            raise ValueError(
                'no channel can be pruned without going below the floors: '
                f'{metric} is at '
                f'{ratio:.3f}, target {schedule.target}. Lower min_channels, '
                'min_ratio or round_to, or raise the target.'
            )
        if line := self._progress.log(
            self._ratios, tally, removals, runner.iter + 1
        ):
            runner.logger.info(line)
        for share in self.save_at:
            if ratio <= share and share not in tally.saved:
                tally.saved.append(share)
                self._settle(runner)
                self._save(runner, share)
        if ratio <= schedule.target:
            runner.logger.info(
                f'target reached: {metric} at {ratio:.4f} of the original'
            )
            self._log_next(runner, self._stems[self.schedule.target])
            self._finish(runner)

    def _log_unscored(
        self, runner: Runner, names: list[str], waits: bool
    ) -> None:
        """Log when the groups without scores change."""
        if names != self._unscored:
            self._unscored = names
            line = unscored_line(names, waits)
            runner.logger.warning(f'iteration {runner.iter + 1}: {line}')

    def _settle(self, runner: Runner) -> None:
        """Cut masked channels before the network is saved or tested."""
        if self.pruner is None or self._guard is None:
            return
        self._log_bad_batches(runner)
        self.pruner.criterion.all_reduce(sum_over_ranks)
        if self.pruner.cut(
            optimizers(runner),
            [average.module for average in averaged_models(runner)],
        ):
            network_has_changed(runner)

    # -- end --------------------------------------------------------------

    def _finish(self, runner: Runner) -> None:
        """Stop pruning; training continues without its overhead."""
        self._settle(runner)
        self._stop_observing()
        self._stop_if_wanted(runner)

    def _stop_observing(self) -> None:
        assert self.pruner is not None
        self.pruner.detach()
        if self._guard is not None:
            self._guard.detach()
            self._guard = None

    def after_train(self, runner: Runner) -> None:
        """Warn if the target was not reached; write the report."""
        if self._guard is not None and self.pruner is not None:
            self._settle(runner)
            self._stop_observing()
            self._log_missed_target(runner)
        self._report(runner)

    def _log_missed_target(self, runner: Runner) -> None:
        assert self.pruner is not None
        metric, target = self.schedule.metric, self.schedule.target
        why = (
            f'the last pruning step left out {listed(self._unscored)}, which '
            'had no scores'
            if self._unscored
            else "use channels_per_step='auto' or a larger number, a smaller "
            'interval or more epochs'
        )
        runner.logger.warning(
            f'training ended with {metric} at '
            f'{self.pruner.net.ratio(metric):.3f}; the target of {target} was '
            f'not reached: {why}'
        )

    # -- checkpoints ------------------------------------------------------

    def _save(self, runner: Runner, share: float) -> None:
        stem = self._stems[share]
        assert self.pruner is not None
        net, metric = self.pruner.net, self.schedule.metric
        on_main_process(
            f'saving {stem}',
            lambda: self._write(runner, net, metric, stem),
        )

    def after_train_epoch(self, runner: Runner) -> None:
        """Cut masked channels before the checkpoint of this epoch."""
        self._settle(runner)
        super().after_train_epoch(runner)

    def before_val(self, runner: Runner) -> None:
        """Cut masked channels before the checkpoint of the best network."""
        self._settle(runner)
        super().before_val(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the structure and the state of pruning to a checkpoint."""
        if self.pruner is None:
            return
        structure = self._structure_of(runner, self.pruner.net)
        checkpoint[KEY] = structure.to_dict()
        checkpoint[STATE_KEY] = stamped(
            {
                'pruner': self.pruner.state_dict(),
                'tally': asdict(self._tally),
                'target': {self.schedule.metric: self.schedule.target},
                'random': self.random.states(),
            }
        )


# the name in configs for Group Fisher Pruning
FisherPruningHook = PruningHook


class CheckpointCutter(Hook):
    """Cuts masked channels out of checkpoints.

    Some hooks save within an epoch, on one process alone, where the network
    cannot be cut. EMA hooks add their weights to the checkpoint before.

    Args:
        pruning (PruningHook): The hook that prunes the network.
    """

    priority = 'LOWEST'

    def __init__(self, pruning: PruningHook) -> None:
        self._pruning = pruning

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Cut weights, averaged weights and the state of optimisers."""
        pruner = self._pruning.pruner
        keep = pruner.net.masks.unmasked() if pruner is not None else {}
        if keep:
            cut_checkpoint(runner, checkpoint, keep)
