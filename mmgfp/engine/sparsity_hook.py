"""The hook that prunes single weights while a runner trains."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from mmengine.runner import Runner

from ..cost.model import METRICS, count_cost, record_calls
from ..criteria.base import Compensating
from ..groups import UnitSpace, layer_of
from ..libraries.forward import cost_runner
from ..libraries.models import builds_slim, unwrap
from ..libraries.pipeline import input_shape as config_shape
from ..registry import HOOKS
from ..report.table import density_table, render
from ..search.schedule import left_after
from ..search.sparsity import LayerNorm, beyond_pattern, choose
from ..slimming.element_masks import Density, WeightMasks
from ..slimming.structure import KEY, Structure
from .calibration import calibrate
from .channel_hook import ChannelHook
from .prunable_weights import outputs_back, outputs_first, prunable_weights
from .resume import ResumesExactly, separate_loader
from .runner import (
    averaged_models,
    before_each_batch,
    check_loaded,
    check_whole,
    end_training,
    is_training,
    network_has_changed,
    on_main_process,
    optim_wrappers,
    optimizers,
    same_on_all_ranks,
)
from .saved import check_finetune_config, save_ratio, stems
from .settings import (
    check_unchanged,
    flag,
    named_arguments,
    one_of,
    read_ignore,
    read_overrides,
    read_shape,
    refuse_unknown,
)
from .sparse_state import (
    SPARSITY_KEY,
    pruned_before,
    put_masks,
    put_parameters,
    read_sparse_state,
    sparse_state,
)
from .sparsity_settings import (
    read_density,
    read_element_criterion,
    read_shapes,
    read_steps,
)
from .start import check_not_compiled, check_work_dir, warn_of_start

_STATE = dict(done=int, since=int, start=float, random=list)


@HOOKS.register_module()
class SparsityHook(ResumesExactly):
    """Prunes single weights inside any MMEngine runner.

    All weights of convolutions and linear layers are ranked in one list by a
    criterion, by default the Kronecker-factored curvature of Network Automatic
    Pruning (arXiv 2101.06608). The least important weights are set to zero, at
    once or in steps. The ratio of each layer follows from the list. Training
    keeps pruned weights at zero. Checkpoints hold the zeros, and the structure
    their number. Resuming continues exactly.

    Args:
        density (float): Ratio of the prunable weights that stays, such as
            0.15. Not allowed with ``pattern``.
        criterion (dict, optional): The criterion that scores weights, such as
            ``dict(type='Magnitude')``: one of
            :data:`mmgfp.registry.CRITERIA` that has scores of elements.
            Defaults to ``dict(type='KFAC')``.
        steps (int): After step t of k the density is ``density ** (t / k)``,
            or ``start * (density / start) ** (t / k)`` for a network that
            begins with the density ``start``. Scores are computed before each
            step. The first step runs before training. Defaults to 1.
        interval (int, optional): Optimiser steps between two steps.
        layer_norm (str): 'sum' to divide the scores of each layer by their
            sum, as in MLPrune's code; 'none' for scores in units of loss.
            Defaults to 'none'.
        min_density (float): Ratio of its weights that every layer keeps; at
            least one weight stays. Defaults to 0.
        block (Sequence[int]): Numbers of neighbouring output channels and
            input channels that are pruned together, such as (4, 1). Defaults
            to (1, 1).
        pattern (str, optional): '2:4' keeps two of four neighbouring inputs.
            Layers whose number of inputs it does not divide are not pruned.
        ignore (Sequence[str]): Patterns of layers whose weights stay, such as
            'backbone.layer1.*'. Defaults to ().
        after_target (str): 'stop' to end training (at the end of the epoch in
            epoch-based loops), 'train' to continue training. Defaults to
            'stop'.
        input_shape (Sequence[int], optional): (H, W) of the demo forward that
            finds the weights. Defaults to the size in the config's pipelines.
        compensate (bool): Whether each step also changes kept weights and
            biases so that outputs of layers change least; for criteria with
            curvature (KFAC). Defaults to False.
        finetune (dict, optional): Overrides for the fine-tuning config.

    Raises:
        ValueError: If an argument is invalid.
    """

    # Before the EMA hook loads weights and before the logger hook.
    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        density: float | None = None,
        criterion: Mapping[str, Any] | None = None,
        steps: int = 1,
        interval: int | None = None,
        layer_norm: LayerNorm = 'none',
        min_density: float = 0.0,
        block: Sequence[int] = (1, 1),
        pattern: str | None = None,
        ignore: Sequence[str] = (),
        after_target: str = 'stop',
        input_shape: Sequence[int] | None = None,
        compensate: bool = False,
        finetune: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        known = named_arguments(type(self), SparsityHook)
        refuse_unknown(
            *(type(self).__name__, unknown, known),
            criterion=criterion or dict(type='KFAC'),
        )
        one_of('layer_norm', layer_norm, get_args(LayerNorm))
        one_of('after_target', after_target, ('stop', 'train'))
        self.shapes = read_shapes(block, pattern, min_density)
        self.target = read_density(density, self.shapes.pattern)
        flag('compensate', compensate)
        self.compensate = compensate
        self.criterion = read_element_criterion(criterion, 'KFAC', compensate)
        self.steps = steps
        self._waits, self.interval = read_steps(
            steps, interval, at_once=self.criterion.when != 'training'
        )
        self.layer_norm = layer_norm
        self.ignore = read_ignore(ignore)
        self.after_target = after_target
        self.input_shape = read_shape(input_shape)
        self.finetune = read_overrides(finetune)

        self.masks: WeightMasks | None = None
        self.done = 0  # completed steps
        self._since = 0  # optimiser steps since the last step
        self._start = 1.0  # density before the first step
        self._stepped = False  # whether this batch ended an optimiser step
        self._density = 1.0
        self._structure = Structure({})
        self._resumed: dict[str, Any] = {}  # state of the loaded checkpoint

    # -- start ------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        """Check the runner."""
        if is_training(runner):
            check_whole(runner)
        for hook in runner.hooks:
            if isinstance(hook, ChannelHook):
                raise ValueError(
                    f'{type(hook).__name__} and {type(self).__name__} prune '
                    'the same network; expected one of them. Prune channels '
                    'first, then load the slim checkpoint and prune weights.'
                )

    def before_train(self, runner: Runner) -> None:
        """Find the prunable weights, and run the first step."""
        model = unwrap(runner.model)
        check_not_compiled(model)
        check_finetune_config(runner.cfg, self.finetune)
        run = cost_runner(self._shape(runner))
        was_training = model.training
        calls = record_calls(model.eval(), lambda: run(model))
        model.train(was_training)
        self._structure = self._with_cost(runner, count_cost(model, calls)[''])
        self._axes = prunable_weights(
            *(model, calls, run, self.ignore, self.shapes),
            plain=self.criterion.when == 'calibration',
            log=runner.logger.info,
        )
        self.masks = WeightMasks(model)
        pruned = {
            name: torch.zeros(model.get_parameter(name).shape) > 0
            for name in self._axes
        }
        pruned |= pruned_before(
            *(model, self._structure.density, self._resumed),
            warn=runner.logger.warning,
        )
        put_masks(runner, self.masks, pruned)
        for optimizer in optimizers(runner):
            optimizer.register_step_post_hook(self._after_step)
        separate_loader(runner.train_dataloader, runner.seed)
        self._density = self._left() / self._all()
        if self._resumed:
            self._resume(runner)
            return
        warn_of_start(runner, self)
        self._start = self._density
        self._check_possible(runner)
        if self.criterion.when == 'training':
            self.criterion.attach(model, UnitSpace([]))
        else:
            self._prune(runner)

    def _with_cost(
        self, runner: Runner, total: Mapping[str, int]
    ) -> Structure:
        """Returns the loaded network's structure, with its cost."""
        known = self._structure
        if not known.axes and builds_slim(runner.cfg):
            built = Structure.load(runner.cfg.model.structure)
            known = replace(built, density=known.density or built.density)
        if not known.cost_before:
            cost = {str(metric): float(total[metric]) for metric in METRICS}
            known = replace(known, cost_before=cost, cost_after=cost)
        return known

    def _resume(self, runner: Runner) -> None:
        self.done, self._since, self._start = (
            self._resumed[part] for part in ('done', 'since', 'start')
        )
        check_unchanged(self._settings, self._resumed.get('settings', {}))
        self.random.resume_from(self._resumed['random'])
        before_each_batch(runner, self.random.restore)
        if self.done >= self.steps:
            runner.logger.info('the density was reached before')
            self._finish(runner)
        elif self.criterion.when == 'training':
            self.criterion.attach(unwrap(runner.model), UnitSpace([]))

    @property
    def _settings(self) -> dict[str, Any]:
        """Returns arguments that a resumed run must not change."""
        return dict(
            density=self.target,
            steps=self.steps,
            interval=self.interval,
            block=list(self.shapes.block),
            pattern=list(self.shapes.pattern or ()),
            min_density=self.shapes.min_density,
            layer_norm=self.layer_norm,
            ignore=list(self.ignore),
            compensate=self.compensate,
            criterion=type(self.criterion).__name__,
        )

    def _check_possible(self, runner: Runner) -> None:
        """Raise if the density is met already or cannot be reached."""
        assert self.masks is not None
        if self.shapes.pattern is not None:
            # a network that is sparse already may still not have the pattern
            if not any(
                beyond_pattern(
                    outputs_first(self.masks.pruned[name], axis), self.shapes
                )
                for name, axis in self._axes.items()
            ):
                raise ValueError(
                    f'pattern={self.shapes.pattern} is already met by the '
                    'loaded weights. Load another checkpoint, or choose '
                    'another pattern.'
                )
        elif self._goal(self.steps) >= self._left():
            raise ValueError(
                f'the density is already met: {self._density:.4f} of the '
                f'prunable weights are left, density={self.target}. Load '
                'another checkpoint, or choose a smaller density.'
            )
        model = unwrap(runner.model)
        least = sum(
            self.shapes.least(
                outputs_first(model.get_parameter(name), axis).shape
            )
            for name, axis in self._axes.items()
        )
        # whole blocks of a pattern can always be pruned
        floors = self.shapes.min_density > self.target
        if floors if self.shapes.pattern else least > self._goal(self.steps):
            raise ValueError(
                f'density={self.target} cannot be reached: at least '
                f'{least / self._all():.4f} of the prunable weights stay with '
                f'min_density={self.shapes.min_density}, block='
                f'{self.shapes.block} and pattern={self.shapes.pattern}. '
                'Raise the density or lower the floors.'
            )
        check_work_dir(runner.work_dir, [self._stem])
        accumulation = min(
            int(getattr(wrapper, '_accumulative_counts', 1))
            for wrapper in optim_wrappers(runner).values()
        )
        most = math.ceil(runner.max_iters / accumulation)
        if self._waits * self.interval > most:
            raise ValueError(
                f'interval={self.interval}: {self.steps} steps need '
                f'{self._waits * self.interval} optimiser steps, but the '
                f'training has only {most} (max_iters={runner.max_iters}, '
                f'accumulative_counts={accumulation}). Lower steps or the '
                'interval, or train longer.'
            )

    # -- counting ---------------------------------------------------------

    @property
    def _stem(self) -> str:
        return stems('density', [self.target])[self.target]

    def _all(self) -> int:
        """Returns the number of prunable weights, pruned ones included."""
        assert self.masks is not None
        return sum(self.masks.pruned[name].numel() for name in self._axes)

    def _left(self) -> int:
        """Returns the number of prunable weights that are not pruned."""
        assert self.masks is not None
        gone = [int(self.masks.pruned[name].sum()) for name in self._axes]
        return self._all() - sum(gone)

    def _goal(self, step: int) -> int:
        """Returns the number of prunable weights after a step."""
        share = left_after(step, self.steps, self._start, self.target)
        return max(1, round(share * self._all()))

    def _shape(self, runner: Runner) -> tuple[int, int]:
        """Returns (H, W) for counting cost, from the structure if pruned."""
        if self._structure.input_shape:
            height, width = self._structure.input_shape
            return height, width
        return self.input_shape or config_shape(runner.cfg)

    # -- each iteration ---------------------------------------------------

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Reset the flag of an optimiser step."""
        super().before_train_iter(runner, batch_idx, data_batch)
        self._stepped = False

    def _after_step(self, *_: Any) -> None:
        self._stepped = True

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Prune after every ``interval`` optimiser steps."""
        if self.done < self.steps:
            self._since += self._stepped
            if self._since >= self.interval:
                self._prune(runner)
        runner.message_hub.update_scalar('train/density', self._density)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def _prune(self, runner: Runner) -> None:
        """Run a step: score all weights, and prune the lowest."""
        assert self.masks is not None
        model = unwrap(runner.model)
        if lost := [
            name
            for name in self._axes
            if not model.get_parameter(name).isfinite().all()
        ]:
            raise ValueError(
                f'weights are not finite after {runner.iter} iterations: '
                f'{", ".join(lost[:5])}. Either training has diverged: lower '
                'the learning rate, or clip gradients; or load_from holds them'
            )
        if self.criterion.when == 'calibration':
            layers = {layer_of(name) for name in self._axes}
            calibrate(runner, self.criterion, UnitSpace([]), layers)
        elif self.criterion.when == 'weights':
            self.criterion.attach(model, UnitSpace([]))
        scores = self.criterion.elements(list(self._axes))
        axes, pruned = self._axes, self.masks.pruned
        chosen = choose(
            {name: outputs_first(scores[name], axes[name]) for name in axes},
            {name: outputs_first(pruned[name], axes[name]) for name in axes},
            self._to_prune(),
            self.shapes,
            self.layer_norm,
        )
        packed = [np.packbits(gone).tobytes() for gone in chosen.values()]
        same_on_all_ranks(b''.join(packed), 'weights')
        gone = outputs_back(chosen, axes)
        if self.compensate:
            changed = sum(bool(where.any()) for where in gone.values())
            runner.logger.info(f'adapting {changed} layers')
            criterion = cast(Compensating, self.criterion)
            put_parameters(runner, criterion.compensated(gone))
        self.criterion.reset(np.ones(0, bool))
        put_masks(runner, self.masks, pruned | gone)
        self.done += 1
        self._since = 0
        self._density = self._left() / self._all()
        runner.logger.info(
            f'step {self.done} of {self.steps}: {self._left():,} of '
            f'{self._all():,} prunable weights left, density '
            f'{self._density:.4f}'
        )
        if self.done == self.steps:
            self._save(runner)
            self._finish(runner)

    def _to_prune(self) -> int | None:
        """Returns the number of weights of a step; None for the pattern."""
        if self.shapes.pattern and self.done + 1 == self.steps:
            return None
        return max(0, self._left() - self._goal(self.done + 1))

    # -- end --------------------------------------------------------------

    def _save(self, runner: Runner) -> None:
        assert self.masks is not None
        layers = {
            name: Density(gone.numel(), int((~gone).sum()))
            for name, gone in self.masks.pruned.items()
        }
        runner.logger.info(
            f'density of layers\n{render(density_table(layers))}'
        )
        on_main_process(f'saving {self._stem}', lambda: self._write(runner))

    def _write(self, runner: Runner) -> None:
        structure = self._current_structure(runner)
        path, *others = save_ratio(
            runner, structure, self._stem, self.finetune
        )
        names = ', '.join(os.path.basename(other) for other in others)
        runner.logger.info(f'saved {path} with {names}')

    def _finish(self, runner: Runner) -> None:
        """Stop pruning; training continues without its overhead, or ends."""
        self.criterion.detach()
        config = Path(runner.work_dir, f'{self._stem}_finetune.py')
        if config.is_file():
            runner.logger.info(f'to recover accuracy, train with {config}')
        if self.after_target == 'stop':
            end_training(runner, self.batch)

    def after_train(self, runner: Runner) -> None:
        """Warn if the density was not reached."""
        if self.masks is not None and self.done < self.steps:
            runner.logger.warning(
                f'training ended after step {self.done} of {self.steps}, '
                f'with density {self._density:.4f} instead of {self.target}: '
                'lower steps or the interval, or train longer'
            )

    # -- checkpoints ------------------------------------------------------

    def _current_structure(self, runner: Runner) -> Structure:
        assert self.masks is not None
        return replace(
            self._structure,
            architecture=type(unwrap(runner.model)).__name__,
            source=str(runner.cfg.filename or runner.experiment_name),
            input_shape=self._shape(runner),
            density=self.masks.density(),
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the structure and the state of pruning to a checkpoint."""
        if self.masks is None:
            return
        checkpoint[KEY] = self._current_structure(runner).to_dict()
        checkpoint[SPARSITY_KEY] = sparse_state(
            self.masks,
            done=self.done,
            since=self._since,
            start=self._start,
            settings=self._settings,
            random=self.random.states(),
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Cut the network before slim weights are loaded."""
        if is_training(runner):
            check_whole(runner)
        if KEY in checkpoint:
            structure = Structure.from_dict(checkpoint[KEY], 'the checkpoint')
            model = unwrap(runner.model)
            if not structure.fits_slim(model):
                structure.apply(model)
                for average in averaged_models(runner):
                    structure.apply(unwrap(average.module))
                network_has_changed(runner)
            self._structure = structure
        if runner._resume and SPARSITY_KEY in checkpoint:
            self._resumed = read_sparse_state(checkpoint[SPARSITY_KEY], _STATE)
        check_loaded(runner, checkpoint)
