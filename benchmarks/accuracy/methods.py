"""Compare pruning methods on one network with a short schedule; resumable.

A file in configs/_methods/ names the network, the schedule and for every
experiment the hook of each phase. All begin with the same baseline, which is
trained first. A line is added to the results as each ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from experiment import (  # noqa: E402
    cost_of,
    load,
    plain,
    read_config,
    test,
    train,
    widths_of,
)
from precision import precision  # noqa: E402
from results import read_results  # noqa: E402

from mmgfp.commands.errors import errors_in_one_line  # noqa: E402
from mmgfp.commands.options import add_debug_option  # noqa: E402
from mmgfp.engine.progress import duration  # noqa: E402
from mmgfp.libraries.models import build_model  # noqa: E402
from mmgfp.utils.atomic import complete  # noqa: E402
from mmgfp.utils.environment import machine  # noqa: E402

LISTS = HERE / 'configs/_methods'
RESULTS = HERE / 'results/methods'


@HOOKS.register_module()
class TestBeforeTraining(Hook):
    """Tests the network that hooks have pruned before training starts."""

    priority = 'VERY_LOW'
    metrics: ClassVar[dict[str, float]] = {}  # of the last run

    def before_train_epoch(self, runner: Runner) -> None:
        """Run the test loop before the first epoch."""
        if runner.epoch == 0:
            TestBeforeTraining.metrics = plain(runner.test_loop.run())
            runner.model.train()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python benchmarks/accuracy/methods.py cifar10 '
        '--data-root DATA/cifar10 --weights DATA/cifar10_resnet20.th '
        "--filter '*_density_*'",
    )
    add_list(parser)
    parser.add_argument(
        '--weights', help='what the baseline is fine-tuned from'
    )
    parser.add_argument(
        '--filter',
        nargs='+',
        default=['*'],
        metavar='GLOB',
        help='names of experiments; by default all',
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0, 1], help='(0 1)'
    )
    parser.add_argument(
        '--out', type=Path, default=RESULTS, help='folder of the results'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/methods'),
        help='folder of networks and logs (work_dirs/methods)',
    )
    add_debug_option(parser)
    return parser.parse_args(argv)


def add_list(parser: argparse.ArgumentParser) -> None:
    """Options for a list of experiments and its data."""
    lists = sorted(path.stem for path in LISTS.glob('[!_]*.py'))
    parser.add_argument('list', choices=lists, help='in configs/_methods/')
    parser.add_argument('--data-root', required=True, help='of the data set')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with errors_in_one_line(args.debug):
        run_all(args)


def run_all(args: argparse.Namespace) -> None:
    """Run the experiments that have no line in the results yet."""
    args.lr = None
    args.config = LISTS / f'{args.list}.py'
    file = args.out / f'{args.list}.jsonl'
    config = Config.fromfile(args.config)
    names = [
        name
        for name in config.experiments
        if any(fnmatchcase(name, pattern) for pattern in args.filter)
    ]
    if not names:
        raise SystemExit(
            f'error: --filter {" ".join(args.filter)}: no such experiment; '
            f'expected some of {", ".join(config.experiments)}'
        )
    folder = args.work_dir / args.list
    args.out.mkdir(parents=True, exist_ok=True)
    baseline = train_baseline(args, folder / 'baseline')
    jobs = [(name, seed) for seed in args.seeds for name in names]
    began, done = time.monotonic(), 0
    for left, (name, seed) in zip(range(len(jobs), 0, -1), jobs):
        known = {(r['experiment'], r['seed']) for r in read_results(file)}
        if (name, seed) in known:
            continue
        args.seed = seed
        result = run(args, name, baseline, folder / f'{name}_seed{seed}')
        with open(file, 'a') as lines:
            lines.write(json.dumps(result) + '\n')
        done += 1
        rest = (time.monotonic() - began) / done * (left - 1)
        (metric, unit), *_ = config.metrics.items()
        before, after = (
            f'{result[phase][metric]:.{config.get("decimals", 2)}f}'
            for phase in ('pruned', 'finetuned')
        )
        print(
            f'{name}, seed {seed}: {before} -> {after} {unit} '
            f'(at most {duration(rest)} left)',
            flush=True,
        )


def train_baseline(args: argparse.Namespace, folder: Path) -> Path:
    """Train what all experiments begin with, unless that was done."""
    path = folder / 'model.pth'
    if not path.exists():
        args.seed = 0
        config, _ = read_list(args)
        model = start(config, 0, args.weights)
        model = train(config, model, 'baseline', folder)
        metrics = test(config, model, folder)
        (metric, unit), *_ = config.metrics.items()
        places = config.get('decimals', 2)
        print(f'baseline: {metrics[metric]:.{places}f} {unit}', flush=True)
        with complete(folder / 'baseline.json') as partial:
            Path(partial).write_text(json.dumps(metrics))
        with complete(path) as partial:
            torch.save(dict(state_dict=model.state_dict()), partial)
    return path


def read_list(args: argparse.Namespace) -> tuple[Config, Mapping[str, Any]]:
    """Its config without experiments, and these: runners print configs."""
    config = read_config(args)
    return config, config.pop('experiments')


def start(config: Config, seed: int, weights: str | None) -> nn.Module:
    """Build the network, with weights of a file."""
    set_random_seed(seed)
    model = build_model(config)
    model.init_weights()
    if weights is not None:
        load(model, weights)
    return model


def run(
    args: argparse.Namespace, name: str, baseline: Path, out: Path
) -> dict[str, Any]:
    """Run one experiment.

    Returns:
        dict: Accuracy after pruning and after fine-tuning; remaining shares
        of ``flops``, ``acts`` and ``params`` and of the weights and outputs
        of every layer; the hooks and the machine.
    """
    config, experiments = read_list(args)
    hooks = experiments[name]
    began = time.time()
    model = start(config, args.seed, str(baseline))
    before, widths = cost_of(model, config.input_shape), widths_of(model)
    metrics = {}
    for phase in ('prune', 'finetune'):
        # weights are pruned before their only phase
        if phase == 'prune' and 'prune' not in hooks and hooks:
            continue
        config.phase_hooks = [dict(type='TestBeforeTraining')]
        if phase in hooks:
            config.phase_hooks.append(
                {
                    key: value.format(out=out) if key == 'structure' else value
                    for key, value in hooks[phase].items()
                }
            )
        model = train(config, model, phase, out)
        metrics[phase] = TestBeforeTraining.metrics
    after = cost_of(model, config.input_shape)
    return dict(
        experiment=name,
        seed=args.seed,
        hooks=hooks,
        phases={k: dict(config[k]) for k in ('baseline', 'prune', 'finetune')},
        baseline=json.loads(baseline.with_name('baseline.json').read_text()),
        # before fine-tuning starts, but with what pruning has trained
        pruned=metrics['finetune'],
        finetuned=test(config, model, out),
        shares={key: after[key] / before[key] for key in after},
        density=densities(model),
        widths={k: v / widths[k] for k, v in widths_of(model).items()},
        seconds=round(time.time() - began),
        machine=machine(get_device()),
        precision=precision(),
    )


def densities(model: nn.Module) -> dict[str, float]:
    """Share of the weights of every layer that are not zero."""
    return {
        name: float((module.weight != 0).float().mean())
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


if __name__ == '__main__':
    main()
