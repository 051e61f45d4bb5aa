"""Label layers: int64 tensors with the slot of each element."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def canonical(layer: Tensor) -> Tensor:
    """Returns the layer with stride 0 along axes without differences."""
    shape = layer.shape
    for d, n in enumerate(shape):
        if n > 1 and layer.stride(d) != 0:
            first = layer.narrow(d, 0, 1)
            if bool((squeezed(layer) == squeezed(first, like=layer)).all()):
                layer = first.expand(shape)
    return layer


def squeezed(layer: Tensor, like: Tensor | None = None) -> Tensor:
    """Returns the layer with size 1 along axes of stride 0 (of ``like``)."""
    reference = layer if like is None else like
    for d, n in enumerate(layer.shape):
        if n > 1 and reference.stride(d) == 0:
            layer = layer.narrow(d, 0, 1)
    return layer


def along(layer: Tensor, axis: int) -> np.ndarray:
    """Returns the labels along an axis at index 0 of the others, (size,)."""
    for d in range(layer.dim()):
        if d != axis % layer.dim():
            layer = layer.narrow(d, 0, 1)
    return layer.reshape(-1).numpy()


def spread(labels: np.ndarray, axis: int, shape: Sequence[int]) -> Tensor:
    """Returns labels (size,) along one axis, expanded to ``shape``."""
    view = [1] * len(shape)
    view[axis] = len(labels)
    return (
        torch.from_numpy(np.ascontiguousarray(labels))
        .view(view)
        .expand(tuple(shape))
    )


def axis_labels(layers: Sequence[Tensor], axis: int, slots: int) -> np.ndarray:
    """Returns all labels at each position of an axis, (n, k).

    Args:
        layers (Sequence[Tensor]): At least one label layer.
        axis (int): Axis of the layers.
        slots (int): Number of slots; larger labels are opaque.

    Returns:
        np.ndarray: Slots; -1 for opaque labels.
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
