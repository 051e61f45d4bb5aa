"""Registries of mmgfp, children of MMEngine's: scope ``mmgfp``.

MMEngine imports ``<scope>.registry`` where a config names the scope, so this
file stays beside the rooms.
"""

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
