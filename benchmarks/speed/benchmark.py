"""Measure what pruning costs, as ratios in one run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from rich.console import Console

from mmgfp.commands.errors import errors_in_one_line
from mmgfp.commands.options import (
    add_debug_option,
    add_device_option,
    positive,
    write_json,
)
from mmgfp.engine.progress import duration
from mmgfp.utils.environment import machine

METHODS = ('plain', 'mmgfp', 'reference', 'kept')
DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'benchmarks'


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        epilog='example: python benchmarks/speed/benchmark.py training '
        '--device cpu --networks retinanet',
    )
    commands = parser.add_subparsers(dest='command', required=True)
    add_training(commands)
    add_page(commands)
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
    add_device_option(training)
    training.add_argument(
        '--rounds',
        type=positive,
        default=5,
        help='of measurements in turn (5)',
    )
    add_out(training)


def add_page(commands: Any) -> None:
    page = commands.add_parser(
        'page',
        allow_abbrev=False,
        help='the page anew, from what was measured',
        description='Write the page anew from what is in the folder: also '
        'what `mmgfp benchmark --out docs/benchmarks` measured.',
        epilog='example: python benchmarks/speed/benchmark.py page',
    )
    add_out(page)


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--out',
        type=Path,
        default=DOCS,
        help='folder for the results, of which those of the same kind are '
        'replaced; the page with all of them is beside it, FOLDER.md '
        f'({"/".join(DOCS.parts[-2:])})',
    )
    add_debug_option(parser)


class Benchmark:
    """Measures one network after another; an interrupted run goes on.

    Earlier results stay until all networks are measured. Finished networks of
    an interrupted run are in a file of their own.

    Args:
        args (argparse.Namespace): Of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = args.device
        self.file = args.out / f'training_{self.device}.json'
        self.partial = args.out / f'interrupted_{self.device}.json'
        self.console = Console(stderr=True, log_path=False)
        self._began = time.monotonic()
        self.result: dict[str, Any] = dict(
            machine=machine(self.device), rounds=args.rounds
        )
        if self.partial.exists():
            done = json.loads(self.partial.read_text(encoding='utf-8'))
            here = dict(self.result['machine'])
            here.pop('date')
            same = (
                done['rounds'] == args.rounds
                and here.items() <= done['machine'].items()
            )
            self.tell(
                f'{self.partial}: the run goes on'
                if same
                else f'{self.partial} is of another machine, version or '
                'number of rounds: all networks are measured again'
            )
            if same:
                self.result = done

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
        for i, name in enumerate(self.args.networks, 1):
            if name not in self.result:
                self.measure(name, f'({i} of {len(self.args.networks)})')
                write_json(str(self.partial), self.result)
        chosen, name = networks(self.device == 'cuda'), self.args.networks[0]
        value = growth(chosen[name], self.device, self.args.rounds, self.tell)
        self.keep(name, 'growth', value=value)
        write_json(str(self.file), self.result)
        self.partial.unlink(missing_ok=True)

    def measure(self, name: str, which: str) -> None:
        """Measure one network.

        Args:
            name (str): Name of the network.
            which (str): Its place among all, for the progress.
        """
        network = networks(self.device == 'cuda')[name]
        of = f'{network.title} {which}'
        self.tell(f'{of}: groups')
        groups = seconds_for_groups(network, repeats=3)
        size = [network.images, *network.shape]
        self.keep(name, value=dict(input=size, groups=groups))
        for method in METHODS:
            self.tell(f'{of}: peak memory, {method}')
            value = peak_memory(network, self.device, method)
            self.keep(name, 'memory', method, value=value)
        for mixed in (False, True) if self.device == 'cuda' else (False,):
            self.tell(f'{of}: iterations{", mixed" if mixed else ""}')
            training = Training(network, self.device, mixed=mixed)
            taken = ratios(training.seconds(METHODS, self.args.rounds))
            self.keep(name, 'mixed' if mixed else 'time', value=taken)
        value = bytes_of_scores(training) / bandwidth(self.device)
        self.keep(name, 'reading', value=value)
        self.tell(f'{of}: after the target')
        value = after_target(training, self.args.rounds)
        self.keep(name, 'after', value=value)
        self.tell(f'{of}: pruning steps')
        self.keep(name, 'steps', value=pruning_steps(training, count=10))
        groups = Training(network, self.device).groups
        for cut_to in (1, 0, 0, 1) if self.device == 'cpu' else (8, 0) * 2:
            self.tell(f'{of}: to half of the flops, cut_to={cut_to}')
            taken = phase(network, self.device, groups, cut_to, 10, 10)
            known = self.result[name].get('phase', {}).get(str(cut_to), [])
            self.keep(name, 'phase', str(cut_to), value=[*known, taken])


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with errors_in_one_line(args.debug):
        if args.command == 'training':
            Benchmark(args).run()
        print(f'see {write_report(args.out)}')


if __name__ == '__main__':
    main()
