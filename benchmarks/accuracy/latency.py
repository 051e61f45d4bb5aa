"""How fast the networks of the experiments are, all measured in turn."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / 'tools')]

from benchmark_backends import (  # noqa: E402
    BACKENDS,
    Setting,
    Subject,
    check_backends,
)
from benchmark_clocks import clock_of  # noqa: E402
from benchmark_inference import WARMUP, Comparison, Progress  # noqa: E402
from environment import machine  # noqa: E402
from results import read_results, summaries  # noqa: E402
from run import name_of  # noqa: E402

from mmgfp.adapt import build_model  # noqa: E402
from mmgfp.checkpoint import load_plain_checkpoint  # noqa: E402
from mmgfp.cli import (  # noqa: E402
    add_debug_option,
    add_device_option,
    errors_in_one_line,
    positive,
)
from mmgfp.files import complete  # noqa: E402
from mmgfp.preprocessing import read_preprocessing  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        epilog='example: python benchmarks/accuracy/latency.py cifar10 '
        '--batch 1 128',
    )
    parser.add_argument('list', help='folder in configs/')
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
    parser.add_argument('--rounds', type=positive, default=30, help='(30)')
    parser.add_argument(
        '--work-dir', type=Path, help='of run.py (work_dirs/accuracy/<list>)'
    )
    parser.add_argument('--out', type=Path, default=HERE / 'results')
    add_debug_option(parser)
    args = parser.parse_args()
    if args.work_dir is None:
        args.work_dir = Path('work_dirs/accuracy', args.list)
    return args


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
        measure(args, lambda words: print(words, flush=True))


def measure(args: argparse.Namespace, tell: Callable[[str], None]) -> None:
    check_backends(args.backend, args.device)
    subjects = load_all(args)
    turns = len(args.backend) * (args.rounds + WARMUP) * len(subjects)
    comparison = Comparison(
        Setting(
            config=args.list,
            overrides={},
            shape=None,
            device=args.device,
            half=False,
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
    with complete(args.out / f'{args.list}_latency.json') as partial:
        result = dict(
            machine=machine(args.device), rounds=args.rounds, times=times
        )
        Path(partial).write_text(json.dumps(result, indent=1))


def load_all(args: argparse.Namespace) -> list[Subject]:
    """The networks of the first seed; the baseline comes first."""
    found = summaries(read_results(args.out / f'{args.list}.jsonl'))
    subjects = []
    pruned = [name for name in found if found[name].target]
    for name in ('baseline', *pruned):
        config = Config.fromfile(HERE / 'configs' / args.list / f'{name}.py')
        rate = 0.0 if name == 'baseline' else found[name].lr
        job = (name, found[name].runs[0]['seed'], rate)
        path = args.work_dir / name_of(job) / 'model.pth'
        model = load(config, path)
        facts = read_preprocessing(config, model, config.input_shape)
        subjects.append(Subject(name, str(path), model, facts, {}))
    return subjects


def load(config: Config, path: Path) -> nn.Module:
    """A network whose layers are as wide as its weights are."""
    model = build_model(config)
    weights = load_plain_checkpoint(path)['state_dict']
    for name, module in model.named_modules():
        for key in (*module._parameters, *module._buffers):
            full = f'{name}.{key}'
            if full in weights:
                getattr(module, key).data = weights[full]
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = module.weight.shape[:2]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(module.weight)
        elif isinstance(module, nn.GroupNorm):
            # groups go as a whole
            each = module.num_channels // module.num_groups
            module.num_channels = len(module.weight)
            module.num_groups = module.num_channels // each
    return model.eval()


if __name__ == '__main__':
    main()
