"""Compare speed and memory of networks of one config, pruned or not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..report.table import render
from ..speed.backends import BACKENDS, BackendError, Setting
from ..speed.comparison import compare
from ..speed.page import write_page
from ..speed.tables import inference_tables
from .errors import errors_in_one_line
from .options import (
    add_device_option,
    add_json_option,
    add_shape_option,
    config_parser,
    json_alone,
    positive,
    write_json,
)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(
        'benchmark',
        __doc__,
        'prune_retinanet.py retinanet.pth '
        'work_dirs/prune_retinanet/flops_0.50.pth '
        '--backend eager onnxruntime --batch 1 16',
    )
    parser.add_argument(
        'checkpoint',
        nargs='+',
        help='checkpoints of the networks, pruned or not; the others are '
        'compared with the first',
    )
    parser.add_argument(
        '--backend',
        nargs='+',
        choices=BACKENDS,
        default=['eager'],
        help='backend that runs the networks: PyTorch (eager), torch.compile '
        'or ONNX Runtime (default: eager)',
    )
    parser.add_argument(
        '--batch',
        nargs='+',
        type=positive,
        default=[1],
        metavar='N',
        help='number of images in a batch (default: 1)',
    )
    parser.add_argument(
        '--half',
        action='store_true',
        help='use weights and images in half precision',
    )
    parser.add_argument(
        '--modules',
        action='store_true',
        help='also print the shares of the time that backbone, neck and '
        'heads take',
    )
    add_shape_option(
        parser,
        'height and width of the input, each rounded up to a multiple of '
        "the model's pad_size_divisor",
    )
    add_json_option(parser)
    add_device_option(parser)
    parser.add_argument(
        '--rounds',
        type=positive,
        default=20,
        metavar='N',
        help='number of rounds, in each of which every network is timed in '
        'turn (default: 20)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs', 'benchmarks'),
        metavar='FOLDER',
        help='folder for the results; those of the same config are replaced, '
        'and FOLDER.md shows all of them (default: work_dirs/benchmarks)',
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with errors_in_one_line(args.debug), json_alone(args.json):
        try:
            benchmark(args)
        except BackendError as error:
            if args.debug:
                raise
            sys.stderr.write(f'error: {error}\n')
            raise SystemExit(2) from None


def benchmark(args: argparse.Namespace) -> None:
    setting = Setting(
        config=args.config,
        overrides=args.cfg_options or {},
        shape=args.shape,
        device=args.device,
        half=args.half,
    )
    result = compare(
        setting,
        args.checkpoint,
        # repeated values count once
        list(dict.fromkeys(args.backend)),
        list(dict.fromkeys(args.batch)),
        args.rounds,
        args.modules,
        Console(stderr=True, log_path=False).log,
    )
    write_json(str(args.out / f'{setting.name}.json'), result)
    for table in inference_tables(result):
        # wide enough for long names, so that numbers are not truncated
        width = Console(width=1000).measure(table).maximum
        print(render(table, width))
    if args.json:
        write_json(args.json, result)
    print(f'see {write_page(args.out)}')
