"""Which groups are looked at first where a slim network goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from nets import Net, conv, run
from torch import nn

from mmgfp.slimming.positions import axis_sizes, kept_positions
from mmgfp.slimming.surgery import cut_model
from mmgfp.tracing.group_building import build_groups
from mmgfp.tracing.rules import find_rule
from mmgfp.tracing.selfcheck import compare_outputs, mask_consumers
from mmgfp.tracing.suspects import suspects
from mmgfp.tracing.trace import trace_labels
from mmgfp.utils.copies import shared_copy


class Row(Net):
    """Layers in a row; some multiply what they make by their width."""

    def __init__(self, *bad, raises=False):
        super().__init__()
        self.bad, self.raises = bad, raises
        self.first = conv(3, 6)
        self.layers = nn.ModuleList(conv(6, 6) for _ in range(6))
        self.last = conv(6, 4)

    def forward(self, x):
        x = self.first(x)
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x))
            if i in self.bad:
                width = len(layer.bias.tolist())  # torch does not see it
                assert width == 6 or not self.raises
                x = x * width
        return self.last(x)


def found(model):
    """For each place, without two units of each group."""
    model = model.eval()
    trace = trace_labels(model, lambda: run(model), find_rule)
    groups = [g for g in build_groups(trace) if not g.frozen]
    gone = [np.array([1, 4])] * len(groups)
    masked, slim = shared_copy(model), shared_copy(model)
    mask_consumers(masked, groups, gone)
    cut_model(slim, kept_positions(groups, gone, axis_sizes(slim, groups)))
    masked = None if model.raises else masked
    hooks = [len(m._forward_pre_hooks) for m in slim.modules()]
    places = suspects(slim, masked, groups, gone, run, compare_outputs)
    assert [len(m._forward_pre_hooks) for m in slim.modules()] == hooks
    return places


@pytest.mark.parametrize('bad', [[2], [0, 3], [1, 2, 5]])
def test_every_place_where_something_differs(bad):
    """Also behind the first one."""
    torch.manual_seed(0)
    assert [names[0] for names in found(Row(*bad))] == [
        f'layers.{i}' for i in bad
    ]


@pytest.mark.parametrize('bad', [0, 3, 5])
def test_layers_that_ran_before_an_error(bad):
    (names,) = found(Row(bad, raises=True))
    assert f'layers.{bad}' in names
    assert len(names) <= 3


def test_the_end_where_nothing_is_seen():
    (names,) = found(Row())
    assert names[0] == 'layers.5'
