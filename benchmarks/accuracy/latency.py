"""How fast the networks of the experiments are, all measured in turn."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / d) for d in ('speed', 'zoo'))]

from experiment import cost_of  # noqa: E402
from results import Result, Summary, read_results, summaries  # noqa: E402

from mmgfp.commands.errors import errors_in_one_line  # noqa: E402
from mmgfp.commands.options import (  # noqa: E402
    add_debug_option,
    add_device_option,
    positive,
)
from mmgfp.cost.clocks import clock_of  # noqa: E402
from mmgfp.groups import ChannelGroup  # noqa: E402
from mmgfp.libraries.channel_groups import demo_groups  # noqa: E402
from mmgfp.libraries.models import build_model  # noqa: E402
from mmgfp.libraries.pictures import read_preprocessing  # noqa: E402
from mmgfp.search.limits import Floor  # noqa: E402
from mmgfp.slimming.positions import axis_sizes, kept_positions  # noqa: E402
from mmgfp.slimming.surgery import cut_model  # noqa: E402
from mmgfp.speed.backends import (  # noqa: E402
    BACKENDS,
    Setting,
    Subject,
    check_backends,
)
from mmgfp.speed.comparison import WARMUP, Comparison, Progress  # noqa: E402
from mmgfp.utils.atomic import complete  # noqa: E402
from mmgfp.utils.environment import machine  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        epilog='example: python benchmarks/accuracy/latency.py cifar10 '
        '--batch 1 128',
    )
    lists = sorted(p.name for p in (HERE / 'configs').iterdir() if p.is_dir())
    parser.add_argument('list', choices=lists, help='folder in configs/')
    parser.add_argument(
        '--networks',
        nargs='+',
        default=['*'],
        metavar='GLOB',
        help='names of experiments; by default all; the baseline always',
    )
    parser.add_argument(
        '--round-to',
        type=positive,
        default=1,
        metavar='CHANNELS',
        help='measure each network with its widths rounded to the nearest '
        'multiples of this, too (1: do not)',
    )
    parser.add_argument(
        '--batch', nargs='+', type=positive, default=[1, 128], help='(1 128)'
    )
    parser.add_argument(
        '--backend',
        nargs='+',
        choices=BACKENDS,
        default=['eager', 'onnxruntime'],
        help='what runs the networks (eager onnxruntime)',
    )
    add_device_option(parser)
    parser.add_argument(
        '--half', action='store_true', help='weights and images in float16'
    )
    parser.add_argument('--rounds', type=positive, default=30, help='(30)')
    parser.add_argument(
        '--out',
        type=Path,
        default=HERE / 'results',
        help='folder with the results of run.py, and for <list>_latency.json, '
        'whose name goes on with _rounded, _cuda and _half '
        '(benchmarks/accuracy/results)',
    )
    add_debug_option(parser)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
        measure(args, lambda words: print(words, flush=True))


def measure(args: argparse.Namespace, tell: Callable[[str], None]) -> None:
    check_backends(args.backend, args.device)
    subjects = build_all(args)
    turns = len(args.backend) * (args.rounds + WARMUP) * len(subjects)
    comparison = Comparison(
        Setting(
            config=args.list,
            overrides={},
            shape=None,
            device=args.device,
            half=args.half,
        ),
        subjects,
        args.batch,
        args.rounds,
        Progress(tell, turns * sum(args.batch), 0),
        clock_of(args.device),
    )
    with torch.no_grad():
        times = [
            comparison.times(k, n) for n in args.batch for k in args.backend
        ]
    with complete(args.out / f'{name_of(args)}.json') as partial:
        result = dict(
            machine=machine(args.device),
            device=args.device,
            half=args.half,
            rounds=args.rounds,
            round_to=args.round_to,
            costs={subject.name: subject.cost for subject in subjects},
            times=times,
        )
        Path(partial).write_text(json.dumps(result, indent=1))


def name_of(args: argparse.Namespace) -> str:
    """Of the file of what is measured."""
    words = [args.list, 'latency']
    if args.round_to > 1:
        words.append('rounded')
    if args.device != 'cpu':
        words.append(args.device)
    if args.half:
        words.append('half')
    return '_'.join(words)


def build_all(args: argparse.Namespace) -> list[Subject]:
    """The networks of the first seed; the baseline comes first.

    Each is followed by the same with rounded widths, if that is asked for.

    Raises:
        SystemExit: If the results have no baseline or none of the names.
    """
    results = args.out / f'{args.list}.jsonl'
    found = summaries(read_results(results))
    if 'baseline' not in found:
        raise SystemExit(f'error: {results} has no baseline; run.py makes it')
    subjects = []
    for name in ('baseline', *chosen(args, found)):
        config = Config.fromfile(HERE / 'configs' / args.list / f'{name}.py')
        result = found[name].runs[0]
        models = {name: build(config, result)}
        if args.round_to > 1 and name != 'baseline':
            rounded = build(config, result, args.round_to)
            models[f'{name}, rounded'] = rounded
        for words, model in models.items():
            facts = read_preprocessing(config, model, config.input_shape)
            model.to(args.device)
            cost = cost_of(model, config.input_shape)
            subjects.append(Subject(words, str(results), model, facts, cost))
    return subjects


def chosen(
    args: argparse.Namespace, found: Mapping[str, Summary]
) -> list[str]:
    """Names of pruned networks.

    Raises:
        SystemExit: If the results have none for one of the patterns.
    """
    pruned = [name for name in found if found[name].target]
    for pattern in args.networks:
        if not any(fnmatchcase(name, pattern) for name in pruned):
            raise SystemExit(
                f'error: --networks {pattern}: no pruned network of that name '
                f'in the results; they have {", ".join(pruned)}'
            )
    return [
        name
        for name in pruned
        if any(fnmatchcase(name, pattern) for pattern in args.networks)
    ]


def build(config: Config, result: Result, round_to: int = 1) -> nn.Module:
    """An untrained network as wide as one of the results.

    Time does not depend on what weights are, nor on which channels are left.

    Args:
        config (Config): Of the experiment.
        result (Mapping): A line of the results.
        round_to (int): Widths go to the nearest multiples of so many
            channels. Defaults to 1.

    Raises:
        RuntimeError: If, before rounding, it does not cost what the result
            says.
    """
    model = sliced(config, result, 1)
    cost = cost_of(model, config.input_shape)
    if cost != result['cost']:
        raise RuntimeError(
            f'{result["experiment"]} has cost {result["cost"]}; a network of '
            f'its widths costs {cost}'
        )
    if round_to > 1:
        model = sliced(config, result, round_to)
    return model.eval()


def sliced(config: Config, result: Result, round_to: int) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(config)
    groups = demo_groups(model, config.input_shape)
    gone = [units_gone(group, result['widths'], round_to) for group in groups]
    sizes = axis_sizes(model, groups)
    cut_model(model, kept_positions(groups, gone, sizes))
    return model


def units_gone(
    group: ChannelGroup,
    widths: Mapping[str, tuple[int, int]],
    round_to: int = 1,
) -> np.ndarray:
    """So many of a group's units as its first convolution has lost."""
    if group.frozen:  # what predicts is as wide as there are classes
        return np.arange(0)
    for member in group.members:
        if member.role in ('producer', 'grouped') and member.layer in widths:
            left, full = widths[member.layer]
            width = member.index.shape[1]
            step = Floor(round_to=round_to).step(full // width, width)
            # not less than one step, and halves go up
            steps = max(1, int(left / width / step + 0.5))
            return np.arange(max(0, full // width - steps * step))
    return np.arange(0)


if __name__ == '__main__':
    main()
