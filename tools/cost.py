"""Count multiply-accumulates, parameters and activations of a model."""

from __future__ import annotations

import argparse

from rich.console import Console

from mmgfp.cost.model import count_cost, record_calls
from mmgfp.cost.zeros import file_sizes, nonzero_cost
from mmgfp.engine.cli import (
    add_cost_options,
    config_parser,
    errors_in_one_line,
    read_config,
    write_json,
)
from mmgfp.libraries.forward import cost_runner
from mmgfp.libraries.models import load_model
from mmgfp.libraries.pipeline import input_shape
from mmgfp.report.table import cost_notes, cost_table


def parse_args() -> argparse.Namespace:
    parser = config_parser(
        __doc__,
        'python tools/cost.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py '
        '--shape 800 1280',
    )
    add_cost_options(parser)
    parser.add_argument(
        '--per-module', action='store_true', help='one row per module'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
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
    console = Console(stderr=args.json == '-')
    console.print(cost_table(shown))
    sparse = {}
    if args.checkpoint is not None:
        nonzero = nonzero_cost(model, calls)
        size, compressed = file_sizes(args.checkpoint)
        console.print(
            f'not zero: {nonzero["flops"]:,} flops '
            f'({nonzero["flops"] / total["flops"]:.1%}), '
            f'{nonzero["params"]:,} params '
            f'({nonzero["params"] / total["params"]:.1%}); the checkpoint '
            f'has {size:,} bytes, {compressed:,} compressed by zlib'
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


if __name__ == '__main__':
    main()
