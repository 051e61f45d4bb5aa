"""Measure what pruning costs and what it gains, as ratios in one run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mmgfp.engine.cli import (
    add_config_options,
    add_debug_option,
    add_device_option,
    add_json_option,
    add_shape_option,
    errors_in_one_line,
    positive,
    write_json,
)
from mmgfp.engine.progress import duration
from mmgfp.report.table import render
from mmgfp.utils.environment import machine

# builds models as the sweep over model families does
sys.path.append(str(Path(__file__).resolve().parents[1] / 'zoo'))

from benchmark_backends import BACKENDS, BackendError, Setting
from benchmark_inference import compare
from benchmark_inference_report import inference_tables
from benchmark_page import write_report
from benchmark_training import (
    Training,
    after_target,
    bandwidth,
    bytes_of_scores,
    growth,
    networks,
    peak_memory,
    phase,
    pruning_steps,
    ratios,
    seconds_for_groups,
)

METHODS = ('plain', 'mmgfp', 'reference', 'kept')
# What pruning costs is part of the docs; how fast a user's networks are, not.
DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'benchmarks'
USERS = Path('work_dirs', 'benchmarks')


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        epilog='example: python benchmarks/speed/benchmark.py training '
        '--device cpu --networks retinanet',
    )
    commands = parser.add_subparsers(dest='command', required=True)
    add_training(commands)
    add_inference(commands)
    return parser.parse_args(arguments)


def add_training(commands: Any) -> None:
    training = commands.add_parser(
        'training',
        allow_abbrev=False,
        help='scores, pruning steps and a pruning phase while training',
        description='Scores, pruning steps and a pruning phase to half of '
        'the flops, beside plain training and two other methods. Takes about '
        'eight minutes a network on two idle cores, and five in the end.',
        epilog='example: python benchmarks/speed/benchmark.py training '
        '--rounds 5',
    )
    training.add_argument(
        '--networks',
        nargs='+',
        choices=list(networks(False)),
        default=list(networks(False)),
        help='which ones (all)',
    )
    add_measuring_options(training, 5, DOCS)


def add_inference(commands: Any) -> None:
    inference = commands.add_parser(
        'inference',
        allow_abbrev=False,
        help='speed and memory of networks, pruned or not, of one config',
        epilog='example: python benchmarks/speed/benchmark.py inference '
        'prune_retinanet.py retinanet.pth '
        'work_dirs/prune_retinanet/flops_0.50.pth '
        '--backend eager onnxruntime --batch 1 16',
    )
    add_config_options(inference)
    inference.add_argument(
        'checkpoint',
        nargs='+',
        help='weights, slim ones too; ratios are to the first',
    )
    inference.add_argument(
        '--backend',
        nargs='+',
        choices=BACKENDS,
        default=['eager'],
        help='what runs the networks (eager)',
    )
    inference.add_argument(
        '--batch',
        nargs='+',
        type=positive,
        default=[1],
        help='images in a batch (1)',
    )
    inference.add_argument(
        '--half',
        action='store_true',
        help='weights and images in half precision',
    )
    inference.add_argument(
        '--modules',
        action='store_true',
        help='also the shares of backbone, neck and heads of the time',
    )
    add_shape_option(
        inference,
        'input size, rounded up to multiples of what the model pads images to',
    )
    add_json_option(inference)
    add_measuring_options(inference, 20, USERS)


def add_measuring_options(
    parser: argparse.ArgumentParser, rounds: int, out: Path
) -> None:
    add_device_option(parser)
    parser.add_argument(
        '--rounds',
        type=positive,
        default=rounds,
        help=f'of measurements in turn ({rounds})',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=out,
        help='folder for the results, of which those of the same kind are '
        'replaced; the page with all of them is beside it, FOLDER.md '
        f'({"/".join(out.parts[-2:])})',
    )
    add_debug_option(parser)


class Benchmark:
    """Measures one thing after another; earlier results stay until the end.

    Args:
        args (argparse.Namespace): Of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = args.device
        self.file = args.out / f'training_{self.device}.json'
        self.console = Console(stderr=True, log_path=False)
        self._began = time.monotonic()
        self.result: dict[str, Any] = dict(machine=machine(self.device))

    def tell(self, text: str) -> None:
        """A line of progress."""
        passed = duration(time.monotonic() - self._began)
        self.console.log(f'{text}, {passed} so far')

    def keep(self, *keys: str, value: Any) -> None:
        """Put a value into the result."""
        place = self.result
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value

    def run(self) -> None:
        """Everything."""
        chosen = networks(self.device == 'cuda')
        for i, name in enumerate(self.args.networks, 1):
            network = chosen[name]
            of = f'{network.title} ({i} of {len(self.args.networks)})'
            size = [network.images, *network.shape]
            self.keep(name, 'input', value=size)
            self.tell(f'{of}: groups')
            self.keep(
                *(name, 'groups'),
                value=seconds_for_groups(network, repeats=3),
            )
            for method in METHODS:
                self.tell(f'{of}: peak memory, {method}')
                self.keep(
                    *(name, 'memory', method),
                    value=peak_memory(network, self.device, method),
                )
            for mixed in (False, True) if self.device == 'cuda' else (False,):
                self.tell(f'{of}: iterations{", mixed" if mixed else ""}')
                training = Training(network, self.device, mixed=mixed)
                self.keep(
                    *(name, 'mixed' if mixed else 'time'),
                    value=ratios(training.seconds(METHODS, self.args.rounds)),
                )
            value = bytes_of_scores(training) / bandwidth(self.device)
            self.keep(name, 'reading', value=value)
            self.tell(f'{of}: after the target')
            value = after_target(training, self.args.rounds)
            self.keep(name, 'after', value=value)
            self.tell(f'{of}: pruning steps')
            value = pruning_steps(training, count=10)
            self.keep(name, 'steps', value=value)
            groups = Training(network, self.device).groups
            for cut_to in (1, 0, 0, 1) if self.device == 'cpu' else (8, 0) * 2:
                self.tell(f'{of}: to half of the flops, cut_to={cut_to}')
                taken = phase(network, self.device, groups, cut_to, 10, 10)
                known = self.result[name].get('phase', {}).get(str(cut_to), [])
                value = [*known, taken]
                self.keep(name, 'phase', str(cut_to), value=value)
        name = self.args.networks[0]
        value = growth(chosen[name], self.device, self.args.rounds, self.tell)
        self.keep(name, 'growth', value=value)
        write_json(str(self.file), self.result)


def run_training(args: argparse.Namespace) -> None:
    Benchmark(args).run()
    print(f'see {write_report(args.out)}')


def run_inference(args: argparse.Namespace) -> None:
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
        # given twice is given once
        list(dict.fromkeys(args.backend)),
        list(dict.fromkeys(args.batch)),
        args.rounds,
        args.modules,
        Console(stderr=True, log_path=False).log,
    )
    write_json(str(args.out / f'{setting.name}.json'), result)
    words = sys.stderr if args.json == '-' else sys.stdout
    for table in inference_tables(result):
        # names of networks are long; numbers must not be cut
        width = Console(width=1000).measure(table).maximum
        print(render(table, width), file=words)
    if args.json:
        write_json(args.json, result)
    print(f'see {write_report(args.out)}', file=words)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    run = dict(training=run_training, inference=run_inference)[args.command]
    with errors_in_one_line(args.debug):
        try:
            run(args)
        except BackendError as error:
            if args.debug:
                raise
            sys.stderr.write(f'error: {error}\n')
            raise SystemExit(2) from None


if __name__ == '__main__':
    main()
