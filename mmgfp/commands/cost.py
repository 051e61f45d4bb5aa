"""Count multiply-accumulates, parameters and activations of a model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from ..cost.model import count_cost, record_calls
from ..cost.zeros import file_sizes, nonzero_cost
from ..libraries.forward import cost_runner
from ..libraries.models import load_model
from ..libraries.pipeline import input_shape
from ..report.table import cost_notes, cost_table
from ..slimming.checkpoint import load_plain_checkpoint
from ..slimming.structure import KEY, Structure
from .errors import errors_in_one_line
from .options import (
    add_cost_options,
    config_parser,
    json_alone,
    read_config,
    write_json,
)


def shares(part: Mapping[str, float], total: Mapping[str, float]) -> str:
    """Returns flops and params with their ratios of a total."""
    return ', '.join(
        f'{part[key]:,} {key} ({part[key] / total[key]:.1%})'
        for key in ('flops', 'params')
    )


def unpruned_cost(
    checkpoint: Mapping[str, Any], shape: Sequence[int]
) -> Mapping[str, float]:
    """Returns the cost before channels were pruned, or {}."""
    if KEY not in checkpoint:
        return {}
    structure = Structure.from_dict(checkpoint[KEY], 'the checkpoint')
    known = structure.axes and structure.input_shape == tuple(shape)
    return structure.cost_before if known else {}


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(
        'cost',
        __doc__,
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --shape 800 1280',
    )
    add_cost_options(parser)
    parser.add_argument(
        '--per-module', action='store_true', help='print a row for each module'
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with errors_in_one_line(args.debug), json_alone(args.json):
        report(args)


def report(args: argparse.Namespace) -> None:
    config = read_config(args)
    model = load_model(config, args.checkpoint)
    shape = tuple(args.shape or input_shape(config))
    run = cost_runner(shape)
    calls = record_calls(model, lambda: run(model), zeros=True)
    rows = count_cost(model, calls)
    total = rows.pop('')
    title = f'{type(model).__name__} at {shape[0]}x{shape[1]}'
    shown = {**rows, title: total} if args.per_module else {title: total}
    console = Console()
    console.print(cost_table(shown))
    sparse = {}
    if args.checkpoint is not None:
        nonzero = nonzero_cost(model, calls)
        size, compressed = file_sizes(args.checkpoint)
        checkpoint = load_plain_checkpoint(args.checkpoint)
        state = ', with the optimizer,' if 'optimizer' in checkpoint else ''
        console.print(
            f'not zero: {shares(nonzero, total)}; the checkpoint{state} '
            f'has {size:,} bytes, {compressed:,} compressed by zlib',
            soft_wrap=True,
        )
        if full := unpruned_cost(checkpoint, shape):
            console.print(
                f'of the unpruned network: {shares(nonzero, full)}',
                soft_wrap=True,
            )
        sparse = {
            'nonzero': nonzero,
            'bytes': size,
            'compressed_bytes': compressed,
        }
    for note in cost_notes(calls, total['flops']):
        console.print(note)
    if args.json:
        result = {
            'config': args.config,
            'shape': list(shape),
            **total,
            **calls.unattributed(total['flops']),
            **sparse,
        }
        if args.per_module:
            result['modules'] = rows
        write_json(args.json, result)
