"""Charts of a pruning run: progress, scores, accuracy against cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from ..cost.model import METRICS
from ..slimming.history import Scores
from .figures import (
    AMBER,
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    SHADE,
    new_figure,
    save_figure,
)

_DASHES = ('-', '--', '-.')


def draw_progress(
    records: Sequence[Mapping[str, Any]],
    saved: Mapping[str, int],
    path: str | os.PathLike,
) -> None:
    """Draw remaining cost and loss over the iterations, as PNG.

    Args:
        records (Sequence[Mapping]): Scalars of the training, in order.
        saved (Mapping): Saved ratio -> iteration that reached it.
        path (str | os.PathLike): Where to write; complete or not at all.
    """
    figure = new_figure(7, 5)
    cost, loss = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])

    for metric, colour, dashes in zip(METRICS, CYCLE, _DASHES):
        for key, style, width in (
            (metric, dashes, 2),
            (f'expected_{metric}', ':', 1.5),  # of a search
        ):
            steps, ratios = _series(records, key)
            if steps:
                cost.plot(
                    *(steps, ratios, style),
                    color=colour,
                    linewidth=width,
                    label=key.replace('_', ' '),
                )
    cost.set_ylim(0, 1.03)
    cost.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    cost.set_ylabel('remaining ratio')
    if cost.lines:
        figure.legend(loc='outside upper left', frameon=False, ncols=3)
    loss.plot(*_series(records, 'loss'), color=BLUE, linewidth=1.5)
    loss.set_ylabel('loss')
    loss.set_xlabel('iteration')
    for stem, iteration in saved.items():
        for axes in (cost, loss):
            axes.axvline(iteration, color=GREY, linewidth=1, zorder=0)
        cost.annotate(
            stem,
            (iteration, 1.03),
            (0, 3),
            textcoords='offset points',
            fontsize=8,
            ha='center',
        )
    for axes in (cost, loss):
        _tidy(axes)
    save_figure(figure, path)


def draw_widths(
    groups: Sequence[str],
    course: Sequence[tuple[int, Sequence[float]]],
    path: str | os.PathLike,
) -> None:
    """Draw the expected width of every group over a search, as PNG.

    Args:
        groups (Sequence[str]): Names of G groups, in the network's order.
        course (Sequence[tuple]): Steps of the search, each with (G,) expected
            ratios of the groups' units.
        path (str | os.PathLike): Where to write; complete or not at all.
    """
    figure = new_figure(9, 1.6 + 0.2 * max(6, len(groups)))
    axes = figure.add_subplot()
    steps = [step for step, _ in course]
    ratios = np.array([values for _, values in course]).T
    mesh = axes.pcolormesh(
        np.append(steps, 2 * steps[-1] - steps[-2] if steps[1:] else 1),
        np.arange(len(groups) + 1),
        ratios,
        vmin=0,
        vmax=1,
        cmap='viridis',
    )
    axes.set_yticks(np.arange(len(groups)) + 0.5, list(groups), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel('step of the search')
    figure.colorbar(mesh, label='expected ratio of the channels')
    save_figure(figure, path)


def _series(
    records: Sequence[Mapping[str, Any]], key: str
) -> tuple[list[int], list[float]]:
    rows = [r for r in records if 'iter' in r and key in r]
    return [r['step'] for r in rows], [r[key] for r in rows]


def draw_scores(scores: Scores, path: str | os.PathLike) -> None:
    """Draw a row per channel group with a mark per unit, as PNG.

    Args:
        scores (Scores): Scores, of which those of the last step are drawn.
        path (str | os.PathLike): Where to write; complete or not at all.
    """
    groups = {name: scores.last_step(name) for name in scores.groups}
    least = _least([values for values, _ in groups.values()])
    figure = new_figure(9, 1.6 + 0.24 * max(4, len(groups)))
    axes = figure.add_subplot()
    median: str | None = 'median'  # for the legend, once
    for y, (values, pruned) in enumerate(groups.values()):
        if y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=SHADE, zorder=0)
        finite = np.isfinite(values)
        values = np.maximum(values, least)
        first = y == 0
        _marks(axes, values[finite & ~pruned], y, BLUE, first, 'stays')
        _marks(axes, values[finite & pruned], y, ORANGE, first, 'removed')
        if finite.any():
            axes.plot(
                *(np.median(values[finite]), y),
                marker='D',
                markersize=4,
                color='black',
                linestyle='',
                label=median,
            )
            median = None
    axes.set_xscale('log')
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high < 100 * low else (1,)  # what has room
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(groups)), list(groups), fontsize=7)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    divided = (
        'not normalised'
        if scores.normalize_by == 'none'
        else f'divided by the {scores.normalize_by} that one unit saved'
    )
    axes.set_xlabel(
        f'score of {scores.criterion or "the criterion"}, {divided}'
    )
    figure.legend(loc='outside upper left', ncols=3, frameon=False)
    _tidy(axes)
    save_figure(figure, path)


def _marks(
    axes: Axes,
    values: np.ndarray,
    y: int,
    colour: str,
    first: bool,
    label: str,
) -> None:
    """Draw ticks, above the line for kept units, below for pruned ones."""
    pruned = label == 'removed'
    axes.plot(
        values,
        np.full(len(values), y + (0.22 if pruned else -0.14)),
        marker='^' if pruned else '|',
        markersize=5 if pruned else 8,
        color=colour,
        markeredgewidth=0.8,
        alpha=1 if pruned else 0.5,
        linestyle='',
        label=label if first else None,
    )


def _least(groups: Sequence[np.ndarray]) -> float:
    """Returns the place of zeros on the log scale: left of all others."""
    values = np.concatenate([*groups, np.zeros(0)])
    values = values[(values > 0) & np.isfinite(values)]
    return float(values.min()) / 3 if len(values) else 1e-12


Point = tuple[str, float, float]  # name, remaining ratio, accuracy


def draw_accuracy(
    metric: str,
    cost: str,
    baseline: Sequence[Point],
    pruning: Sequence[Point],
    saved: Sequence[Point],
    finetuned: Sequence[Point],
    path: str | os.PathLike,
) -> None:
    """Draw accuracy against remaining cost, as PNG.

    Args:
        metric (str): Name of the accuracy.
        cost (str): 'flops', 'acts' or 'params'.
        baseline (Sequence): The network that the run began with.
        pruning (Sequence): Validations during pruning.
        saved (Sequence): Tests of saved ratios.
        finetuned (Sequence): Tests of fine-tuned networks.
        path (str | os.PathLike): Where to write; complete or not at all.
    """
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    kinds = (
        ('during the run', pruning, 'o', AMBER),
        ('baseline', baseline, 's', 'black'),
        ('saved', saved, 'o', BLUE),
        ('fine-tuned', finetuned, '^', GREEN),
    )
    for label, points, marker, colour in kinds:
        if not points:
            continue
        _, x, y = zip(*points)
        axes.plot(
            *(x, y),
            marker=marker,
            # rings, because a saved ratio may be at the same place
            markersize=16 if label == 'during the run' else 9,
            fillstyle='none' if label == 'during the run' else 'full',
            color=colour,
            linestyle=':' if label == 'during the run' else '',
            label=label,
        )
        if label == 'during the run':
            continue
        for name, ratio, accuracy in points:
            axes.annotate(
                f'{name} {accuracy:.3g}',
                (ratio, accuracy),
                (-7, 5),
                textcoords='offset points',
                fontsize=8,
                ha='right',
            )
    axes.set_xlim(0, 1.05)
    axes.margins(y=0.2)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.set_xlabel(f'remaining {cost}')
    axes.set_ylabel(metric)
    figure.legend(loc='outside upper left', ncols=4, frameon=False)
    _tidy(axes)
    save_figure(figure, path)


def _tidy(axes: Axes) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='x', color='#EEF0F3', zorder=0)
    axes.set_axisbelow(True)
