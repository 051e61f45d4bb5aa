"""The results of the inference benchmark as tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from benchmark_report import row
from rich import box
from rich.table import Table

from mmgfp.utils.atomic import complete
from mmgfp.utils.environment import with_what

Result = Mapping[str, Any]

HEADER = (
    *('network', 'flops', 'acts', 'params', 'backend', 'batch'),
    *('ms per image', 'ratio', 'eager MB'),
)
LEFT = ('network', 'backend')  # columns of words

# Readable for colour-blind people (Okabe-Ito), and in grey by the markers.
COLOURS = dict(eager='#0072b2', compile='#e69f00', onnxruntime='#009e73')
MARKERS = 'osD^vPX*'
GREY = '#999999'

# Least distance of the names above a panel, as a share of its width.
GAP = 0.05


def inference_rows(result: Result) -> list[list[tuple[str, ...]]]:
    """The table: rows of a backend and batch together; columns of HEADER."""
    networks = result['networks']
    first = next(iter(networks.values()))
    blocks = []
    for timing in result['times']:
        block = []
        for name, found in timing['networks'].items():
            network, batch = networks[name], str(timing['batch'])
            costs = (
                f'{_amount(network[k], first[k])} {network[k] / first[k]:4.0%}'
                for k in ('flops', 'acts', 'params')
            )
            block.append(
                (
                    *(name, *costs, timing['backend'], batch),
                    _spread(found['ms'], _digits(found['ms']['median'])),
                    _spread(found['ratio'], 3),
                    f'{network["memory"][batch]:.0f}',
                )
            )
        blocks.append(block)
    return blocks


def module_rows(result: Result) -> list[tuple[str, ...]]:
    """The table of shares of the time by module; its first row is names."""
    found = [
        (name, str(part['batch']), shares)
        for part in result['modules']
        for name, shares in part['networks'].items()
    ]
    modules = list(dict.fromkeys(key for *_, s in found for key in s))
    return [
        ('network', 'batch', *modules),
        *(
            (name, batch, *(f'{shares.get(m, 0):.1%}' for m in modules))
            for name, batch, shares in found
        ),
    ]


def inference_tables(result: Result) -> list[Table]:
    """For a terminal."""
    size = 'x'.join(map(str, result['shape']))
    precision = ', half precision' if result['half'] else ''
    title = f'{Path(result["config"]).stem} on images of {size}{precision}'
    tables = [_table(title, HEADER)]
    for block in inference_rows(result):
        for cells in block:
            tables[0].add_row(*cells)
        tables[0].add_section()
    if result['modules']:
        header, *rows = module_rows(result)
        tables.append(_table("share of an eager forward's time", header))
        for cells in rows:
            tables[1].add_row(*cells)
    return tables


def _table(title: str, header: Sequence[str]) -> Table:
    table = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD)
    for name in header:
        justify = 'left' if name in LEFT else 'right'
        table.add_column(name, justify=justify, no_wrap=True)
    return table


def inference_section(result: Result, picture: str) -> str:
    """Of the page.

    Args:
        result (Mapping): Of the inference benchmark.
        picture (str): Where it is, seen from the page.
    """
    where = result['machine']
    name = Path(result['config']).stem
    size = 'x'.join(map(str, result['shape']))
    precision = 'half' if result['half'] else 'single'
    lines = [
        f'## Inference of {name} on {where["device"]}',
        '',
        f'Images of {size}, {precision} precision, rounds: '
        f'{result["rounds"]}; {with_what(where)}',
        '',
        *_markdown(HEADER, chain(*inference_rows(result))),
    ]
    if result['modules']:
        header, *rows = module_rows(result)
        lines += ["Shares of an eager forward's time:", '']
        lines += _markdown(header, rows)
    return '\n'.join([*lines, f'![Time against cost]({picture})', ''])


def _markdown(
    header: Sequence[str], rows: Iterable[Sequence[str]]
) -> list[str]:
    lines = ['---' if name in LEFT else '---:' for name in header]
    return [row(*header), row(*lines), *(row(*cells) for cells in rows), '']


def _spread(found: Mapping[str, float], digits: int) -> str:
    median, least, most = (
        f'{found[key]:.{digits}f}' for key in ('median', 'least', 'most')
    )
    return f'{median} ({least} to {most})'


def _digits(value: float) -> int:
    """Decimals that leave three figures."""
    return max(0, 2 - math.floor(math.log10(value)))


def _amount(value: float, first: float) -> str:
    unit, letter = _unit(first)
    return f'{value / unit:.2f} {letter}'


def _unit(value: float) -> tuple[float, str]:
    return (1e6, 'M') if value < 1e9 else (1e9, 'G')


# -- the picture -------------------------------------------------------------


def draw_inference(result: Result, path: Path) -> None:
    """Time per image against flops and acts, a line per backend and batch."""
    from matplotlib.figure import Figure

    # names stand aslant above and beside the panels
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
    unit, letter = _unit(max(n[metric] for n in networks.values()))
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
    """Names above a panel, with lines down to the networks.

    Args:
        axes (Axes): The panel.
        places (Sequence[float]): Of the networks, shares of its width.
        names (Sequence[str]): From left to right.
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
    """Places moved apart as little as it takes, those near 1 to the left.

    Args:
        places (Sequence[float]): From 0 to 1, in order.
        gap (float): Least distance; less where there is no room for it.
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
