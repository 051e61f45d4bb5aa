"""Measure what a calibration pass of K-FAC costs, against plain training."""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from mmgfp.criteria.kfac import KFAC
from mmgfp.speed.memory import in_own_process, peak_of
from mmgfp.utils.environment import machine, with_what

# builds models as the sweep over model families does
sys.path.append(str(Path(__file__).resolve().parents[1] / 'zoo'))

from benchmark_training import Network, Nothing, Training, networks


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        epilog='example: python benchmarks/speed/benchmark_calibration.py '
        '--networks retinanet --rounds 3',
    )
    names = list(networks(on_gpu=False))
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
    add_device_option(parser)
    add_json_option(parser)
    add_debug_option(parser)
    return parser.parse_args()


class Calibrating(Training):
    """A network in training and in calibration, in turn."""

    def __init__(self, network: Network, device: str) -> None:
        super().__init__(network, device)
        self.criterion = KFAC(fisher='empirical')
        self.criterion.attach(self.model, self.pruner.net.units)

    def calibration(self) -> float:
        """Seconds of a batch of a calibration pass."""
        images = self.batch['inputs'].detach().requires_grad_()
        self.model.eval().requires_grad_(False)
        with self.criterion.observing():
            self.wait()
            began = time.perf_counter()
            losses = self.model(**{**copy.copy(self.batch), 'inputs': images})
            self.model.parse_losses(losses)[0].backward()
            self.criterion.end_batch()
            self.wait()
            taken = time.perf_counter() - began
        self.model.requires_grad_(True).train()  # freezes its first stages
        return taken

    def scoring(self) -> float:
        """Seconds for scores: all factors are inverted."""
        self.wait()
        began = time.perf_counter()
        self.criterion.scores(np.ones(len(self.pruner.net.units), bool))
        return time.perf_counter() - began


def peak(network: Network, device: str, calibrates: bool) -> float:
    """Peak in MB of some training iterations or calibration batches."""
    run = Calibrating(network, device)

    def act() -> None:
        for _ in range(2):
            if calibrates:
                run.calibration()
            else:
                run.iteration(Nothing())

    return peak_of(act, device)


def measure(network: Network, device: str, rounds: int) -> dict[str, float]:
    run = Calibrating(network, device)
    run.iteration(Nothing())
    run.calibration()
    plain, pass_ = [], []
    for _ in range(rounds):
        plain.append(run.iteration(Nothing()))
        pass_.append(run.calibration())
    memory = [in_own_process(peak, network, device, c) for c in (False, True)]
    return {
        'training_s': statistics.median(plain),
        'calibration_s': statistics.median(pass_),
        'time_ratio': statistics.median(b / a for a, b in zip(plain, pass_)),
        'training_mb': memory[0],
        'calibration_mb': memory[1],
        'memory_ratio': memory[1] / memory[0],
        'scores_s': run.scoring(),
    }


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
        known = networks(on_gpu=args.device != 'cpu')
        found = {}
        for name in args.networks:
            network = known[name]
            if args.shape:
                network = replace(network, shape=tuple(args.shape))
            found[name] = {
                'height': network.shape[0],
                'width': network.shape[1],
                'images': network.images,
                **measure(network, args.device, args.rounds),
            }
        where = machine(args.device)
        table = Table('', *found, caption=with_what(where))
        for part in next(iter(found.values())):
            cells = [f'{row[part]:,.2f}' for row in found.values()]
            table.add_row(part, *cells)
        Console().print(table)
        if args.json:
            write_json(args.json, {'machine': where, 'networks': found})


if __name__ == '__main__':
    main()
