"""What the label tracer tells about single operations."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mmgfp.tracing.labels import LabelTracer
from mmgfp.tracing.rules import find_rule
from mmgfp.tracing.rules_extension import watch_compiled
from mmgfp.tracing.trace import learned


class Weights(nn.Module):
    """Parameters to label, used as values."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.rand(shape)))


def labels_of(model, compute) -> tuple[LabelTracer, list[np.ndarray]]:
    """The label layers of a result, dense, and the tracer."""
    tracer = LabelTracer(model, find_rule)
    with torch.no_grad(), watch_compiled(tracer), tracer:
        out = compute()
    return tracer, [layer.numpy() for layer in tracer.layers(out)]


def coupled(tracer: LabelTracer) -> set[frozenset[tuple]]:
    """Pairs of slots, written out."""
    edges = learned(tracer).edges.T
    return {
        frozenset(tracer.table.describe(slot) for slot in pair)
        for pair in edges
    }


def pair(*slots: tuple[str, int, int]) -> frozenset:
    return frozenset(slots)


def frozen(tracer: LabelTracer) -> dict[tuple, str]:
    result = learned(tracer)
    return {
        tracer.table.describe(slot): reason
        for slots, reason in result.frozen
        for slot in slots
    }
