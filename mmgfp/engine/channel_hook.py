"""Base class of hooks that prune channels."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine import dist
from mmengine.runner import Runner

from ..cost.model import Metric
from ..groups import ChannelGroup
from ..libraries.models import unwrap
from ..libraries.pipeline import input_shape as config_shape
from ..search.prunable import Prunable
from ..slimming.structure import KEY, Structure
from ..utils.errors import type_and_line
from .resume import ResumesExactly
from .runner import (
    averaged_models,
    check_loaded,
    check_whole,
    end_training,
    is_training,
    network_has_changed,
)
from .saved import save_ratio
from .start import prepare_groups


class ChannelHook(ResumesExactly, ABC):
    """Finds channel groups, and stores the structure in checkpoints.

    Args:
        scope (str): 'all' or 'internal'.
        ignore (Sequence[str]): Patterns of layers.
        input_shape (tuple[int, int], optional): (H, W) for counting cost.
            Defaults to the size in the config's pipelines.
        finetune (Mapping): Overrides for the fine-tuning config.
        after_target (str): 'stop' to end training when the network is slim,
            or 'train' to continue.
        report (bool): Whether to write a page when training ends.
    """

    # Before the EMA hook loads weights and before the logger hook.
    priority = 'ABOVE_NORMAL'

    #: key of a checkpoint that says how to resume
    state_key = ''

    def __init__(
        self,
        scope: str,
        ignore: Sequence[str],
        input_shape: tuple[int, int] | None,
        finetune: Mapping[str, Any],
        after_target: str,
        report: bool,
    ) -> None:
        super().__init__()
        self.scope = scope
        self.ignore = ignore
        self.input_shape = input_shape
        self.finetune = finetune
        self.after_target = after_target
        self.report = report
        # of a checkpoint that was loaded
        self._structure: Structure | None = None
        self._groups: list[ChannelGroup] | None = None
        self._resumed: dict[str, Any] = {}

    def before_run(self, runner: Runner) -> None:
        """Check the runner.

        Raises:
            ValueError: If another hook prunes channels of the same network.
        """
        if not is_training(runner):
            return
        check_whole(runner)
        hooks = [h for h in runner.hooks if isinstance(h, ChannelHook)]
        if len(hooks) > 1:
            raise ValueError(
                f'{" and ".join(type(hook).__name__ for hook in hooks)} prune '
                'the same network; expected one of them. Use the others in '
                'later configs, with load_from'
            )

    @abstractmethod
    def read_state(self, state: Any) -> dict[str, Any]:
        """Returns the checked state of a checkpoint, under ``state_key``."""

    def _find_groups(self, runner: Runner) -> list[ChannelGroup]:
        return prepare_groups(
            unwrap(runner.model),
            self._shape(runner),
            self.scope,
            self.ignore,
            runner.logger,
        )

    def _shape(self, runner: Runner) -> tuple[int, int]:
        """Returns (H, W) for counting cost, the same for a whole run."""
        if self._structure is not None and self._structure.input_shape:
            height, width = self._structure.input_shape
            return height, width
        return self.input_shape or config_shape(runner.cfg)

    def _structure_of(self, runner: Runner, net: Prunable) -> Structure:
        return net.structure(
            source=str(runner.cfg.filename or runner.experiment_name),
            input_shape=self._shape(runner),
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Cut the network before slim weights are loaded."""
        if is_training(runner):
            check_whole(runner)
        if KEY in checkpoint:
            self._make_slim(runner, checkpoint)
        check_loaded(runner, checkpoint)

    def _make_slim(
        self, runner: Runner, checkpoint: Mapping[str, Any]
    ) -> None:
        structure = Structure.from_dict(checkpoint[KEY], 'the checkpoint')
        if structure.density and is_training(runner):
            runner.logger.warning(
                f'{type(self).__name__} does not keep the pruned weights of '
                'the loaded checkpoint zero. Prune channels first, then '
                'weights'
            )
        model = unwrap(runner.model)
        structure.check(model)
        if runner._resume and self.state_key in checkpoint:
            self._resumed = self.read_state(checkpoint[self.state_key])
        self._structure = structure
        if is_training(runner):
            self._groups = self._find_groups(runner)
        structure.apply(model)
        for average in averaged_models(runner):
            structure.apply(unwrap(average.module))
        network_has_changed(runner)

    def _write(
        self, runner: Runner, net: Prunable, metric: Metric, stem: str
    ) -> None:
        """Write the files of a ratio; called by the main process."""
        structure = self._structure_of(runner, net)
        path, *others = save_ratio(runner, structure, stem, self.finetune)
        names = ', '.join(os.path.basename(other) for other in others)
        ratio = net.ratio(metric)
        runner.logger.info(f'saved {path}, at {ratio:.3f}, with {names}')

    def _log_next(self, runner: Runner, stem: str) -> None:
        config = Path(runner.work_dir, f'{stem}_finetune.py')
        if config.is_file():
            runner.logger.info(f'to recover accuracy, train with {config}')

    def _stop_if_wanted(self, runner: Runner) -> None:
        if self.after_target == 'stop':
            end_training(runner, self.batch)

    def _report(self, runner: Runner) -> None:
        """Write the page about the run if ``report`` is true."""
        if not self.report or not dist.is_main_process():
            return
        # other code may raise any error; the training has succeeded
        try:
            from ..report.page import write_report  # matplotlib may be missing

            path = write_report(runner.work_dir)
        except Exception as error:
            runner.logger.warning(
                f'the report was not written: {type_and_line(error)}'
            )
        else:
            runner.logger.info(f'saved {path}')
