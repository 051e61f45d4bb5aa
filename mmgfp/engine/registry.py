"""Registries of mmgfp, children of mmengine's: scope ``mmgfp``."""

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

HOOKS = Registry(
    'hook', parent=ROOT_HOOKS, scope='mmgfp', locations=['mmgfp.engine.hook']
)
MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='mmgfp',
    locations=['mmgfp.engine.builder'],
)
