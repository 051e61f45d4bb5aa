"""Building models of each library, and reading their configs.

The libraries are imported inside functions, so each may be absent.
"""

from __future__ import annotations

import copy
import os
from typing import cast

from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..slimming.checkpoint import load_plain_checkpoint, weights_of
from ..slimming.structure import KEY, Structure
from .kinds import kind_of
from .loading import load_weights

# Libraries of convolutional networks, for which a small image gives the same
# channel groups, and libraries of networks that may require one size.
CONVOLUTIONAL = ('mmdet', 'mmseg')
CLASSIFICATION = ('mmpretrain', 'mmcls')
LIBRARIES = (*CONVOLUTIONAL, *CLASSIFICATION, 'mmpose')


def use_scope(config: Config) -> None:
    """Set the scope of a config as the current one.

    Registries then find the modules of its library by name.
    """
    scope = config.get('default_scope', 'mmengine')
    # configs of pure Python have None, but their classes look up names, for
    # which the scope of another config may be wrong
    init_default_scope(scope or config_library(config) or 'mmengine')


def build_model(config: Config) -> nn.Module:
    """Build the model of a config, in eval mode on the CPU.

    Args:
        config (Config): Config of any library; it need not import mmgfp.
    """
    use_scope(config)
    # a deep copy, because some models write into their settings
    model_config = copy.deepcopy(config.model)
    if config.get('data_preprocessor') is not None:
        model_config.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(model_config)
    model.eval()  # not chained: some classes return None
    return model


def load_model(
    config: Config, checkpoint: str | os.PathLike | None = None
) -> nn.Module:
    """Build a model and load weights, also slim ones.

    The config may be the pruning config (with the structure in the
    checkpoint), the generated config, or that of an unpruned network.

    Args:
        config (Config): A config of any library.
        checkpoint (str | os.PathLike, optional): Weights. Defaults to None.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it cannot be read or does not fit the model.
    """
    model = build_model(config)
    if checkpoint is None:
        return model
    loaded = load_plain_checkpoint(checkpoint)
    if KEY in loaded and not builds_slim(config):
        where = os.fspath(checkpoint)
        Structure.from_dict(loaded[KEY], where).apply(model)
    load_weights(model, weights_of(loaded, checkpoint), checkpoint)
    return model


def build_full_model(config: Config) -> nn.Module:
    """Build the full network of a config, also of a slim one.

    Args:
        config (Config): A generated config, or one of a full network.
    """
    if not builds_slim(config):
        return build_model(config)
    full = copy.deepcopy(config)
    full.model.type = full.model.pop('architecture')
    full.model.pop('structure')
    return build_model(full)


def builds_slim(config: Config) -> bool:
    """Returns whether the model of a config is slim, as in generated ones."""
    return kind_of(config.model, MODELS) is MODELS.get('mmgfp.PrunedModel')


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the user's model inside wrappers (distributed, TTA)."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(nn.Module, model.module)
    return model


def config_library(config: Config) -> str:
    """Returns the top-level package of a config's library, or ''.

    Configs of pure Python may have no default scope; then the class of the
    model decides.
    """
    scope = config.get('default_scope')
    if scope in LIBRARIES:
        return scope
    model = config.get('model') or {}
    if 'architecture' in model:  # of a slim network
        model = dict(model, type=model['architecture'])
    kind = kind_of(model, MODELS)
    return library_of(kind) if isinstance(kind, type) else ''


def library(model: nn.Module) -> str:
    """Returns the top-level package of a model's OpenMMLab base class."""
    return library_of(type(model))


def library_of(kind: type) -> str:
    """Returns the top-level package of a class's OpenMMLab base, or ''."""
    return next((p for p in packages_of(kind) if p in LIBRARIES), '')


def packages_of(kind: type) -> list[str]:
    """Returns top-level packages of a class and of its bases, in order."""
    return [base.__module__.partition('.')[0] for base in kind.__mro__]
