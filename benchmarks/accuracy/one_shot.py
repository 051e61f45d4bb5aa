"""Compare scores of single weights by the accuracy before any fine-tuning.

Weights are pruned at once from the baseline of methods.py: by magnitude, and
by K-FAC with each damping. Both are repeated with the weights that stay
compensating for those that go. The factors are measured once.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from experiment import make_runner, read_config  # noqa: E402
from methods import LISTS, start  # noqa: E402
from results import score  # noqa: E402

from mmgfp.criteria.kfac import KFAC  # noqa: E402
from mmgfp.engine.calibration import calibrate  # noqa: E402
from mmgfp.groups import UnitSpace  # noqa: E402

# the default last, as compensation uses it
DAMPINGS = (
    ('identity', 0.0),
    *(('pi', strength) for strength in (1e-4, 1e-2, 0.1, 1.0, 1e-3)),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python benchmarks/accuracy/one_shot.py --data-root '
        'DATA/cifar10 --weights work_dirs/methods/cifar10/baseline/model.pth',
    )
    parser.add_argument('--data-root', required=True, help='of CIFAR-10')
    parser.add_argument('--weights', required=True, help='of the baseline')
    parser.add_argument(
        '--densities',
        type=float,
        nargs='+',
        default=[0.5, 0.2],
        help='of all weights (0.5 0.2)',
    )
    parser.add_argument(
        '--batches', type=int, default=32, help='of the calibration pass (32)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.config, args.lr, args.seed = LISTS / 'cifar10.py', None, 0
    config = read_config(args)
    config.work_dir = 'work_dirs/one_shot'
    config.custom_hooks = config.param_scheduler = []
    config.train_cfg = dict(by_epoch=True, max_epochs=1)
    model = start(config, args.seed, args.weights)
    runner = make_runner(config, model)
    runner.call_hook('before_run')  # LoggerHook makes its file
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    criterion = KFAC(batches=args.batches)
    calibrate(runner, criterion, UnitSpace([]))
    names = [
        f'{name}.weight'
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    weights = {name: model.get_parameter(name).detach() for name in names}
    magnitude = {name: w.abs().double() for name, w in weights.items()}
    for density in args.densities:
        row: dict[str, Any] = dict(density=density)
        row['magnitude'] = accuracy(runner, density, magnitude)
        for damping, strength in DAMPINGS:
            criterion.damping, criterion.strength = damping, strength
            scores = criterion.elements(names)
            name = f'KFAC {damping} {strength:g}'.removesuffix(' 0')
            row[name] = accuracy(runner, density, scores)
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
    flat = torch.cat([part.flatten() for part in scores.values()])
    bound = flat.kthvalue(round((1 - density) * len(flat))).values
    gone = {name: part <= bound for name, part in scores.items()}
    new = {name: model.get_parameter(name) * ~gone[name] for name in gone}
    if compensation is not None:
        new = compensation.compensated(gone)
    model.load_state_dict({**before, **new})
    found = score(runner.test_loop.run())
    model.load_state_dict(before)
    return found


if __name__ == '__main__':
    main()
