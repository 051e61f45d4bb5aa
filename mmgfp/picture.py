"""Pictures of what pruning kept."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .files import complete
from .structure import Structure

# Readable for colour-blind people and in grey (Okabe-Ito).
_REMOVED, _KEPT = '#C9CED6', '#0072B2'


def kept_channels(
    structure: Structure, model: nn.Module
) -> list[tuple[str, int, int]]:
    """(layer, original, kept) output channels of convolutions and linears.

    In the order of the model; layers that lost nothing are not in it.

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
    structure: Structure, model: nn.Module, path: str | os.PathLike
) -> None:
    """Bars of kept and removed channels, one row per layer, as PNG.

    Args:
        structure (Structure): Of the slim network.
        model (nn.Module): The network, slim or not.
        path (str | os.PathLike): Where to write; complete or not at all.
    """
    rows = kept_channels(structure, model)
    names = [row[0] for row in rows]
    before = np.array([row[1] for row in rows] or [0])
    kept = np.array([row[2] for row in rows] or [0])
    height = 1.6 + 0.19 * max(4, len(rows))
    figure = Figure(figsize=(9, height), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    y = np.arange(len(rows))
    axes.barh(y, before[: len(rows)], color=_REMOVED, label='original')
    axes.barh(y, kept[: len(rows)], color=_KEPT, label='kept')
    for position, (n, k) in enumerate(zip(before, kept)):
        if rows:
            axes.text(n, position, f' {k / n:.0%}', va='center', fontsize=7)
    axes.set_yticks(y, names, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.set_xlabel('output channels')
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title(_title(structure), fontsize=10, loc='left')
    # not in the axes: any place there may be that of a bar
    figure.legend(
        loc='outside upper right', frameon=False, fontsize=8, ncols=2
    )
    with complete(path) as partial:
        figure.savefig(partial, dpi=150, format='png')


def _title(structure: Structure) -> str:
    if not structure.cost_before:
        return structure.architecture
    shares = ', '.join(
        f'{m} {structure.ratio(m):.0%}' for m in structure.cost_before
    )
    return f'{structure.architecture}: {shares} of the original left'
