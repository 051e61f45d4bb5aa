"""Label layers: int64 tensors that say which slot each element belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def canonical(layer: Tensor) -> Tensor:
    """Give axes along which nothing differs the stride 0."""
    shape = layer.shape
    for d, n in enumerate(shape):
        if n > 1 and layer.stride(d) != 0:
            first = layer.narrow(d, 0, 1)
            if bool((squeezed(layer) == squeezed(first, like=layer)).all()):
                layer = first.expand(shape)
    return layer


def squeezed(layer: Tensor, like: Tensor | None = None) -> Tensor:
    """Without the repetitions along axes of stride 0 (of ``like``)."""
    reference = layer if like is None else like
    for d, n in enumerate(layer.shape):
        if n > 1 and reference.stride(d) == 0:
            layer = layer.narrow(d, 0, 1)
    return layer


def along(layer: Tensor, axis: int) -> np.ndarray:
    """The labels along one axis at the origin of the others, (size,)."""
    for d in range(layer.dim()):
        if d != axis % layer.dim():
            layer = layer.narrow(d, 0, 1)
    return layer.reshape(-1).numpy()


def spread(labels: np.ndarray, axis: int, shape: Sequence[int]) -> Tensor:
    """Labels along one axis, the same everywhere else, shape ``shape``."""
    view = [1] * len(shape)
    view[axis] = len(labels)
    return (
        torch.from_numpy(np.ascontiguousarray(labels))
        .view(view)
        .expand(tuple(shape))
    )


def axis_labels(layers: Sequence[Tensor], axis: int, slots: int) -> np.ndarray:
    """All labels at each position of an axis, (n, k).

    Args:
        layers (Sequence[Tensor]): Label layers, one at least.
        axis (int): Of the layers.
        slots (int): Labels from here on are of no slots.

    Returns:
        np.ndarray: -1 for what is no slot.
    """
    columns = [np.full((layers[0].shape[axis], 0), -1)]
    for layer in map(canonical, layers):
        flat = squeezed(layer)
        if flat.shape[axis] == layer.shape[axis] and flat.numel():
            rows = flat.movedim(axis, 0).reshape(len(columns[0]), -1)
            columns.append(rows.numpy())
    found = np.concatenate(columns, axis=1)
    if not found.shape[1]:
        return np.full((len(found), 1), -1)
    return np.where(found < slots, found, -1)
