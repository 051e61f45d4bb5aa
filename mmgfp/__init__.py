"""mmgfp: prunes MMDetection and MMPretrain models from their own configs.

Importing it registers ``mmgfp.PruningHook``, ``mmgfp.SearchHook``,
``mmgfp.SparsityHook``, ``mmgfp.PrunedModel`` and ``mmgfp.StructureHook`` if
MMEngine is imported. Otherwise the names below are imported when one of them
is used, or when MMEngine looks up a type of the scope ``mmgfp``
(:mod:`mmgfp.registry`), so that ``mmgfp --help`` imports neither PyTorch nor
MMEngine. What does not need MMEngine works without it.
"""

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .utils.errors import NO_MMENGINE
from .version import __version__

if TYPE_CHECKING:
    from .engine.builder import build_pruned_model
    from .engine.hook import FisherPruningHook, PruningHook
    from .engine.search_hook import SearchHook
    from .engine.sparsity_hook import SparsityHook
    from .engine.structure_hook import StructureHook
    from .groups import ChannelGroup
    from .search.prunable import Prunable
    from .search.pruner import Pruner
    from .slimming.structure import Structure
    from .tracing.finder import find_groups

_MODULES = {
    'ChannelGroup': 'groups',
    'Prunable': 'search.prunable',
    'Pruner': 'search.pruner',
    'Structure': 'slimming.structure',
    'find_groups': 'tracing.finder',
}
_MODULES_WITH_MMENGINE = {
    'build_pruned_model': 'engine.builder',
    'FisherPruningHook': 'engine.hook',
    'PruningHook': 'engine.hook',
    'SearchHook': 'engine.search_hook',
    'SparsityHook': 'engine.sparsity_hook',
    'StructureHook': 'engine.structure_hook',
}

__all__ = [
    'ChannelGroup',
    'Prunable',
    'Pruner',
    'Structure',
    '__version__',
    'find_groups',
]
if find_spec('mmengine'):
    __all__ += [
        'FisherPruningHook',
        'PruningHook',
        'SearchHook',
        'SparsityHook',
        'StructureHook',
        'build_pruned_model',
    ]


@cache
def _import_names() -> None:
    modules = dict(_MODULES)
    try:
        import mmengine  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != 'mmengine':  # MMEngine is installed but broken
            raise
    else:
        modules.update(_MODULES_WITH_MMENGINE)
        import_module('.libraries.config', __name__)  # for bases of configs
    for name, module in modules.items():
        globals()[name] = getattr(import_module(f'.{module}', __name__), name)


def __getattr__(name: str) -> Any:
    if not name.startswith('_'):
        _import_names()
        if name in globals():  # one of the names, or a room
            return globals()[name]
    if name in _MODULES_WITH_MMENGINE:
        raise ImportError(f'mmgfp.{name} {NO_MMENGINE}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if sys.modules.get('mmengine'):
    _import_names()
