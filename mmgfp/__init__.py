"""mmgfp: prunes MMDetection and MMPretrain models from their own configs.

Importing it registers ``mmgfp.PruningHook``, ``mmgfp.SparsityHook``,
``mmgfp.PrunedModel`` and ``mmgfp.StructureHook`` where MMEngine is installed.
The rest works without.
"""

from typing import Any

from .groups import ChannelGroup
from .search.prunable import Prunable
from .search.pruner import Pruner
from .slimming.structure import Structure
from .tracing.finder import find_groups
from .version import __version__

_OF_MMENGINE = (
    'FisherPruningHook',
    'PruningHook',
    'SearchHook',
    'SparsityHook',
    'StructureHook',
    'build_pruned_model',
)

__all__ = [
    'ChannelGroup',
    'Prunable',
    'Pruner',
    'Structure',
    '__version__',
    'find_groups',
]

try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != 'mmengine':  # MMEngine is installed but broken
        raise
else:
    from .engine.builder import build_pruned_model
    from .engine.hook import FisherPruningHook, PruningHook
    from .engine.search_hook import SearchHook
    from .engine.sparsity_hook import SparsityHook
    from .engine.structure_hook import StructureHook

    __all__ += [
        'FisherPruningHook',
        'PruningHook',
        'SearchHook',
        'SparsityHook',
        'StructureHook',
        'build_pruned_model',
    ]


def __getattr__(name: str) -> Any:
    if name in _OF_MMENGINE:
        raise ImportError(
            f'mmgfp.{name} needs MMEngine, which is not installed. Use '
            '`pip install onedl-mmengine`, or `pip install mmengine` beside '
            'the original distributions of OpenMMLab'
        )
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
