"""mmgfp: prunes MMDetection and MMPretrain models from their own configs.

Importing it registers ``mmgfp.FisherPruningHook`` and ``mmgfp.PrunedModel``.
"""

from .builder import build_pruned_model
from .finder import find_groups
from .groups import ChannelGroup
from .hook import FisherPruningHook
from .pruner import GroupFisherPruner
from .structure import Structure
from .version import __version__

__all__ = [
    'ChannelGroup',
    'FisherPruningHook',
    'GroupFisherPruner',
    'Structure',
    '__version__',
    'build_pruned_model',
    'find_groups',
]
