"""Print the channel groups of a model and the largest possible reduction."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from ..cost.model import METRICS, CostModel, count_cost, record_calls
from ..groups import ChannelGroup
from ..libraries.channel_groups import demo_groups
from ..libraries.forward import cost_runner
from ..libraries.models import load_model
from ..libraries.pipeline import input_shape
from ..report.table import TABLE_WIDTH, cost_notes, groups_table
from .errors import errors_in_one_line
from .options import (
    add_cost_options,
    config_parser,
    json_alone,
    read_config,
    write_json,
)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(
        'groups',
        __doc__,
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    )
    add_cost_options(parser)
    return parser.parse_args(arguments)


def flops_shares(
    groups: Sequence[ChannelGroup],
    rows: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """Returns each group's share of the flops, by name.

    It is the share of all layers that lose channels of the group.
    """
    return {
        group.name: sum(
            rows[layer]['flops']
            for layer in {*group.producers, *group.consumers}
            if layer in rows  # layers without multiply-accumulates have no row
        )
        / rows['']['flops']
        for group in groups
    }


def to_plain(
    group: ChannelGroup, share: float
) -> dict[str, str | int | float | bool | list[str]]:
    """Returns a group as plain types, for JSON."""
    return {
        'name': group.name,
        'units': group.size,
        'channels_per_unit': group.width,
        'channels': group.channels,
        'lose_outputs': group.producers,
        'lose_inputs': group.consumers,
        'flops_share': share,
        'prunable': not group.frozen,
        'reason': group.frozen,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with errors_in_one_line(args.debug), json_alone(args.json):
        report(args)


def report(args: argparse.Namespace) -> None:
    config = read_config(args)
    model = load_model(config, args.checkpoint)
    shape = tuple(args.shape or input_shape(config))
    began = time.perf_counter()
    with Console(stderr=True).status('') as status:  # only on a terminal
        groups = demo_groups(model, shape, status.update)
    seconds = time.perf_counter() - began
    run = cost_runner(shape)
    calls = record_calls(model, lambda: run(model))
    rows = count_cost(model, calls)
    shares = flops_shares(groups, rows)
    prunable = [group for group in groups if not group.frozen]
    cost = CostModel(model, prunable, calls)
    before = cost.total()
    least = cost.after_cut(np.array([group.size - 1 for group in prunable]))
    result: dict[str, Any] = {
        'config': args.config,
        'shape': list(shape),
        'seconds': round(seconds, 2),
        'cost': {m: int(before[m]) for m in METRICS},
        'least_remaining': {m: least[m] / before[m] for m in METRICS},
        **calls.unattributed(before['flops']),
        'groups': [to_plain(g, shares[g.name]) for g in groups],
    }

    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(groups_table(groups, shares))
    units = sum(group.size for group in prunable)
    console.print(
        f'{len(prunable)} of {len(groups)} groups can be pruned '
        f'({units} units), found and proven in {seconds:.1f} s.'
    )
    reach = ', '.join(f'{m} {1 - least[m] / before[m]:.1%}' for m in METRICS)
    console.print(
        f'Largest possible reduction at {shape[0]}x{shape[1]}, one unit left '
        f'per group: {reach}.'
    )
    for note in cost_notes(calls, before['flops']):
        console.print(note)
    if args.json:
        write_json(args.json, result)
