"""Text tables: channel groups and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from ..cost.model import METRICS, Calls
from ..groups import ChannelGroup
from ..slimming.element_masks import Density

# Names of layers are long; a narrower table would truncate them.
TABLE_WIDTH = 150

# Longer names are wrapped, which leaves room for the reason of a frozen group.
_NAME = 30


def groups_table(
    groups: Sequence[ChannelGroup], ratios: Mapping[str, float] | None = None
) -> Table:
    """Returns a table with a row per channel group.

    Args:
        groups (Sequence[ChannelGroup]): The groups.
        ratios (Mapping[str, float], optional): By group name, the ratio of
            the network's flops in layers that its channels are cut from.
    """
    table = Table(title=None, show_lines=False)
    _add_names(table, 'channel group')
    table.add_column('channels', justify='right', no_wrap=True)
    _add_names(table, 'lose outputs')
    _add_names(table, 'lose inputs')
    if ratios is not None:
        table.add_column('flops', justify='right', no_wrap=True)
    table.add_column('prunable', overflow='fold')
    for group in groups:
        row = [
            group.name,
            _channels(group),
            abbreviate(group.producers),
            abbreviate(group.consumers),
        ]
        if ratios is not None:
            row.append(f'{ratios.get(group.name, 0):.1%}')
        table.add_row(
            *row, 'yes' if not group.frozen else f'no: {group.frozen}'
        )
    return table


def _add_names(table: Table, title: str) -> None:
    table.add_column(title, overflow='fold', max_width=_NAME)


def cost_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Returns a table of exact costs, with a row per network or module.

    Args:
        rows (Mapping): Name -> ``{'flops', 'params', 'acts'}``.
    """
    table = Table()
    table.add_column('', overflow='fold')
    for metric in METRICS:
        table.add_column(metric, justify='right')
    for name, cost in rows.items():
        table.add_row(name, *(f'{cost[m]:,.0f}' for m in METRICS))
    return table


def density_table(density: Mapping[str, Density]) -> Table:
    """Returns a table with a row per parameter, and the sum of all.

    Args:
        density (Mapping): Density by name of the parameter.
    """
    table = Table()
    table.add_column('weights of', overflow='fold')
    for title in ('weights', 'left', 'density'):
        table.add_column(title, justify='right')
    total = Density(*map(sum, zip(*density.values())))
    for name, part in {**density, 'all': total}.items():
        share = part.left / part.weights
        table.add_row(
            name, f'{part.weights:,}', f'{part.left:,}', f'{share:.4f}'
        )
    return table


def widths_table(
    groups: Sequence[ChannelGroup], originals: Sequence[int]
) -> Table:
    """Returns a table of the channels that groups keep.

    Args:
        groups (Sequence[ChannelGroup]): The prunable groups of the network.
        originals (Sequence[int]): Units of each in the unpruned network.
    """
    table = Table()
    _add_names(table, 'channel group')
    for title in ('before', 'after', 'ratio'):
        table.add_column(title, justify='right')
    for group, units in zip(groups, originals):
        table.add_row(
            group.name,
            f'{units * group.width:,}',
            f'{group.channels:,}',
            f'{group.size / units:.3f}',
        )
    return table


def cost_notes(calls: Calls, flops: float) -> list[str]:
    """Returns notes on work that belongs to no weight.

    Args:
        calls (Calls): From :func:`mmgfp.cost.model.record_calls`.
        flops (float): Multiply-accumulates of the whole network.
    """
    ratios, notes = calls.unattributed(flops), []
    if calls.fixed:
        notes.append(
            f'{ratios["computed_kernels"]:.1%} of the flops are in kernels '
            'that modules compute from no single weight: they are counted, '
            'and pruning does not change them.'
        )
    if calls.left_out:
        notes.append(
            'Not in the flops: products of two activations, as in attention, '
            f'{ratios["products_of_activations"]:.1%} of all '
            'multiply-accumulates.'
        )
    return notes


def render(table: Table, width: int = TABLE_WIDTH) -> str:
    """Returns a table as plain text, for logs."""
    console = Console(width=width, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def abbreviate(layers: Sequence[str], most: int = 3) -> str:
    """Returns the first few names and the number of others."""
    if len(layers) <= most:
        return '\n'.join(layers)
    return '\n'.join(
        [*layers[: most - 1], f'and {len(layers) - most + 1} more']
    )


def _channels(group: ChannelGroup) -> str:
    if group.width == 1:
        return str(group.size)
    return f'{group.size} x {group.width}'
