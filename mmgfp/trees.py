"""Lists, tuples and dicts with tensors in them, however nested.

The only file that knows torch's private module for them, which grows with its
versions.
"""

from __future__ import annotations

from typing import Any

from torch.utils._pytree import tree_flatten, tree_map_only

__all__ = ['tree_leaves', 'tree_map_only']


def tree_leaves(tree: Any) -> list[Any]:
    """What is in a tree, in order."""
    return tree_flatten(tree)[0]  # torch 2.0 has no tree_leaves
