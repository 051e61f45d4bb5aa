"""The picture of kept channels: the right layers, and a real file."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import image
from nets import FlattenedLinear, GroupNorm, InvertedResidual, Transposed, run
from oracles import kept
from torch import nn

from mmgfp.report.picture import (
    draw_kept_channels,
    kept_channels,
    shared_lanes,
)
from mmgfp.slimming.history import Scores, no_scores
from mmgfp.slimming.structure import Axis, Structure
from mmgfp.slimming.surgery import named_tensors
from mmgfp.tracing.finder import find_groups


def structure_of(net, count: int = 1) -> tuple[Structure, nn.Module]:
    """The first units of every group removed."""
    torch.manual_seed(0)
    model = net()
    groups = find_groups(model, run, images=2)
    removal = {g.name: list(range(count)) for g in groups if not g.frozen}
    tensors = named_tensors(model)
    axes = {
        key: Axis(tensors[key[0]].shape[key[1]], stay)
        for key, stay in kept(model, groups, removal).items()
    }
    structure = Structure(
        axes,
        net.__name__,
        '',
        (16, 16),
        {'flops': 8.0, 'params': 4.0, 'acts': 2.0},
        {'flops': 4.0, 'params': 3.0, 'acts': 1.0},
    )
    return structure, model


EXPECTED = {
    InvertedResidual: [
        ('stem', 8, 7),
        ('expand', 16, 15),
        ('depthwise', 16, 15),
        ('project', 8, 7),
    ],
    # the norms lose channels too, but are no layers of their own
    GroupNorm: [('conv1', 8, 6), ('conv2', 6, 5)],
    FlattenedLinear: [('conv', 6, 5), ('fc1', 10, 9)],
    # outputs of a transposed convolution are on the weight's second axis
    Transposed: [('conv1', 8, 7), ('up', 6, 4), ('grouped', 9, 6)],
}


@pytest.mark.parametrize('net', EXPECTED, ids=lambda net: net.__name__)
def test_layers(net):
    structure, model = structure_of(net)
    assert kept_channels(structure, model) == EXPECTED[net]
    structure.apply(model)  # a slim model tells the same
    assert kept_channels(structure, model) == EXPECTED[net]


def test_picture(tmp_path):
    path = tmp_path / 'flops_0.50.png'
    structure, model = structure_of(InvertedResidual)
    draw_kept_channels(structure, model, path)
    assert os.listdir(tmp_path) == [path.name]
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 600
    colours = set(map(tuple, pixels.reshape(-1, 3).tolist()))
    assert (0x00, 0x72, 0xB2) in colours  # kept
    assert (0xC9, 0xCE, 0xD6) in colours  # removed


def test_shared_channels(tmp_path):
    """Groups whose rows overlap have lanes of their own."""
    layers = ['a', 'b', 'c', 'd', 'e', 'f']
    groups = [['c', 'a'], ['b', 'd'], ['e', 'f'], ['f'], ['g']]
    assert shared_lanes(layers, groups) == [
        (0, [0, 2]),
        (1, [1, 3]),
        (0, [4, 5]),
    ]
    assert shared_lanes(layers, []) == []

    structure, model = structure_of(InvertedResidual)
    plain, marked = tmp_path / 'plain.png', tmp_path / 'marked.png'
    draw_kept_channels(structure, model, plain)
    group = no_scores(['stem', 'project'], np.ones(8, bool))
    scores = Scores('acts', dict(stem=group))
    draw_kept_channels(replace(structure, scores=scores), model, marked)
    images = [image.imread(path) for path in (plain, marked)]
    assert images[0].shape == images[1].shape
    # nothing but the marks is blue so far to the right
    edge = images[1][:, -60:, :3]
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    assert (abs(edge - blue) < 0.01).all(-1).any()


def test_nothing_removed(tmp_path):
    path = tmp_path / 'empty.png'
    draw_kept_channels(Structure({}, 'Net'), nn.Conv2d(3, 4, 1), path)
    assert image.imread(path).size


def test_interrupted_drawing_leaves_no_final_name(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    structure, model = structure_of(InvertedResidual)
    monkeypatch.setattr(os, 'replace', interrupt)
    path = tmp_path / 'a.png'
    with pytest.raises(KeyboardInterrupt):
        draw_kept_channels(structure, model, path)
    assert not path.exists()
