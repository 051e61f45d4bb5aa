"""Time and memory of something that is done beside plain training."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from benchmark_training import Network, networks
from rich.console import Console
from rich.table import Table

from mmgfp.commands.errors import errors_in_one_line
from mmgfp.commands.options import (
    add_debug_option,
    add_device_option,
    add_json_option,
    positive,
    write_json,
)
from mmgfp.speed.memory import in_own_process, peak_of
from mmgfp.utils.environment import machine, with_what


class Beside(Protocol):
    """A network, and the two things that are compared; in seconds each."""

    def plain(self) -> float:
        """Train as without the method."""

    def own(self) -> float:
        """Do what the method does."""

    def once(self) -> dict[str, float]:
        """What it does once in a while, by name; after the others."""


Kind = Callable[[Network, str], Beside]


def known_networks(on_gpu: bool) -> dict[str, Network]:
    """Those of the training benchmark, and one with a wide linear layer."""
    known = networks(on_gpu)
    config = 'mmpretrain::vgg/vgg16bn_8xb32_in1k.py'
    images = known['resnet50'].images
    return {**known, 'vgg16': Network('VGG-16', config, (224, 224), images)}


def parse_args(
    kinds: Mapping[str, Kind], description: str | None, script: str
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        epilog=f'example: python benchmarks/speed/{script} '
        '--networks retinanet --rounds 3',
    )
    names = list(known_networks(on_gpu=False))
    parser.add_argument(
        '--networks', nargs='+', choices=names, default=names[:1]
    )
    parser.add_argument(
        '--rounds',
        type=positive,
        default=3,
        help='iterations of each kind, in turn (default: 3)',
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=positive,
        metavar=('H', 'W'),
        help='input size (default: that of the training benchmark)',
    )
    parser.add_argument(
        '--of',
        choices=list(kinds),
        default=next(iter(kinds)),
        help=f'what is measured (default: {next(iter(kinds))})',
    )
    add_device_option(parser)
    add_json_option(parser)
    add_debug_option(parser)
    return parser.parse_args()


def peak(kind: Kind, network: Network, device: str, own: bool) -> float:
    """Peak in MB of two rounds of one of both."""
    run = kind(network, device)

    def act() -> None:
        for _ in range(2):
            _ = run.own() if own else run.plain()

    return peak_of(act, device)


def measure(
    kind: Kind, network: Network, device: str, rounds: int
) -> dict[str, float]:
    """Medians of rounds; ratios are medians of those within a round."""
    run = kind(network, device)
    run.plain()
    run.own()
    plain, own = [], []
    for _ in range(rounds):
        plain.append(run.plain())
        own.append(run.own())
    memory = [
        in_own_process(peak, kind, network, device, o) for o in (False, True)
    ]
    return {
        'training_s': statistics.median(plain),
        'method_s': statistics.median(own),
        'time_ratio': statistics.median(b / a for a, b in zip(plain, own)),
        'training_mb': memory[0],
        'method_mb': memory[1],
        'memory_ratio': memory[1] / memory[0],
        **run.once(),
    }


def main(
    kinds: Mapping[str, Kind], description: str | None, script: str
) -> None:
    args = parse_args(kinds, description, script)
    with errors_in_one_line(args.debug):
        known = known_networks(on_gpu=args.device != 'cpu')
        found = {}
        for name in args.networks:
            network = known[name]
            if args.shape:
                network = replace(network, shape=tuple(args.shape))
            found[name] = {
                'height': network.shape[0],
                'width': network.shape[1],
                'images': network.images,
                **measure(kinds[args.of], network, args.device, args.rounds),
            }
        where = machine(args.device)
        table = Table('', *found, caption=with_what(where))
        for part in next(iter(found.values())):
            cells = [f'{row[part]:,.2f}' for row in found.values()]
            table.add_row(part, *cells)
        Console().print(table)
        if args.json:
            write_json(args.json, {'machine': where, 'networks': found})
