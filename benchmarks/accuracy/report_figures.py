"""Figures of the pages in docs/accuracy."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from results import Summary

from mmgfp.report.figures import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    new_figure,
    save_figure,
)

FAMILIES = dict(
    fisher=(BLUE, 'o', 'Group Fisher (mmgfp)'),
    ours=(GREEN, 's', "other criterion, mmgfp's groups"),
    torch_pruning=(ORANGE, '^', 'Torch-Pruning'),
)

# networks, whose correlation would say nothing
FEW = 4

LINES = (('baseline', '-', 'baseline'), ('unpruned', ':', 'control'))


def draw(
    found: Mapping[str, Summary], latency: Any, metric: str, path: Path
) -> None:
    """Accuracy lost against what is left of flops, acts and latency.

    Of the flops only where there are several targets, of latency with the
    largest batch.
    """
    found = {n: s for n, s in found.items() if not n.startswith('ablation')}
    kept = ['acts']
    if several_targets(found):
        kept.insert(0, 'flops')
    panels: list[tuple[str, dict[str, float]]] = [
        (f'{metric} left', {n: s.share(metric) for n, s in found.items()})
        for metric in kept
    ]
    times = latency['times'] if latency else []
    for timing in times:
        if timing['batch'] == max(t['batch'] for t in times):
            each = timing['networks']
            label = f'{timing["backend"]}, batch {timing["batch"]}'
            panels.append(
                (
                    f'latency left, {label}',
                    {n: each[n]['ratio']['median'] for n in each},
                )
            )
    rows = (len(panels) + 1) // 2
    figure = new_figure(5.6 * min(2, len(panels)), 0.6 + 4.2 * rows)
    axes = figure.subplots(
        rows, -(-len(panels) // rows), sharey=True, squeeze=False
    )
    for panel, (label, places) in zip(axes.flat, panels):
        draw_panel(panel, found, places)
        panel.set_xlabel(label)
        if panel.get_subplotspec().is_first_col():
            words = f'{metric}, fine-tuned,\nless that of the baseline'
            panel.set_ylabel(words)
    legend = dict(
        handles=legend_of(found),
        title='mean and range over runs; hollow: one run',
        frameon=False,
    )
    if len(panels) < axes.size:
        axes.flat[-1].set_axis_off()
        axes.flat[-1].legend(loc='center', **legend)
    else:
        figure.legend(loc='outside lower center', ncols=2, **legend)
    save_figure(figure, path)


def legend_of(found: Mapping[str, Summary]) -> list[Line2D]:
    """What lines and markers stand for, if there are such."""
    handles = [
        Line2D([], [], color=GREY, linestyle=style, label=label)
        for name, style, label in LINES
        if name in found
    ]
    return handles + [
        Line2D([], [], color=colour, marker=marker, linestyle='', label=label)
        for family, (colour, marker, label) in FAMILIES.items()
        if any(name.startswith(family) for name in found)
    ]


def several_targets(found: Mapping[str, Summary]) -> bool:
    """Or all have about the same flops, that nothing can follow."""
    return len({s.target for s in found.values() if s.target}) > 1


def draw_speed(found: Mapping[str, Summary], latency: Any, path: Path) -> None:
    """Time against what is left of flops and acts (the paper's Fig. 6).

    The correlation is that of the pruned networks; with flops only where
    those differ.
    """
    times = latency['times']
    marks = {'acts': (BLUE, 'o'), 'flops': (ORANGE, '^')}
    measured = {n: found[n] for n in times[0]['networks'] if n in found}
    if not several_targets(measured):
        del marks['flops']
    figure = new_figure(3.2 * len(times), 3.6)
    panels = figure.subplots(1, len(times), squeeze=False)[0]
    for axes, timing in zip(panels, times):
        networks = {n: t for n, t in timing['networks'].items() if n in found}
        pruned = [name for name in networks if found[name].target]
        took = [networks[name]['ratio']['median'] for name in pruned]
        for metric, (colour, marker) in marks.items():
            # the network that was measured is that of the first seed
            left = [found[name].runs[0]['shares'][metric] for name in pruned]
            label = f'{metric} left'
            if len(set(left)) > 1 and len(left) > FEW:
                label += f', r = {statistics.correlation(left, took):.2f}'
            axes.scatter(
                left, took, s=14, c=colour, marker=marker, label=label
            )
        axes.scatter([1], [1], s=20, c=GREY, marker='x', label='baseline')
        axes.set_title(
            f'{timing["backend"]}, batch {timing["batch"]}', fontsize=10
        )
        axes.set_xlabel('share left')
        axes.legend(
            loc='upper center', bbox_to_anchor=(0.5, -0.17), frameon=False
        )
        axes.spines[['top', 'right']].set_visible(False)
    panels[0].set_ylabel("time / the baseline's")
    save_figure(figure, path)


def kept_by_stage(summary: Summary) -> dict[str, float]:
    """Share of the channels that is left, in the order of the network."""
    left: dict[str, int] = defaultdict(int)
    full: dict[str, int] = defaultdict(int)
    for run in summary.runs:
        for layer, (after, before) in run['widths'].items():
            stage = stage_of(layer)
            left[stage] += after
            full[stage] += before
    return {stage: left[stage] / full[stage] for stage in full}


def stage_of(layer: str) -> str:
    """'backbone.layer1 inner', 'neck' or 'bbox_head.cls_convs'.

    The first convolution of a block of two is read by the second alone; what
    the second writes is added to the stream of the stage.
    """
    part, *rest = layer.split('.')
    if part == 'neck':
        return part
    stage = f'{part}.{rest[0]}'
    if rest[0].startswith('layer'):
        stage += ' inner' if rest[-1] == 'conv1' else ' stream'
    return stage


def draw_kept(kept: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Bars by stage and normalisation, but for what predicts."""
    stages = [s for s in next(iter(kept.values())) if '.conv_' not in s]
    stages = [s for s in stages if '.retina_' not in s]
    figure = new_figure(1.5 + 0.72 * len(stages), 3.4)
    axes = figure.add_subplot()
    width = 0.8 / len(kept)
    for i, ((name, shares), colour) in enumerate(zip(kept.items(), CYCLE)):
        places = [x + (i + 0.5) * width - 0.4 for x in range(len(stages))]
        values = [shares[stage] for stage in stages]
        axes.bar(places, values, width, color=colour, label=name)
    labels = [s.replace('.', '\n').replace(' ', '\n') for s in stages]
    axes.set_xticks(range(len(stages)), labels)
    axes.tick_params(axis='x', labelsize=8)
    axes.set_ylabel('channels kept')
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(
        title='fisher_*',
        alignment='left',
        loc='outside upper left',
        ncols=4,
        frameon=False,
    )
    save_figure(figure, path)


def draw_panel(
    axes: Any, found: Mapping[str, Summary], places: Mapping[str, float]
) -> None:
    for name, style, _ in LINES:
        if name in found:
            axes.axhline(found[name].gain(), color=GREY, linestyle=style)
    for name, summary in found.items():
        family = next((f for f in FAMILIES if name.startswith(f)), None)
        if family is None or name not in places:
            continue
        colour, marker, _ = FAMILIES[family]
        mean, values = summary.gain(), summary.gains()
        axes.errorbar(
            places[name],
            mean,
            yerr=[[mean - min(values)], [max(values) - mean]],
            color=colour,
            marker=marker,
            # hollow: one run, whose spread is not known
            markerfacecolor='white' if len(values) == 1 else colour,
            capsize=3,
            linestyle='',
        )
    spread_names(axes, found, places)
    axes.spines[['top', 'right']].set_visible(False)


def spread_names(
    axes: Any, found: Mapping[str, Summary], places: Mapping[str, float]
) -> None:
    """Names at the right edge, moved apart, with lines to the points."""
    names = [n for n in places if n in found and found[n].target]
    names.sort(key=lambda n: found[n].gain())
    low = min(found[n].gain() for n in names)
    high = max(found[n].gain() for n in names)
    gap = max(high - low, 0.1) / max(1, len(names) - 1)
    right = max(places[n] for n in names)
    left = min(places[n] for n in names)
    width = max(right - left, 0.01)
    # no ticks under the names, and not more than there is room for
    edge = right + 0.1 * width
    ticks = MaxNLocator(4).tick_values(left, edge)
    axes.set_xticks([t for t in ticks if left <= t <= edge])
    axes.set_xlim(left - 0.08 * width, right + 0.95 * width)
    for i, name in enumerate(names):
        y = low + i * gap
        axes.plot(
            [places[name], right + 0.1 * width],
            [found[name].gain(), y],
            color=GREY,
            linewidth=0.6,
            zorder=0,
        )
        axes.text(right + 0.12 * width, y, name, fontsize=7, va='center')
