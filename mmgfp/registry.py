"""Registries of mmgfp, children of MMEngine's: scope ``mmgfp``.

MMEngine imports ``<scope>.registry`` where a config names the scope, so this
file stays beside the folders.
"""

from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

HOOKS = Registry(
    'hook',
    parent=ROOT_HOOKS,
    scope='mmgfp',
    locations=[
        'mmgfp.engine.hook',
        'mmgfp.engine.search_hook',
        'mmgfp.engine.sparsity_hook',
        'mmgfp.engine.structure_hook',
    ],
)
MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='mmgfp',
    locations=['mmgfp.engine.builder'],
)

# Classes that score channels. Every file in mmgfp/criteria adds its own; other
# packages use @CRITERIA.register_module().
CRITERIA = Registry('criterion', scope='mmgfp')

_folder = import_module('mmgfp.criteria')
for _file in iter_modules(_folder.__path__, f'{_folder.__name__}.'):
    for _kind in vars(import_module(_file.name)).values():
        _own = getattr(_kind, '__module__', '') == _file.name
        if _own and hasattr(_kind, 'when') and not isabstract(_kind):
            CRITERIA.register_module(module=_kind)

# Classes that choose widths; other packages use @SEARCHES.register_module().
SEARCHES = Registry('search', scope='mmgfp')

_folder = import_module('mmgfp.search')
for _file in iter_modules(_folder.__path__, f'{_folder.__name__}.'):
    for _kind in vars(import_module(_file.name)).values():
        _own = getattr(_kind, '__module__', '') == _file.name
        _known = hasattr(_kind, 'start') and hasattr(_kind, 'widths')
        if _own and _known and not getattr(_kind, '_is_protocol', False):
            SEARCHES.register_module(module=_kind)
