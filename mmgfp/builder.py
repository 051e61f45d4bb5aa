"""The registered builder of slim networks."""

from __future__ import annotations

import os
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from .registry import MODELS
from .structure import Structure


@MODELS.register_module(name='PrunedModel')
def build_pruned_model(
    architecture: str, structure: str | os.PathLike, **kwargs: Any
) -> nn.Module:
    """Build the user's model and make it slim; returns it bare.

    In a config it replaces the model's type, everything else stays::

        model = dict(type='mmgfp.PrunedModel', architecture='RetinaNet',
                     structure='work_dirs/prune/flops_0.50.json')

    Args:
        architecture (str): Type of the model that was pruned.
        structure (str | os.PathLike): Structure file (.json), or a checkpoint
            that holds the structure.
        **kwargs: The model's own arguments.

    Raises:
        FileNotFoundError: If there is no such structure.
        ValueError: If it is damaged, of another version or does not fit; the
            message names the first layer that does not.
    """
    loaded = Structure.load(structure)
    model = ROOT_MODELS.build(dict(type=architecture, **kwargs))
    loaded.apply(model)
    _forget_pretrained(model)
    return model


def _forget_pretrained(model: nn.Module) -> None:
    """Full-size weights from elsewhere no longer fit."""
    for module in model.modules():
        init_cfg = getattr(module, 'init_cfg', None)
        if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
            setattr(module, 'init_cfg', None)  # noqa: B010
