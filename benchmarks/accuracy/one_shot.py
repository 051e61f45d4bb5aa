"""Compare scores by the accuracy before any fine-tuning.

Weights are pruned at once from the baseline of methods.py: by magnitude, and
by K-FAC with each damping and formula. Magnitude and the default of K-FAC are
repeated with the weights that stay compensating for those that go. The factors
are measured once; then K-FAC prunes in steps, with factors of the network of
each step. Channels are pruned at once by L1, by K-FAC with each damping and
formula, and with compensation.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from experiment import make_runner, read_config  # noqa: E402
from methods import LISTS, add_list, start  # noqa: E402

from mmgfp import Prunable, Pruner  # noqa: E402
from mmgfp.commands.errors import errors_in_one_line  # noqa: E402
from mmgfp.commands.options import add_debug_option  # noqa: E402
from mmgfp.criteria.base import Calibrated, Criterion  # noqa: E402
from mmgfp.criteria.kfac import KFAC, Formula  # noqa: E402
from mmgfp.criteria.magnitude import L1  # noqa: E402
from mmgfp.engine.calibration import calibrate  # noqa: E402
from mmgfp.groups import UnitSpace  # noqa: E402
from mmgfp.libraries.forward import demo_runner  # noqa: E402
from mmgfp.search.limits import Floor  # noqa: E402

# of single weights; the same for each formula
DAMPINGS = {
    'identity': dict(damping='identity'),
    **{
        f'{damping} {strength:g}': dict(damping=damping, strength=strength)
        for damping in ('pi', 'relative')
        for strength in (0.001, 0.01, 0.1, 1.0, 10.0)
    },
}
# of channels
KINDS = {
    'KFAC': dict(),
    'KFAC 0.01': dict(strength=0.01),
    'KFAC 1': dict(strength=1.0),
    'KFAC pi 0.001': dict(damping='pi'),
    'KFAC sum': dict(aggregate='sum'),
    'KFAC OBS': dict(formula='OBS'),
    'KFAC OBS sum': dict(formula='OBS', aggregate='sum'),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python benchmarks/accuracy/one_shot.py cifar10 '
        '--data-root DATA/cifar10 '
        '--weights work_dirs/methods/cifar10/baseline/model.pth',
    )
    add_list(parser)
    parser.add_argument('--weights', required=True, help='of the baseline')
    parser.add_argument(
        '--densities',
        type=float,
        nargs='*',
        default=[0.5, 0.2],
        help='of all weights (0.5 0.2)',
    )
    parser.add_argument(
        '--flops',
        type=float,
        nargs='*',
        default=[0.8, 0.6],
        help='that stay when channels are pruned (0.8 0.6)',
    )
    parser.add_argument(
        '--min-channels', type=int, default=1, help='of every group (1)'
    )
    parser.add_argument(
        '--steps', type=int, default=5, help='0: only at once (5)'
    )
    parser.add_argument(
        '--batches', type=int, default=32, help='of the calibration pass (32)'
    )
    add_debug_option(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Print the accuracy without channels, then without weights."""
    args.config, args.lr, args.seed = LISTS / f'{args.list}.py', None, 0
    config = read_config(args)
    config.pop('experiments')
    config.work_dir = 'work_dirs/one_shot'
    config.custom_hooks = config.param_scheduler = []
    config.train_cfg = dict(by_epoch=True, max_epochs=1)
    criteria: dict[str, tuple[Criterion, bool]] = {'L1': (L1(), False)}
    for name, kind in KINDS.items():
        criteria[name] = KFAC(batches=args.batches, **kind), False
    criteria['KFAC, compensated'] = KFAC(batches=args.batches), True
    for flops in args.flops:
        row: dict[str, Any] = dict(flops=flops)
        for name, (criterion, compensate) in criteria.items():
            runner = prepared(config, start(config, args.seed, args.weights))
            row[name] = without_channels(
                runner,
                flops,
                Floor(min_channels=args.min_channels),
                criterion,
                compensate,
            )
            print(f'{name}: {row[name]:.3f}', file=sys.stderr, flush=True)
        print(json.dumps(row), flush=True)
    if args.densities:
        runner = prepared(config, start(config, args.seed, args.weights))
        compare_weights(runner, args.densities, args.batches)
    for density in args.densities if args.steps else ():
        row = dict(density=density, steps=args.steps)
        for name, compensate in (('KFAC', False), ('KFAC, compensated', True)):
            runner = prepared(config, start(config, args.seed, args.weights))
            row[name] = in_steps(
                runner, density, args.steps, args.batches, compensate
            )
        print(json.dumps(row), flush=True)


