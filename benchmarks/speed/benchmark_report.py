"""The results of the training benchmark as a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmgfp.speed.tables import row
from mmgfp.utils.atomic import complete
from mmgfp.utils.environment import with_what

Result = Mapping[str, Any]

TITLES = {
    'retinanet': 'RetinaNet-R50',
    'fcos': 'FCOS-R50 (GN head)',
    'resnet50': 'ResNet-50',
}
METHODS = {
    'mmgfp': 'mmgfp',
    'reference': "reference's method",
    'kept': "MMRazor's method",
}
GROWTH = {
    'side': 'image side, pixels',
    'images': 'images in a batch',
    'groups': 'groups',
}
COLOURS = {'mmgfp': '#0072b2', 'reference': '#e69f00', 'kept': '#999999'}


def training_section(result: Result, picture: str) -> str:
    """Of the page.

    Args:
        result (Mapping): Of the training benchmark.
        picture (str): Where it is, seen from the page.
    """
    where = result['machine']
    names = [name for name in TITLES if name in result]
    lines = [
        f'## Training on {where["device"]}',
        '',
        with_what(where),
        '',
        row('', *(TITLES[name] for name in names)),
        row('---', *['---:'] * len(names)),
        row(
            'batch, images of pixels',
            *('{} of {}x{}'.format(*result[name]['input']) for name in names),
        ),
    ]
    for kind, title in (('time', ''), ('mixed', ', mixed precision')):
        if any(kind in result[name] for name in names):
            lines.append(
                row(
                    f'plain iteration, seconds{title}',
                    *(
                        f'{result[name][kind]["plain"]["seconds"]:.3f}'
                        for name in names
                    ),
                )
            )
            lines += [
                row(
                    f'iteration with scores / plain{title}, {METHODS[method]}',
                    *(_spread(result[name][kind][method]) for name in names),
                )
                for method in METHODS
            ]
    lines += [
        row(
            f'peak memory with scores / plain, {METHODS[method]}',
            *(_memory(result[name]['memory'], method) for name in names),
        )
        for method in METHODS
    ]
    rows = {
        'reading inputs and gradients once / plain iteration': 'reading',
        'finding groups on one core, seconds': 'groups',
        'pruning step, milliseconds': 'steps',
        'pruning step / 10 plain iterations': 'share',
        'pruning to half of the flops, cutting / masking only': 'phase',
        'mean share of the flops meanwhile': 'flops',
        'iteration after the target / before pruning': 'after',
    }
    values = {
        'groups': lambda r: f'{statistics.median(r["groups"]):.2f}',
        'steps': lambda r: f'{1000 * statistics.median(r["steps"]):.0f}',
        'reading': lambda r: (
            f'{r["reading"] / r["time"]["plain"]["seconds"]:.3f}'
        ),
        'share': _step_share,
        'flops': lambda r: f'{r["phase"]["0"][0]["flops"]:.2f}',
        'phase': _phase,
        'after': lambda r: f'{statistics.median(r["after"]):.3f}',
    }
    lines += [
        row(title, *(values[key](result[name]) for name in names))
        for title, key in rows.items()
    ]
    lines += ['', f'![Ratios to plain training]({picture})', '']
    for name in names:
        if 'growth' in result[name]:
            lines += _growth_table(TITLES[name], result[name]['growth'])
    return '\n'.join(lines)


def _growth_table(title: str, growth: Result) -> list[str]:
    lines = [
        f'How the cost of scores grows ({title}, small images):',
        '',
        row('', '', 'iteration with scores / plain'),
        row('---', '---:', '---:'),
    ]
    for key, label in GROWTH.items():
        lines += [
            row(label, str(point['value']), _spread(point))
            for point in growth[key]
        ]
    return [*lines, '']


def _spread(found: Result) -> str:
    return (
        f'{found["ratio"]:.3f} ({found["least"]:.2f} to {found["most"]:.2f})'
    )


def _memory(memory: Mapping[str, float], method: str) -> str:
    return f'{memory[method] / memory["plain"]:.3f}'


def _step_share(result: Result) -> str:
    plain = result['time']['plain']['seconds']
    return f'{statistics.median(result["steps"]) / (10 * plain):.1%}'


def _phase(result: Result) -> str:
    medians = {
        int(cut_to): statistics.median(run['seconds'] for run in runs)
        for cut_to, runs in result['phase'].items()
    }
    cutting = next(s for cut_to, s in medians.items() if cut_to)
    return f'{cutting / medians[0]:.2f}'


def draw_training(result: Result, path: Path) -> None:
    """Bars of time and memory by method, and how the cost grows."""
    from matplotlib.figure import Figure

    names = [name for name in TITLES if name in result]
    growing = next((n for n in names if 'growth' in result[n]), None)
    figure = Figure(figsize=(9, 6.5), layout='constrained')
    top, bottom = figure.subfigures(2, 1)
    time, memory = top.subplots(1, 2)
    for i, method in enumerate(METHODS):
        places = [k + 0.27 * (i - 1) for k in range(len(names))]
        style = dict(width=0.25, color=COLOURS[method], label=METHODS[method])
        found = [result[n]['time'][method]['ratio'] for n in names]
        _bars(time, places, found, style)
        found = [
            result[n]['memory'][method] / result[n]['memory']['plain']
            for n in names
        ]
        _bars(memory, places, found, style)
    for axes, title in ((time, 'Time'), (memory, 'Peak memory')):
        axes.set_title(f'{title} of an iteration, plain training is 1')
        axes.set_xticks(range(len(names)), [TITLES[name] for name in names])
        axes.axhline(1, color='black', linewidth=0.8)
        axes.spines[['top', 'right']].set_visible(False)
        axes.margins(y=0.15)
        axes.set_ylim(bottom=0.8)
    time.legend(frameon=False)
    if growing is not None:
        _draw_growth(bottom, TITLES[growing], result[growing]['growth'])
    with complete(path) as partial:
        figure.savefig(partial, format='png', dpi=150)


def _bars(
    axes: Any, places: Sequence[float], found: Sequence[float], style: Any
) -> None:
    bars = axes.bar(places, found, **style)
    axes.bar_label(bars, fmt='%.2f', padding=2, fontsize=8)


def _draw_growth(figure: Any, title: str, growth: Result) -> None:
    figure.suptitle(f'{title}: an iteration with scores / plain', fontsize=11)
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (key, label) in zip(panels, GROWTH.items()):
        points = growth[key]
        values = [point['value'] for point in points]
        axes.plot(
            values,
            [point['ratio'] for point in points],
            marker='o',
            color=COLOURS['mmgfp'],
        )
        axes.axhline(1, color='black', linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_xticks(values)
        axes.spines[['top', 'right']].set_visible(False)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(min(low, 0.95), max(high, 1.1))
