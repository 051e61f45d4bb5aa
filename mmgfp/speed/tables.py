"""Tables of measured networks, for a terminal and for a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..utils.environment import with_what

Result = Mapping[str, Any]

HEADER = (
    *('network', 'flops', 'acts', 'params', 'backend', 'batch'),
    *('ms per image', 'ratio', 'eager MB'),
)
LEFT = ('network', 'backend')  # columns of text


def inference_rows(result: Result) -> list[list[tuple[str, ...]]]:
    """Returns the rows, grouped by backend and batch; columns of HEADER."""
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
    """Returns rows of time ratios by module; the first row has the names."""
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
    """Returns the tables for a terminal."""
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
        if name in LEFT:
            table.add_column(name, no_wrap=True)
        else:
            table.add_column(name, justify='right', no_wrap=True)
    return table


def inference_section(result: Result, picture: str) -> str:
    """Returns the section of a page.

    Args:
        result (Mapping): Result of the inference benchmark.
        picture (str): Path of the picture, relative to the page.
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


def row(*cells: str) -> str:
    """Returns a row of a table in Markdown."""
    return '| ' + ' | '.join(cells) + ' |'


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
    """Returns the number of decimals for three significant figures."""
    return max(0, 2 - math.floor(math.log10(value)))


def _amount(value: float, first: float) -> str:
    unit, letter = unit_of(first)
    return f'{value / unit:.2f} {letter}'


def unit_of(value: float) -> tuple[float, str]:
    """Returns value and letter of the unit of a cost."""
    return (1e6, 'M') if value < 1e9 else (1e9, 'G')
