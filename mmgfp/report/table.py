"""Tables for people: channel groups and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from ..cost.model import METRICS, Calls
from ..groups import ChannelGroup

# Names of layers are long; a narrower table would cut them off.
TABLE_WIDTH = 150

# Longer names are broken, so that there is room to say why a group stays.
_NAME = 30


def groups_table(
    groups: Sequence[ChannelGroup], shares: Mapping[str, float] | None = None
) -> Table:
    """One row per channel group.

    Args:
        groups (Sequence[ChannelGroup]): As found.
        shares (Mapping[str, float], optional): By group name, the share of
            the network's flops that is in layers losing its channels.
    """
    table = Table(title=None, show_lines=False)
    _add_names(table, 'channel group')
    table.add_column('channels', justify='right', no_wrap=True)
    _add_names(table, 'lose outputs')
    _add_names(table, 'lose inputs')
    if shares is not None:
        table.add_column('flops', justify='right', no_wrap=True)
    table.add_column('prunable', overflow='fold')
    for group in groups:
        row = [
            group.name,
            _channels(group),
            abbreviate(group.producers),
            abbreviate(group.consumers),
        ]
        if shares is not None:
            row.append(f'{shares.get(group.name, 0):.1%}')
        table.add_row(
            *row, 'yes' if not group.frozen else f'no: {group.frozen}'
        )
    return table


def _add_names(table: Table, title: str) -> None:
    table.add_column(title, overflow='fold', max_width=_NAME)


def cost_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """One row per network or module, exact integers.

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


def cost_notes(calls: Calls, flops: float) -> list[str]:
    """What a table of cost does not say about work that no weight does.

    Args:
        calls (Calls): From :func:`mmgfp.cost.model.record_calls`.
        flops (float): Of the whole network.
    """
    shares, notes = calls.unattributed(flops), []
    if calls.fixed:
        notes.append(
            f'{shares["computed_kernels"]:.1%} of the flops are in kernels '
            'that modules compute from no single weight: they count, and '
            'pruning leaves them as they are.'
        )
    if calls.left_out:
        notes.append(
            'Not in the flops: products of two activations, as in attention, '
            f'{shares["products_of_activations"]:.1%} of all '
            'multiply-accumulates.'
        )
    return notes


def render(table: Table, width: int = TABLE_WIDTH) -> str:
    """A table as plain text, for logs."""
    console = Console(width=width, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def abbreviate(layers: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    if len(layers) <= most:
        return '\n'.join(layers)
    return '\n'.join(
        [*layers[: most - 1], f'and {len(layers) - most + 1} more']
    )


def _channels(group: ChannelGroup) -> str:
    if group.width == 1:
        return str(group.size)
    return f'{group.size} x {group.width}'
