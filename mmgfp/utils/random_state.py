"""The state of all random generators, as plain types."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Returns the states of Python's, NumPy's and torch's generators."""
    version, keys, gauss = random.getstate()
    kind, words, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        'python': [version, list(keys), gauss],
        'numpy': [
            kind,
            torch.from_numpy(np.asarray(words).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all()
        if torch.cuda.is_available()
        else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore the states that :func:`random_state` returned."""
    version, keys, gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    kind, words, *rest = state['numpy']
    words = words.cpu().numpy().astype(np.uint32)
    np.random.set_state((kind, words, *rest))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] and torch.cuda.device_count() == len(state['cuda']):
        torch.cuda.set_rng_state_all([s.cpu() for s in state['cuda']])
