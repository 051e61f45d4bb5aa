"""Figures of the channels that pruning kept."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..slimming.structure import Structure
from .figures import BLUE, CYCLE, GREY, new_figure, save_figure


def kept_channels(
    structure: Structure, model: nn.Module
) -> list[tuple[str, int, int]]:
    """Returns (layer, original, kept) output channels of pruned layers.

    The layers are convolutions and linear layers in the order of the model.

    Args:
        structure (Structure): Of the slim network.
        model (nn.Module): The network, slim or not.
    """
    rows = []
    for layer, module in model.named_modules():
        if not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        axis, repeat = 0, 1.0
        if isinstance(module, _ConvTransposeNd):
            axis = 1 if module.groups == 1 else 0
            # a group of inputs may make more outputs, or fewer
            repeat = module.out_channels / module.weight.shape[axis]
        entry = structure.axes.get((f'{layer}.weight', axis))
        if entry is not None:
            rows.append(
                (
                    layer,
                    round(entry.size * repeat),
                    round(len(entry.keep) * repeat),
                )
            )
    return rows


def draw_kept_channels(
    structure: Structure,
    model: nn.Module,
    path: str | os.PathLike,
) -> None:
    """Draw bars of kept and pruned channels, one row per layer, as PNG.

    Lines at the right join layers of one channel group, if the structure has
    the groups.

    Args:
        structure (Structure): Of the slim network.
        model (nn.Module): The network, slim or not.
        path (str | os.PathLike): Where to write; complete or not at all.
    """
    rows = kept_channels(structure, model)
    names = [row[0] for row in rows]
    groups = structure.scores.groups if structure.scores else {}
    lanes = shared_lanes(names, [g.layers for g in groups.values()])
    figure = new_figure(9, 1.6 + 0.19 * max(4, len(rows)))
    if lanes:
        # as wide as its title and its lanes need
        width = max(0.08, 0.03 * (1 + max(lane for lane, _ in lanes)))
        axes, margin = figure.subplots(
            1, 2, sharey=True, width_ratios=[1 - width, width]
        )
        _draw_lanes(margin, lanes)
    else:
        axes = figure.add_subplot()
    _draw_bars(axes, rows)
    axes.set_yticks(np.arange(len(rows)), names, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title(_title(structure), fontsize=10, loc='left')
    figure.legend(loc='outside lower left', ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def _draw_bars(axes: Axes, rows: Sequence[tuple[str, int, int]]) -> None:
    y = np.arange(len(rows))
    before, kept = [row[1] for row in rows], [row[2] for row in rows]
    axes.barh(y, before, color=GREY, label='original')
    axes.barh(y, kept, color=BLUE, label='kept')
    for position, (n, k) in enumerate(zip(before, kept)):
        axes.text(n, position, f' {k / n:.0%}', va='center', fontsize=7)
    axes.margins(x=0.08)
    axes.set_xlabel('output channels')
    axes.spines[['top', 'right']].set_visible(False)


def shared_lanes(
    layers: Sequence[str], groups: Sequence[Sequence[str]]
) -> list[tuple[int, list[int]]]:
    """Returns the lanes in which groups of several layers are drawn.

    Args:
        layers (Sequence[str]): One per row.
        groups (Sequence): Layers of each channel group.

    Returns:
        list: Per group its lane, from 0, and its rows, ascending. Groups
        whose rows overlap are in different lanes.
    """
    row = {layer: i for i, layer in enumerate(layers)}
    spans = sorted(
        sorted(row[layer] for layer in group if layer in row)
        for group in groups
    )
    ends: list[int] = []  # last row of each lane so far
    lanes = []
    for rows in spans:
        if len(rows) < 2:
            continue
        free = (i for i, end in enumerate(ends) if end < rows[0])
        lane = next(free, len(ends))
        ends[lane : lane + 1] = [rows[-1]]
        lanes.append((lane, rows))
    return lanes


def _draw_lanes(axes: Axes, lanes: Sequence[tuple[int, list[int]]]) -> None:
    """Draw a line per group with a dot at each of its layers."""
    for i, (lane, rows) in enumerate(lanes):
        axes.plot(
            [lane] * len(rows),
            rows,
            color=CYCLE[i % len(CYCLE)],
            marker='o',
            markersize=4,
            linewidth=1.2,
        )
    axes.set_xlim(-0.7, max(lane for lane, _ in lanes) + 0.7)
    axes.set_title('share\nchannels', fontsize=7)
    axes.axis('off')


def _title(structure: Structure) -> str:
    if not structure.cost_before:
        return structure.architecture
    ratios = ', '.join(
        f'{metric} {structure.ratio(metric):.0%}'
        for metric in structure.cost_before
        if metric in structure.cost_after
    )
    return f'{structure.architecture}: {ratios} of the original left'
