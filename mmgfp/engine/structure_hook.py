"""The hook that keeps a slim network and its structure together."""

from __future__ import annotations

import os

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import HOOKS
from ..slimming.structure import KEY, Structure
from .runner import check_loaded


@HOOKS.register_module()
class StructureHook(Hook):
    """Puts the structure of a slim network into its checkpoints.

    The configs that pruning generates have it, so that what they train can be
    used with the config of the full network, too, and outlives the structure
    file.

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

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Complain where the runner would go on with random weights."""
        cut = self._structure.axes
        check_loaded(
            runner, checkpoint, lambda name, axis: (name, axis) not in cut
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add it."""
        checkpoint[KEY] = self._structure.to_dict()
