"""The hook that keeps a slim network and its structure together."""

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
    """Puts the structure of a slim network into its checkpoints.

    The configs that pruning generates have it, so that what they train can be
    used with the config of the full network, too, and outlives the structure
    file. Where single weights were pruned, it keeps them zero.

    Weights have to fit the slim network. Layers that the config has changed
    where pruning has cut nothing, such as a head for other classes, start
    anew, with a warning.

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
        self._resumed: dict[str, Any] = {}  # of a checkpoint that was loaded

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
        """Complain where the runner would go on with random weights."""
        cut = self._structure.axes
        if runner._resume and SPARSITY_KEY in checkpoint:
            self._resumed = read_sparse_state(checkpoint[SPARSITY_KEY])
        check_loaded(
            runner, checkpoint, lambda name, axis: (name, axis) not in cut
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add it, unless a hook that prunes further has added its own."""
        if KEY in checkpoint:
            return
        structure = self._structure
        if self._masks is not None:
            structure = replace(structure, density=self._masks.density())
            checkpoint[SPARSITY_KEY] = sparse_state(self._masks)
        checkpoint[KEY] = structure.to_dict()
