"""One experiment: train the baseline, or prune it and fine-tune it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner, set_random_seed
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from precision import precision  # noqa: E402

from mmgfp.cost.model import count_cost, record_calls  # noqa: E402
from mmgfp.libraries.forward import cost_runner  # noqa: E402
from mmgfp.libraries.models import build_model  # noqa: E402
from mmgfp.slimming.checkpoint import load_plain_checkpoint  # noqa: E402
from mmgfp.utils.atomic import complete  # noqa: E402
from mmgfp.utils.environment import machine  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        epilog='example: python benchmarks/accuracy/experiment.py '
        'benchmarks/accuracy/configs/cifar10/fisher_acts.py --data-root '
        'DATA/cifar10 --load-from baseline/model.pth --out work_dirs/one',
    )
    parser.add_argument('config', help='one of configs/')
    parser.add_argument('--data-root', required=True, help='of the data set')
    parser.add_argument(
        '--load-from', help='weights to start; random ones by default'
    )
    parser.add_argument('--out', required=True, type=Path, help='folder')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--lr', type=float, help='of fine-tuning')
    return parser.parse_args(argv)


def read_config(args: argparse.Namespace) -> Config:
    """The config of an experiment with what the command line says."""
    config = Config.fromfile(args.config)
    if args.lr is not None:
        config.finetune.lr = args.lr
    for loader in (config.train_dataloader, config.test_dataloader):
        dataset = loader.dataset
        if 'folder' in dataset:
            dataset.folder = str(Path(args.data_root, dataset.folder))
        else:
            dataset.data_root = args.data_root
    evaluator = config.test_evaluator
    if 'ann_file' in evaluator:
        evaluator.ann_file = str(Path(args.data_root, evaluator.ann_file))
    config.randomness = dict(seed=args.seed)
    config.load_from = None
    config.visualizer = None
    return config


def train(
    config: Config,
    model: nn.Module,
    phase: str,
    out: Path,
) -> nn.Module:
    """Train for as long as a phase lasts; returns the trained network."""
    settings = config[phase]
    phased = config.copy()
    phased.optim_wrapper.optimizer.lr = settings.lr
    phased.train_cfg = dict(by_epoch=True, max_epochs=settings.epochs)
    phased.param_scheduler = []
    if phase != 'prune':
        phased.param_scheduler = [
            dict(
                type='CosineAnnealingLR',
                T_max=settings.epochs,
                convert_to_iter_based=True,
            )
        ]
        if 'warmup' in settings:
            rise = dict(type='LinearLR', start_factor=0.05, by_epoch=False)
            phased.param_scheduler.append(dict(rise, end=settings.warmup))
    phased.custom_hooks = config.get('phase_hooks', [])
    if phase == 'prune' and config.get('pruning'):
        phased.custom_hooks = [config.pruning]
    phased.work_dir = str(out / phase)
    runner = make_runner(phased, model)
    runner.train()
    return runner.model


def test(config: Config, model: nn.Module, out: Path) -> dict[str, float]:
    """Metrics on the test set."""
    phased = config.copy()
    phased.work_dir = str(out / 'test')
    for key in ('train_dataloader', 'optim_wrapper'):
        phased[key] = None
    return plain(make_runner(phased, model).test())


def plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that JSON can hold; some are numbers of NumPy."""
    return {name: float(value) for name, value in metrics.items()}


def make_runner(config: Config, model: nn.Module) -> Runner:
    """With a model that is built already."""
    config.experiment_name = f'{Path(config.work_dir).name}_{time.time_ns()}'
    settings = {
        key: config.get(key)
        for key in (
            *('work_dir', 'train_dataloader', 'test_dataloader', 'train_cfg'),
            *('test_cfg', 'optim_wrapper', 'param_scheduler', 'visualizer'),
            *('test_evaluator', 'default_hooks', 'custom_hooks', 'env_cfg'),
            *('log_level', 'default_scope', 'randomness', 'experiment_name'),
        )
    }
    if settings['train_dataloader'] is None:
        settings['train_cfg'] = settings['param_scheduler'] = None
    # three quarters of the time on a CPU, again after channels were removed
    model = model.to(memory_format=torch.channels_last)
    return Runner(model=model, cfg=config, **settings)


def cost_of(model: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    run = cost_runner(shape)
    model.eval()
    return count_cost(model, record_calls(model, lambda: run(model)))['']


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    config = read_config(args)
    began = time.time()
    set_random_seed(args.seed)
    model = build_model(config)
    # once, for a runner would do it to what was loaded as well
    model.init_weights()
    if args.load_from:
        load(model, args.load_from)
    shape = config.input_shape
    before, widths = cost_of(model, shape), widths_of(model)
    result: dict[str, Any] = dict(
        experiment=Path(args.config).stem,
        seed=args.seed,
        lr=config[config.train_phases[-1]].lr,
        pruning=config.get('pruning') and dict(config.pruning),
        phases={k: dict(config[k]) for k in ('baseline', 'prune', 'finetune')},
    )
    *earlier, last = config.train_phases
    for phase in earlier:
        model = train(config, model, phase, args.out)
    # of the baseline: with the weights that it begins with
    result['pruned'] = test(config, model, args.out)
    model = train(config, model, last, args.out)
    result['finetuned'] = test(config, model, args.out)
    after = cost_of(model, shape)
    result['cost'] = after
    result['widths'] = {
        name: [left, widths[name]] for name, left in widths_of(model).items()
    }
    result['shares'] = {key: after[key] / before[key] for key in after}
    result['seconds'] = round(time.time() - began)
    result['machine'] = machine(get_device())
    result['precision'] = precision()
    if 'torch_pruning' in sys.modules:
        result['torch_pruning'] = version('torch-pruning')
    with complete(args.out / 'model.pth') as partial:
        torch.save(dict(state_dict=model.state_dict()), partial)
    with complete(args.out / 'result.json') as partial:
        Path(partial).write_text(json.dumps(result, default=str))


def widths_of(model: nn.Module) -> dict[str, int]:
    """Output channels of every convolution."""
    return {
        name: module.weight.shape[0]
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def load(model: nn.Module, path: str) -> None:
    """Weights of a baseline, or public ones, which lack the shortcuts."""
    weights = load_plain_checkpoint(path)['state_dict']
    missing, unknown = model.load_state_dict(converted(weights), strict=False)
    missing = [name for name in missing if 'shortcut' not in name]
    if unknown or missing:
        network = type(getattr(model, 'backbone', model)).__name__
        raise SystemExit(
            f'error: {path} does not fit {network}: '
            f'missing {missing or "nothing"}, unknown {unknown or "nothing"}; '
            'give the weights that the list names'
        )


def converted(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Public weights under the names of the networks here."""
    if not any(name.startswith('module.') for name in weights):
        return weights
    names = {name: name.removeprefix('module.') for name in weights}
    return {
        new.replace('linear', 'head.fc')
        if 'linear' in new
        else f'backbone.{new}': weights[old]
        for old, new in names.items()
    }


if __name__ == '__main__':
    main()
