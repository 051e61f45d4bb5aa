"""Measure what pruning costs, as ratios in one run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmark_report import write_report
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
from environment import machine
from rich.console import Console

from mmgfp.cli import errors_in_one_line
from mmgfp.files import complete

METHODS = ('plain', 'mmgfp', 'reference', 'kept')
OUT = Path(__file__).resolve().parents[1] / 'docs' / 'benchmarks'


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='example: python tools/benchmark.py training --device cpu '
        '--networks retinanet',
    )
    commands = parser.add_subparsers(dest='command', required=True)
    training = commands.add_parser(
        'training',
        help='scores, pruning steps and a pruning phase while training',
        epilog='example: python tools/benchmark.py training --rounds 5',
    )
    training.add_argument(
        '--device', choices=['cpu', 'cuda'], help='by default the GPU if any'
    )
    training.add_argument(
        '--networks',
        nargs='+',
        choices=list(networks(False)),
        default=list(networks(False)),
        help='which ones (all)',
    )
    training.add_argument(
        '--rounds', type=int, default=5, help='of iterations in turn (5)'
    )
    training.add_argument(
        '--out', type=Path, default=OUT, help='folder for the results'
    )
    training.add_argument(
        '--debug', action='store_true', help='show the traceback of errors'
    )
    args = parser.parse_args(arguments)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: PyTorch finds no GPU here')
    return args


class Benchmark:
    """Measures one thing after another and keeps each as soon as it is known.

    Args:
        args (argparse.Namespace): Of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = args.device or (
            'cuda' if torch.cuda.is_available() else 'cpu'
        )
        self.file = args.out / f'training_{self.device}.json'
        self.console = Console(stderr=True)
        self.result: dict[str, Any] = dict(machine=machine(self.device))

    def tell(self, text: str) -> None:
        """A line of progress."""
        self.console.log(text)

    def keep(self, *keys: str, value: Any) -> None:
        """Put a value into the result, and that into its file."""
        place = self.result
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        self.args.out.mkdir(parents=True, exist_ok=True)
        with complete(self.file) as partial:
            Path(partial).write_text(json.dumps(self.result, indent=1) + '\n')

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


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with errors_in_one_line(args.debug):
        benchmark = Benchmark(args)
        benchmark.run()
        print(f'see {write_report(args.out)}')


if __name__ == '__main__':
    sys.exit(main())
