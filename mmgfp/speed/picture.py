"""A picture of measured networks: time against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.atomic import complete
from .tables import unit_of

Result = Mapping[str, Any]

# Readable for colour-blind people (Okabe-Ito), and in grey by the markers.
COLOURS = dict(eager='#0072b2', compile='#e69f00', onnxruntime='#009e73')
MARKERS = 'osD^vPX*'
GREY = '#999999'

# Smallest distance of the names above a panel, as a ratio of its width.
GAP = 0.05


def draw_inference(result: Result, path: Path) -> None:
    """Draw time per image against cost, a line per backend and batch."""
    from matplotlib.figure import Figure

    # space for the oblique names above and beside the panels
    room = 0.045 * max(map(len, result['networks']))
    size = (9 + 2 * room, 5 + room)
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, ('flops', 'acts')):
        _draw_panel(axes, result, metric)
    panels[0].set_ylabel('ms per image')
    panels[0].set_ylim(bottom=0)
    figure.suptitle(
        f'{Path(result["config"]).stem}: a forward on '
        f'{result["machine"]["device"]}',
        fontsize=11,
    )
    figure.legend(
        handles=panels[0].get_lines()[: len(result['times'])],
        loc='outside lower center',
        ncols=len({timing['backend'] for timing in result['times']}),
        frameon=False,
    )
    with complete(path) as partial:
        figure.savefig(partial, format='png', dpi=150)


def _draw_panel(axes: Any, result: Result, metric: str) -> None:
    networks = result['networks']
    unit, letter = unit_of(max(n[metric] for n in networks.values()))
    places = {name: n[metric] / unit for name, n in networks.items()}
    order = sorted(places, key=places.__getitem__)
    batches = list(dict.fromkeys(t['batch'] for t in result['times']))
    for timing in result['times']:
        backend, batch = timing['backend'], timing['batch']
        axes.plot(
            [places[name] for name in order],
            [timing['networks'][name]['ms']['median'] for name in order],
            color=COLOURS[backend],
            marker=MARKERS[batches.index(batch) % len(MARKERS)],
            label=f'{backend}, batch {batch}',
        )
    width = 1.05 * max(places.values())
    axes.set_xlim(0, width)
    axes.set_xlabel(f'{metric} per image, {letter}')
    axes.spines[['top', 'right']].set_visible(False)
    _draw_names(axes, [places[name] / width for name in order], order)


def _draw_names(
    axes: Any, places: Sequence[float], names: Sequence[str]
) -> None:
    """Draw names above a panel, with lines down to the networks.

    Args:
        axes (Axes): The panel.
        places (Sequence[float]): Positions of the networks, as ratios of its
            width.
        names (Sequence[str]): Names from left to right.
    """
    style = dict(transform=axes.transAxes, clip_on=False, zorder=0)
    for place, x, name in zip(places, spread_out(places, GAP), names):
        axes.plot(
            *([place, place, x], [0, 1, 1.05]),
            **(style | dict(color=GREY, linewidth=0.6)),
        )
        axes.text(
            *(x, 1.06, name),
            transform=axes.transAxes,
            rotation=45,
            rotation_mode='anchor',
            fontsize=8,
        )


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Returns positions moved apart as little as possible.

    Args:
        places (Sequence[float]): Positions from 0 to 1, in order.
        gap (float): Smallest distance; less if the space is too small.
    """
    gap = min(gap, 1 / len(places))
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    most = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], most)
        most = moved[i] - gap
    return moved
