"""The hook that stores the structure of a slim network in checkpoints."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..libraries.models import unwrap
from ..registry import HOOKS
from ..slimming.element_masks import WeightMasks
from ..slimming.structure import KEY, Structure
from .runner import check_loaded
from .sparse_state import (
    SPARSITY_KEY,
    pruned_before,
    put_masks,
    read_sparse_state,
    sparse_state,
)


@HOOKS.register_module()
class StructureHook(Hook):
    """Adds the structure of a slim network to its checkpoints.

    It is part of the configs that pruning generates. Their checkpoints can be
    used with the config of the full network, too, and without the structure
    file. It keeps pruned single weights at zero.

    Weights must fit the slim network. Layers without cuts that the config has
    changed, such as a head for other classes, start from their initial
    weights, with a warning; not if the number of channels between two layers
    differs.

    Args:
        structure (str | os.PathLike): Structure file (.json), or a checkpoint
            that holds the structure.

    Raises:
        FileNotFoundError: If there is no such structure.
        ValueError: If it is damaged or of another version.
    """

    def __init__(self, structure: str | os.PathLike) -> None:
        self._structure = Structure.load(structure)
        self._masks: WeightMasks | None = None
        self._resumed: dict[str, Any] = {}  # state of the loaded checkpoint

    def before_train(self, runner: Runner) -> None:
        """Keep pruned weights at zero."""
        if self._structure.density:
            model = unwrap(runner.model)
            self._masks = WeightMasks(model)
            pruned = pruned_before(
                *(model, self._structure.density, self._resumed),
                warn=runner.logger.warning,
            )
            put_masks(runner, self._masks, pruned)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise if weights do not fit, which the runner only logs."""
        cut = self._structure.axes
        if runner._resume and SPARSITY_KEY in checkpoint:
            self._resumed = read_sparse_state(checkpoint[SPARSITY_KEY])
        check_loaded(
            runner, checkpoint, lambda name, axis: (name, axis) not in cut
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the structure unless another hook has added its own."""
        if KEY in checkpoint:
            return
        structure = self._structure
        if self._masks is not None:
            structure = replace(structure, density=self._masks.density())
            checkpoint[SPARSITY_KEY] = sparse_state(self._masks)
        checkpoint[KEY] = structure.to_dict()