def prepared(config: Config, model: nn.Module) -> Runner:
    """A runner with its loaders, as a calibration pass needs it."""
    runner = make_runner(config, model)
    runner.call_hook('before_run')  # LoggerHook makes its file
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    return runner


def tested(runner: Runner) -> float:
    """The first metric of the list; 0 for a detector that finds no box."""
    return runner.test_loop.run().get(next(iter(runner.cfg.metrics)), 0.0)


def without_channels(
    runner: Runner,
    flops: float,
    floor: Floor,
    criterion: Criterion,
    compensate: bool,
) -> float:
    """Test the network without the channels of the least scores."""
    run = demo_runner(runner.cfg.input_shape, 2)
    net = Prunable.find(runner.model, run, 2)
    pruner = Pruner(net, criterion, 'none', floor, compensate=compensate)
    if criterion.when == 'calibration':
        calibrate(runner, cast(Calibrated, criterion), net.units)
    pruner.prune(lambda _: net.ratio('flops') <= flops)
    return tested(runner)


def in_steps(
    runner: Runner, density: float, steps: int, batches: int, compensate: bool
) -> float:
    """Test the network after steps without training between them."""
    model = runner.model
    criterion = KFAC(batches=batches)
    criterion.compensates = compensate
    names = weight_names(model)
    for step in range(1, steps + 1):
        calibrate(runner, criterion, UnitSpace([]))
        gone = lowest(criterion.elements(names), density ** (step / steps))
        new = without(model, gone, criterion if compensate else None)
        model.load_state_dict({**model.state_dict(), **new})
        criterion.reset(np.ones(0, bool))
    return tested(runner)


def compare_weights(
    runner: Runner, densities: Sequence[float], batches: int
) -> None:
    """Print the accuracy at each density, for each score."""
    model = runner.model
    criterion = KFAC(batches=batches)
    criterion.compensates = True  # whole factors, for 'OBS', too
    calibrate(runner, criterion, UnitSpace([]))
    names = weight_names(model)
    weights = {name: model.get_parameter(name).detach() for name in names}
    magnitude = {name: w.abs().double() for name, w in weights.items()}
    for density in densities:
        row: dict[str, Any] = dict(density=density)
        row['magnitude'] = accuracy(runner, density, magnitude)
        for formula in get_args(Formula):
            for damping, kind in DAMPINGS.items():
                other = copy.copy(criterion)
                vars(other).update(kind, formula=formula)
                name = f'KFAC {formula} {damping}'
                row[name] = accuracy(runner, density, other.elements(names))
        scores = criterion.elements(names)
        for name, chosen in (('magnitude', magnitude), ('KFAC', scores)):
            found = accuracy(runner, density, chosen, criterion)
            row[f'{name}, compensated'] = found
        print(json.dumps(row), flush=True)


def accuracy(
    runner: Runner,
    density: float,
    scores: Mapping[str, Tensor],
    compensation: KFAC | None = None,
) -> float:
    """Test the network without the weights of the least scores."""
    model = runner.model
    before = copy.deepcopy(model.state_dict())
    new = without(model, lowest(scores, density), compensation)
    model.load_state_dict({**before, **new})
    found = tested(runner)
    model.load_state_dict(before)
    return found


def weight_names(model: nn.Module) -> list[str]:
    return [
        f'{name}.weight'
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]


def lowest(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Which weights have the least scores of all."""
    flat = torch.cat([part.flatten() for part in scores.values()])
    bound = flat.kthvalue(round((1 - density) * len(flat))).values
    return {name: part <= bound for name, part in scores.items()}


def without(
    model: nn.Module, gone: Mapping[str, Tensor], compensation: KFAC | None
) -> dict[str, Tensor]:
    """New parameters without some weights."""
    if compensation is not None:
        return compensation.compensated(gone)
    return {name: model.get_parameter(name) * ~gone[name] for name in gone}


if __name__ == '__main__':
    main()
