"""mmgfp: prunes MMDetection and MMPretrain models from their own configs.

Importing it registers ``mmgfp.FisherPruningHook``, ``mmgfp.PrunedModel`` and
``mmgfp.StructureHook``.
"""

from .builder import build_pruned_model
from .finder import find_groups
from .groups import ChannelGroup
from .hook import FisherPruningHook
from .pruner import GroupFisherPruner
from .structure import Structure
from .structure_hook import StructureHook
from .version import __version__

__all__ = [
    'ChannelGroup',
    'FisherPruningHook',
    'GroupFisherPruner',
    'Structure',
    'StructureHook',
    '__version__',
    'build_pruned_model',
    'find_groups',
]
