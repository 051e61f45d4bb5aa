"""The training hook that searches the width of each channel group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import dist
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor

from ..libraries.models import unwrap
from ..registry import HOOKS
from ..report.table import render, widths_table
from ..search.budget import Budget
from ..search.prunable import Prunable
from ..search.schedule import left_after
from ..search.search import (
    FeatureSearch,
    TrainedSearch,
    cut_to_widths,
    narrowest_line,
)
from ..slimming.structure import KEY
from ..utils.atomic import complete
from ..utils.errors import type_and_line
from ..utils.modes import buffers_kept, nothing_recomputed
from .calibration import calibrate, other_loader, show_features
from .channel_hook import ChannelHook
from .progress import listed
from .resume import separate_loader
from .runner import (
    Trainers,
    averaged_models,
    before_each_batch,
    network_has_changed,
    on_main_process,
    optim_wrappers,
    optimizers,
    same_on_all_ranks,
    sum_over_ranks,
    true_on_all_ranks,
)
from .saved import check_finetune_config, stems
from .search_state import (
    SEARCH_KEY,
    Tally,
    read_search_state,
    stamped_search,
)
from .settings import (
    check_ratio,
    check_unchanged,
    flag,
    named_arguments,
    one_of,
    read_floor,
    read_ignore,
    read_latency,
    read_overrides,
    read_search,
    read_shape,
    read_split,
    read_target,
    refuse_unknown,
    whole,
)
from .split_data import Batches, split_data, validation_data
from .start import (
    check_not_compiled,
    check_optimizers,
    check_work_dir,
    prepare_net,
    warn_of_start,
)
from .steps import StepGuard

# a search that learns in fewer steps is warned about
_FEW_STEPS = 300


@HOOKS.register_module()
class SearchHook(ChannelHook):
    """Searches the width of every channel group inside any MMEngine runner.

    A search decides how many channels of each group stay within a target, and
    a criterion which ones. The network is then cut, and the same files are
    saved as by :class:`mmgfp.PruningHook`. Resuming continues exactly.

    Args:
        search (dict): The search, such as ``dict(type='DCSS')``: one of
            :data:`mmgfp.registry.SEARCHES` with its arguments.
        target (dict): Remaining ratio of one metric: ``flops``
            (multiply-accumulates), ``acts`` (activations), ``params`` or
            ``latency``, such as ``dict(flops=0.5)``.
        interval (int): Optimiser steps in which a criterion that scores
            channels in training observes the network before each step of the
            search. Defaults to 10.
        steps (int): Steps of a search that is not trained: after step t of k
            ``target ** (t / k)`` remains. Defaults to 1.
        search_share (float): Ratio of the training that a search which is
            trained with the network takes. Defaults to 1.
        split (float | str): Ratio of the training images that such a search
            learns from; the weights learn from the others. 0 lets both learn
            from all images, 'val' lets the search learn from the validation
            set. Defaults to 0.5.
        scope (str): 'all', or 'internal' for channels that one layer makes
            and one reads. Defaults to 'all'.
        after_target (str): 'stop' to end training (at the end of the epoch in
            epoch-based loops) once the network is cut, 'train' to continue
            training. Defaults to 'stop'.
        min_channels (int): Channels that every group keeps. Defaults to 1.
        min_ratio (float): Ratio of its channels that every group keeps.
            Defaults to 0.
        round_to (int | str): Every group keeps a multiple of this number of
            channels; 'auto' for 8, and less in groups of less than 32
            channels. Defaults to 1.
        ignore (Sequence[str]): Patterns of layers whose outputs are not
            pruned, such as 'backbone.layer1.*'. Defaults to ().
        input_shape (Sequence[int], optional): (H, W) for counting cost.
            Defaults to the size in the config's pipelines.
        latency_table (str, optional): File of a latency table; needed if
            latency is the target.
        finetune (dict, optional): Overrides for the fine-tuning config.
        report (bool): Whether to write a page about the run, 'report.html',
            when training ends. Defaults to False.

    Raises:
        FileNotFoundError: If there is no such latency table.
        ValueError: If an argument is invalid.
    """

    state_key = SEARCH_KEY

    def __init__(
        self,
        search: Mapping[str, Any] | None = None,
        target: Mapping[str, float] | None = None,
        interval: int = 10,
        steps: int = 1,
        search_share: float = 1.0,
        split: float | str = 0.5,
        scope: str = 'all',
        after_target: str = 'stop',
        min_channels: int = 1,
        min_ratio: float = 0.0,
        round_to: int | str = 1,
        ignore: Sequence[str] = (),
        input_shape: Sequence[int] | None = None,
        latency_table: str | None = None,
        finetune: Mapping[str, Any] | None = None,
        report: bool = False,
        **unknown: Any,
    ) -> None:
        known = named_arguments(type(self), SearchHook)
        refuse_unknown(*(type(self).__name__, unknown, known), search=search)
        one_of('scope', scope, ('all', 'internal'))
        one_of('after_target', after_target, ('stop', 'train'))
        flag('report', report)
        super().__init__(
            *(scope, read_ignore(ignore), read_shape(input_shape)),
            *(read_overrides(finetune), after_target, report),
        )
        self.search = read_search(search)
        self.metric, self.ratio = read_target(target)
        whole('interval', interval)
        whole('steps', steps)
        check_ratio('search_share', search_share, top=1.0)
        if steps > 1 and isinstance(self.search, TrainedSearch):
            raise ValueError(
                f'steps={steps}: {type(self.search).__name__} is trained with '
                'the network and has one step. Remove steps.'
            )
        self.interval = interval
        self.steps = steps
        self.search_share = search_share
        self.split = read_split(split)
        self.floor = read_floor(min_channels, min_ratio, round_to)
        self.latency = read_latency(latency_table, 'none', self.metric)

        self.net: Prunable | None = None
        self._guard: StepGuard | None = None  # while searching
        self._scores: list[np.ndarray] = []  # at the start
        self._ratios: dict[str, float] = {}  # that remain
        self._tally = Tally()
        self._batches: Batches | None = None  # batches of the search

    def read_state(self, state: Any) -> dict[str, Any]:
        """See :func:`mmgfp.engine.search_state.read_search_state`."""
        return read_search_state(state, type(self.search).__name__)

    # -- start ------------------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        """Find and prove channel groups, count cost, start the search."""
        model = unwrap(runner.model)
        check_not_compiled(model)
        check_finetune_config(runner.cfg, self.finetune)
        groups = self._groups or self._find_groups(runner)
        net = self.net = prepare_net(
            *(model, groups, self._shape(runner), self._structure),
            *(1, self.latency, runner.logger),
        )
        self._ratios = net.ratios()
        separate_loader(runner.train_dataloader, runner.seed)
        self._trainers = Trainers(runner, net.units.groups)
        if self._resumed:
            self._tally = Tally(**self._resumed['tally'])
            check_unchanged(self._settings, self._resumed.get('settings', {}))
        else:
            warn_of_start(runner, self)
            self._tally = Tally(start=net.ratio(self.metric))
            self._check_possible(runner, net)
        check_optimizers(optimizers(runner), net, runner.logger)
        if isinstance(self.search, TrainedSearch):
            self._batches = Batches(
                validation_data(runner)
                if self.split == 'val'
                else split_data(runner, float(self.split))
            )
        if self._resumed:
            self.random.resume_from(self._resumed['random'])
            before_each_batch(runner, self.random.restore)
        if self._tally.phase == 'done':
            runner.logger.info('the search of the checkpoint is complete')
            self._log_next(runner, self._stem)
            self._finish(runner)
            return
        self._guard = StepGuard(
            model, optimizers(runner), counted=self._trainers.optimizers
        )
        self._guard.resume(self._tally.skipped_in_a_row)
        net.masks.on_cut = [self._guard.cut]
        if self._resumed:
            self._resume(runner)
            return
        self._wait()
        if self.search.criterion.when != 'training':
            self._choose_or_learn(runner)

    @property
    def _settings(self) -> dict[str, Any]:
        """Returns arguments that a resumed search must not change."""
        return dict(
            target={self.metric: self.ratio},
            split=self.split,
            steps=self.steps,
            interval=self.interval,
        )

    def _check_possible(self, runner: Runner, net: Prunable) -> None:
        self._budget(net).check(net)
        check_work_dir(runner.work_dir, [self._stem])
        planned = self._planned(runner)
        if isinstance(self.search, TrainedSearch) and planned < _FEW_STEPS:
            runner.logger.warning(
                f'the search has only {planned} optimiser steps, in which '
                'widths are learnt badly; expected at least '
                f'{_FEW_STEPS}: train longer or raise search_share'
            )
        waits = self.steps - (self.search.criterion.when != 'training')
        needed = self.interval * waits
        needed += isinstance(self.search, TrainedSearch)
        if needed > planned:
            raise ValueError(
                f'the search needs at least {needed} optimiser steps '
                f'(interval={self.interval}, steps={self.steps}), but '
                f'search_share={self.search_share} of the training has '
                f'{planned}. Lower the interval or train longer.'
            )

    def _planned(self, runner: Runner) -> int:
        """Returns the optimiser steps available to the search."""
        share = self.search_share
        if not isinstance(self.search, TrainedSearch):
            share = 1.0
        return int(share * runner.max_iters) // self._trainers.accumulation

    @property
    def _stem(self) -> str:
        return stems(self.metric, [self.ratio])[self.ratio]

    def _budget(self, net: Prunable) -> Budget:
        """Returns the budget of the next step of the search."""
        ratio = left_after(
            self._tally.step + 1, self.steps, self._tally.start, self.ratio
        )
        fixed = frozenset(
            group.name
            for group, scores in zip(net.units.groups, self._scores)
            if np.isnan(scores).any()
        )
        return Budget(self.metric, ratio, self.floor, fixed)

    def _resume(self, runner: Runner) -> None:
        assert self.net is not None
        state, tally = self._resumed, self._tally
        criterion = self.search.criterion
        criterion.attach(self.net.model, self.net.units)
        if tally.phase == 'scoring':
            criterion.load_state_dict(state['criterion'])
            return
        criterion.detach()
        assert isinstance(self.search, TrainedSearch)
        assert self._batches is not None
        self._scores = [scores.numpy() for scores in state['scores']]
        self._start(runner)
        self.search.attach(tally.planned)
        self.search.load_state_dict(state['search'])
        runner.logger.info(
            f'the search continues after {tally.steps} of {tally.planned} '
            'optimiser steps'
        )
        if state['batches']:
            self._batches.resume(*state['batches'])

    # -- the search -------------------------------------------------------

    def _wait(self) -> None:
        """Let the network train, and a criterion of training observe it."""
        assert self.net is not None
        self._tally.phase, self._tally.steps = 'scoring', 0
        self.search.criterion.attach(self.net.model, self.net.units)

    def _choose_or_learn(self, runner: Runner) -> None:
        """Start the search with the scores of the units."""
        net = self.net
        assert net is not None
        criterion = self.search.criterion
        if criterion.when == 'calibration':
            calibrate(runner, criterion, net.units)
        criterion.all_reduce(sum_over_ranks)
        there = np.ones(len(net.units), bool)
        self._scores = net.units.split(criterion.scores(there))
        if unscored := sorted(self._budget(net).fixed):
            runner.logger.warning(
                f'no scores of {listed(unscored)}; they keep their width'
            )
        self._start(runner)
        if isinstance(self.search, TrainedSearch):
            criterion.detach()
            self._tally.phase, self._tally.steps = 'learning', 0
            done = (runner.iter + 1) // self._trainers.accumulation
            if criterion.when != 'training':
                done = 0
            self._tally.planned = max(1, self._planned(runner) - done)
            self.search.attach(self._tally.planned)
            return
        if isinstance(self.search, FeatureSearch):
            show_features(
                unwrap(runner.model),
                other_loader(runner, self.search.batch),
                self.search,
                runner.logger.warning,
            )
        self._cut(runner)

    def _start(self, runner: Runner) -> None:
        assert self.net is not None
        self._names = [group.name for group in self.net.units.groups]
        budget = self._budget(self.net)
        self.search.start(self.net, budget, self._scores)
        if ungated := getattr(self.search, 'ungated', []):
            runner.logger.warning(
                f'the search cannot reach {listed(ungated)}, which only '
                'grouped convolutions read; they keep their width'
            )

    def _cut(self, runner: Runner) -> None:
        """Cut the network to the widths of the search."""
        net, tally = self.net, self._tally
        assert net is not None
        cuts = net.masks.cuts
        narrowest = cut_to_widths(
            *(net, self.search, self._budget(net), self._scores),
            optimizers(runner),
            [average.module for average in averaged_models(runner)],
            runner.iter + 1,
        )
        same_on_all_ranks(net.units.sizes.astype('<i8').tobytes(), 'widths')
        if net.masks.cuts > cuts:
            network_has_changed(runner)
        tally.step += 1
        self._ratios = net.ratios()
        self._show_ratios(runner)
        ratios = ', '.join(f'{m} {r:.3f}' for m, r in self._ratios.items())
        runner.logger.info(
            f'{type(self.search).__name__}, step {tally.step} of '
            f'{self.steps}: {ratios}'
        )
        # coarse widths may leave less than the next steps want
        while (
            tally.step < self.steps
            and net.ratio(self.metric) <= self._budget(net).ratio
        ):
            tally.step += 1
        if tally.step < self.steps:
            self._wait()
            return
        tally.phase = 'done'
        table = widths_table(net.units.groups, net.originals)
        runner.logger.info(f'channels of the groups\n{render(table)}')
        if line := narrowest_line(narrowest, len(net.units.groups)):
            runner.logger.warning(line)
        self._save(runner)
        self._log_next(runner, self._stem)
        self._finish(runner)

    # -- each iteration ---------------------------------------------------

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Start observing a batch."""
        super().before_train_iter(runner, batch_idx, data_batch)
        if self._guard is not None:
            assert self.net is not None
            self._guard.begin()
            # stepping changes it
            self._factor = self._trainers.loss_factor(self.net.units.groups)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Observe and learn; cut at the end of a step of the search."""
        if self._guard is not None:
            self._observe(runner, self._guard)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def _observe(self, runner: Runner, guard: StepGuard) -> None:
        tally = self._tally
        if tally.phase == 'scoring':
            finite = self.search.criterion.end_batch(
                self._factor, guard.is_finite(), true_on_all_ranks
            )
        else:
            finite = true_on_all_ranks(guard.is_finite())
        counts = guard.end_batch(finite)
        new, tally.skipped_in_a_row = guard.num_skipped()
        if new:
            runner.logger.warning(
                f'iteration {runner.iter + 1}: gradients are not finite; the '
                'batch is skipped'
            )
        if tally.phase == 'scoring':
            self._show_ratios(runner)
        if not counts or not guard.stepped:
            return
        tally.steps += 1
        if tally.phase == 'scoring' and tally.steps >= self.interval:
            self._choose_or_learn(runner)
        elif tally.phase == 'learning':
            self._learn(runner)

    def _show_ratios(self, runner: Runner) -> None:
        """Write the remaining ratios into MMEngine's scalars."""
        for metric, ratio in self._ratios.items():
            runner.message_hub.update_scalar(f'train/{metric}', ratio)

    def _learn(self, runner: Runner) -> None:
        assert isinstance(self.search, TrainedSearch)
        found = self.search.step(lambda values: self._slope(runner, values))
        for name, value in found.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        if self._tally.steps >= self._tally.planned:
            self._end_learning(runner)

    def _end_learning(self, runner: Runner) -> None:
        assert isinstance(self.search, TrainedSearch)
        learnt = [
            value.numpy().tobytes()
            for value in self.search.state_dict().values()
            if isinstance(value, Tensor)
        ]
        same_on_all_ranks(b''.join(learnt), 'parameters of the search')
        self.search.detach()
        self._cut(runner)

    def _slope(self, runner: Runner, values: Tensor) -> Tensor:
        """Returns the gradient of the loss by the gates, on a search batch.

        Statistics of batch norms and gradients of weights do not change.
        """
        assert self._batches is not None
        model: BaseModel = unwrap(runner.model)
        wrapper = next(iter(optim_wrappers(runner).values()))
        scaler = getattr(wrapper, 'loss_scaler', None)
        scale = float(scaler.get_scale()) if scaler else 1.0
        batch = next(self._batches)
        # the gradient by the gates does not reach recomputed parts
        with (
            buffers_kept(model),
            nothing_recomputed(),
            wrapper.optim_context(model),
        ):
            try:
                data = model.data_preprocessor(batch, True)
                losses = model._run_forward(data, mode='loss')
            except Exception as error:  # the user's code may raise anything
                if self.split != 'val':
                    raise
                raise ValueError(
                    "split='val': the loss of a batch of val_dataloader "
                    f'cannot be computed ({type_and_line(error)}). Expected '
                    'a pipeline that loads what the loss needs, as that of '
                    'train_dataloader does, or a ratio as split'
                ) from error
            if not isinstance(losses, Mapping):
                raise ValueError(
                    f"{type(model).__name__} returns no losses in mode='loss' "
                    f'but {type(losses).__name__}; expected a dict of losses, '
                    'which the search learns from'
                )
            loss, _ = model.parse_losses(losses)
            (slope,) = torch.autograd.grad(loss * scale, values)
        slope = slope / scale
        sum_over_ranks(slope)
        return slope / dist.get_world_size()

    # -- end --------------------------------------------------------------

    def _save(self, runner: Runner) -> None:
        stem, net = self._stem, self.net
        assert net is not None

        def write() -> None:
            self._write(runner, net, self.metric, stem)
            course = getattr(self.search, 'course', [])
            path = Path(runner.work_dir, f'{stem}_search.json')
            if course:
                data = dict(groups=self._names, course=course)
                with complete(path) as partial:
                    Path(partial).write_text(json.dumps(data))
                runner.logger.info(f'saved {path}')
            else:  # the file of an earlier run is of another search
                path.unlink(missing_ok=True)

        on_main_process(f'saving {stem}', write)

    def _finish(self, runner: Runner) -> None:
        """Training continues without the search, or ends."""
        self.search.criterion.detach()
        if self._guard is not None:
            self._guard.detach()
            self._guard = None
        self._stop_if_wanted(runner)

    def after_train(self, runner: Runner) -> None:
        """Cut the network if training ended before the search."""
        if self._tally.phase == 'learning':
            runner.logger.warning(
                f'training ended after {self._tally.steps} of '
                f'{self._tally.planned} steps of the search: the network is '
                'cut to the widths so far'
            )
            self._end_learning(runner)
        elif self._tally.phase == 'scoring':
            runner.logger.warning(
                f'training ended in step {self._tally.step + 1} of '
                f'{self.steps} of the search: the target was not reached. '
                'Lower steps or the interval, or train longer'
            )
        self._report(runner)

    # -- checkpoints ------------------------------------------------------

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the structure and the state of the search to a checkpoint."""
        if self.net is None:
            return
        structure = self._structure_of(runner, self.net)
        checkpoint[KEY] = structure.to_dict()
        learning = self._tally.phase == 'learning'
        everything = np.ones(len(self.net.units), bool)
        batches = self._batches
        checkpoint[SEARCH_KEY] = stamped_search(
            search_type=type(self.search).__name__,
            tally=self._tally,
            settings=self._settings,
            criterion=self.search.criterion.state_dict(everything)
            if self._tally.phase == 'scoring'
            else {},
            scores=[torch.from_numpy(s) for s in self._scores]
            if learning
            else [],
            search=self.search.state_dict()
            if learning and isinstance(self.search, TrainedSearch)
            else {},
            batches=[batches.epoch, batches.taken] if batches else [],
            random=self.random.states(),
        )
