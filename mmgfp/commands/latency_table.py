"""Measure the latency of each layer of a model at several widths."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..cost.clocks import clock_of, seconds_of
from ..cost.latency import LatencyTable, Measured
from ..cost.model import CostModel, record_calls
from ..cost.operations import Operation, record_operations, run_operation
from ..cost.turns import in_turn, ratios_to, spread
from ..engine.progress import duration
from ..groups import ChannelGroup
from ..libraries.channel_groups import demo_groups
from ..libraries.forward import cost_runner
from ..libraries.models import load_model
from ..libraries.pipeline import input_shape
from ..slimming.positions import axis_sizes, kept_positions
from ..slimming.surgery import cut_model, named_tensors
from ..tracing.selfcheck import random_removal
from ..utils.atomic import complete
from ..utils.environment import machine
from .errors import errors_in_one_line
from .options import (
    add_device_option,
    add_shape_option,
    config_parser,
    file_to_write,
    positive,
    read_config,
)

# Ratios of the full widths to measure; 0 is one channel.
SHARES = (0, 0.125, 0.25, 0.5, 0.75, 1)

# Operations are repeated for at least this many milliseconds.
LEAST = 2.0

# Ratios of random units whose removal is predicted and measured.
CHECKED = (0.25, 0.5, 0.75)

# A warning follows if the sum of the layers exceeds this multiple of the
# network's time, or the error exceeds this ratio of the latency. Layers alone
# may be slower than in the network, whose memory is in the cache.
MOST_LAYERS = 1.15
MOST_ERROR = 0.1


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(
        'latency-table',
        __doc__,
        'mmgfp::quickstart/retinanet_r18_digits.py --out retinanet_cpu.json',
    )
    parser.add_argument(
        '--out',
        required=True,
        type=file_to_write('.json'),
        metavar='FILE.json',
        help='table to write; an interrupted run keeps its measurements '
        'beside it, and the next run continues from them',
    )
    add_shape_option(parser, 'height and width of the input')
    parser.add_argument(
        '--batch',
        type=positive,
        default=1,
        metavar='N',
        help='number of images in a batch (default: 1)',
    )
    add_device_option(parser)
    parser.add_argument(
        '--rounds',
        type=positive,
        default=7,
        metavar='N',
        help='number of measurements of each width, of which the median is '
        'kept (default: 7)',
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with errors_in_one_line(args.debug):
        measure(args)


def measure(args: argparse.Namespace) -> None:
    config = read_config(args)
    model = load_model(config, None).to(args.device)
    shape = tuple(args.shape or input_shape(config))
    run = cost_runner(shape, args.batch)
    calls = record_operations(model, lambda: run(model))
    operations = list(
        dict.fromkeys(op for ops in calls.values() for op in ops)
    )
    about = describe(args, shape)
    console = Console(stderr=True)
    found = Measurements(Path(f'{args.out}.measured'), about)
    for i, (operation, left) in enumerate(
        with_time_left(operations, found.known), 1
    ):
        console.print(
            f'{i} of {len(operations)} operations{left}', highlight=False
        )
        found.measure(operation, args.device, args.rounds)
    stored = named_tensors(model)
    place = {operation: i for i, operation in enumerate(operations)}
    table = LatencyTable(
        {n: tuple(stored[n].shape) for n in calls},
        {n: [place[op] for op in ops] for n, ops in calls.items()},
        [found.known[key_of(operation)] for operation in operations],
        whole_network(model, run, args.device, args.rounds),
        about,
    )
    console.print('whole networks, to compare', highlight=False)
    checks = compare(model, table, shape, args.batch, args.device, args.rounds)
    table = replace(table, about={**about, 'checks': checks})
    table.save(args.out)
    found.file.unlink()
    report(args.out, table, checks)


def describe(args: argparse.Namespace, shape: Sequence[int]) -> dict[str, Any]:
    """Returns the setting of the measurement, which a table records."""
    size = dict(batch=args.batch, shape=list(shape))
    return dict(config=args.config, **size, **machine(args.device))


def key_of(operation: Operation) -> str:
    """Returns a text that identifies an operation, for files."""
    return json.dumps(astuple(operation))


class Measurements:
    """Measurements so far, in a file from which an interrupted run continues.

    Args:
        file (Path): Path of the file.
        about (dict): Setting; a file with another setting is not used.
    """

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file = file
        self._about = {k: v for k, v in about.items() if k != 'date'}
        self.known: dict[str, Measured] = {}
        if file.exists():
            kept = json.loads(file.read_text(encoding='utf-8'))
            if kept['about'] == self._about:
                self.known = {
                    key: Measured(**entry)
                    for key, entry in kept['known'].items()
                }

    def measure(self, operation: Operation, device: str, rounds: int) -> None:
        """Measure an operation at all widths unless the file has it."""
        key = key_of(operation)
        if key in self.known:
            return
        first, second = operation.widths(SHARES)
        ms = [
            [operation_ms(operation, a, b, device, rounds) for b in second]
            for a in first
        ]
        self.known[key] = Measured(first, second, ms)
        plain = {key: asdict(entry) for key, entry in self.known.items()}
        with complete(self.file) as partial:
            Path(partial).write_text(
                json.dumps(dict(about=self._about, known=plain))
            )


def with_time_left(
    operations: Sequence[Operation], known: dict[str, Measured]
) -> Iterator[tuple[Operation, str]]:
    """Yields each operation with a text of the remaining time."""
    began, done = time.monotonic(), 0
    todo = sum(key_of(operation) not in known for operation in operations)
    for operation in operations:
        new = key_of(operation) not in known
        pace = (time.monotonic() - began) / done if done else 0
        left = duration(pace * (todo - done))
        yield operation, f', about {left} left' if done else ''
        done += new


# -- time ------------------------------------------------------------------


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """Returns the duration of one run in milliseconds."""
    return 1000 * seconds_of(run, clock_of(device))


@torch.no_grad()
def operation_ms(
    operation: Operation, first: int, second: int, device: str, rounds: int
) -> float:
    """Returns the median time of an operation at a width, in milliseconds."""
    inputs = operation.inputs(first, second, device)

    def run(times: int = 1) -> None:
        for _ in range(times):
            run_operation(*inputs)

    run()  # the first run also chooses a kernel
    once = milliseconds(run, device)
    times = max(1, min(100, round(LEAST / max(once, 1e-3))))
    found = [
        milliseconds(lambda: run(times), device) / times for _ in range(rounds)
    ]
    return statistics.median(found)


@torch.no_grad()
def whole_network(
    model: nn.Module,
    run: Callable[[nn.Module], Any],
    device: str,
    rounds: int,
) -> float:
    """Returns the median time of a network's forward, in milliseconds.

    The time to make its input is left out.
    """
    found = []
    model.eval()
    forward = model.forward

    def timed(*args: Any, **kwargs: Any) -> Any:
        outputs = []
        found.append(
            milliseconds(
                lambda: outputs.append(forward(*args, **kwargs)), device
            )
        )
        return outputs[0]

    vars(model)['forward'] = timed
    try:
        for _ in range(rounds + 1):
            run(model)
    finally:
        del vars(model)['forward']
    return statistics.median(found[1:])


# -- check of the table ------------------------------------------------------


def compare(
    model: nn.Module,
    table: LatencyTable,
    shape: Sequence[int],
    images: int,
    device: str,
    rounds: int,
) -> list[dict[str, float]]:
    """Compare predicted and measured time of networks without random units."""
    run = cost_runner(shape, images)
    model.eval()
    groups: list[ChannelGroup] = [
        group for group in demo_groups(model, shape) if not group.frozen
    ]
    model.eval()
    calls = record_calls(model, lambda: run(model), images)
    cost = CostModel(model, groups, calls, table)
    found = []
    for share in CHECKED:
        removal = list(random_removal(groups, share, seed=0).values())
        slim = copy.deepcopy(model)
        cut_model(
            slim, kept_positions(groups, removal, axis_sizes(slim, groups))
        )
        units = [len(units) for units in removal]
        predicted = cost.after_cut(np.array(units))['latency'] / table.full
        models = {'full': model, 'slim': slim}

        def measure(name: str, models: dict = models) -> float:
            return whole_network(models[name], run, device, 1)

        times = in_turn(measure, list(models), rounds)
        measured = spread(ratios_to(times, 'full')['slim'])['median']
        found.append(
            dict(removed=share, predicted=predicted, measured=measured)
        )
    return found


def report(
    file: str, table: LatencyTable, checks: Sequence[dict[str, float]]
) -> None:
    """Print the result."""
    console = Console()
    console.print(
        f'{file}: {len(table.operations)} operations of {len(table.shapes)} '
        f'layers; the network takes {table.whole:.2f} ms, its layers '
        f'{table.layers:.2f}',
        highlight=False,
    )
    rows = Table(title='share of the latency left', title_justify='left')
    for title in ('units removed', 'table', 'measured', 'error'):
        rows.add_column(title, justify='right')
    for check in checks:
        error = check['predicted'] - check['measured']
        rows.add_row(
            f'{check["removed"]:.0%}',
            f'{check["predicted"]:.3f}',
            f'{check["measured"]:.3f}',
            f'{error:+.3f}',
        )
    console.print(rows)
    for doubt in doubts(table, checks):
        console.print(f'warning: {doubt}', highlight=False)


def doubts(
    table: LatencyTable, checks: Sequence[dict[str, float]]
) -> list[str]:
    """Returns warnings about a table that does not fit its measurements."""
    found = []
    if table.layers > MOST_LAYERS * table.whole:
        found.append(
            f'the layers add up to {table.layers / table.whole:.2f} times '
            'the time of the network'
        )
    error = max(abs(c['predicted'] - c['measured']) for c in checks)
    if error > MOST_ERROR:
        found.append(f'the table is wrong by up to {error:.2f} of the latency')
    advice = (
        '; expected a machine without other load: measure again with more '
        '--rounds'
    )
    return [doubt + advice for doubt in found]
