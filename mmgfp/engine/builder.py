"""The registered builder of slim networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmengine.model import PretrainedInit
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ..groups import ATTRIBUTE
from ..libraries.kinds import kind_of
from ..registry import MODELS
from ..slimming.structure import Structure


@MODELS.register_module(name='PrunedModel')
def build_pruned_model(
    architecture: str | type[nn.Module],
    structure: str | os.PathLike,
    **kwargs: Any,
) -> nn.Module:
    """Build the user's model and make it slim, without a wrapper.

    In a config it replaces the model's type, everything else stays::

        model = dict(type='mmgfp.PrunedModel', architecture='RetinaNet',
                     structure='work_dirs/prune/flops_0.50.json')

    Args:
        architecture (str | type): Type of the pruned model.
        structure (str | os.PathLike): Structure file (.json), or a checkpoint
            that holds the structure.
        **kwargs: The model's own arguments.

    Returns:
        nn.Module: The slim model.

    Raises:
        FileNotFoundError: If there is no such structure.
        ValueError: If it is damaged, of another version or does not fit; the
            message names the first layer that does not.
    """
    loaded = Structure.load(structure)
    model = ROOT_MODELS.build(dict(type=architecture, **kwargs))
    loaded.apply(model)
    _forget_pretrained(model)
    model._register_load_state_dict_pre_hook(_OnlySlimWeights(loaded))
    return model


class _OnlySlimWeights:
    """Hook that refuses weights of another width before a model loads them.

    Loaders of MMEngine skip weights that do not fit.

    Args:
        structure (Structure): Structure of the slim model.
    """

    def __init__(self, structure: Structure) -> None:
        self._widths = {
            key: (len(axis.keep), axis.size)
            for key, axis in structure.axes.items()
            if key[1] != ATTRIBUTE
        }

    def __call__(
        self, weights: Mapping[str, Tensor], prefix: str, *_: Any
    ) -> None:
        for (name, axis), (slim, full) in self._widths.items():
            shape = tuple(getattr(weights.get(prefix + name), 'shape', ()))
            if axis < len(shape) and shape[axis] != slim:
                state = 'the full one' if shape[axis] == full else 'another'
                raise ValueError(
                    f'the weights do not fit the slim network: {name} has '
                    f'shape {shape}, expected {slim} along axis {axis}. They '
                    f'are those of {state}; expected weights trained with '
                    'this structure, or the checkpoint saved with it.'
                )


def _forget_pretrained(model: nn.Module) -> None:
    """Remove pretrained weights from ``init_cfg``: they do not fit."""
    for module in model.modules():
        found = getattr(module, 'init_cfg', None)
        steps = found if isinstance(found, (list, tuple)) else [found]
        kept = [step for step in steps if not _loads_weights(step)]
        if len(kept) < len(steps):
            setattr(module, 'init_cfg', kept or None)  # noqa: B010


def _loads_weights(init_cfg: Any) -> bool:
    kind = kind_of(init_cfg, WEIGHT_INITIALIZERS)
    return isinstance(kind, type) and issubclass(kind, PretrainedInit)
