"""Train the model of a config, and prune it if the config has the hook."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from ..slimming.checkpoint import check_checkpoint
from .errors import errors_in_one_line
from .launching import (
    check_hooks,
    complete_dataloaders,
    parse_launched,
    set_launcher,
    set_work_dir,
)
from .options import config_parser, read_config


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(
        'train',
        __doc__,
        'mmgfp::retinanet/prune_retinanet_acts_coco.py --amp',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue an interrupted training from this checkpoint; without '
        'a value, from the latest one in the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the ratio of the batch size to '
        'auto_scale_lr.base_batch_size of the config',
    )
    return parse_launched(parser, arguments)


def make_config(args: argparse.Namespace) -> Config:
    """Load the config and apply the overrides of the command line."""
    config = read_config(args)
    check_hooks(config)
    set_work_dir(config, args.work_dir)
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')

    if args.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            raise SystemExit(
                'error: --auto-scale-lr needs auto_scale_lr.base_batch_size, '
                'which the config does not have'
            )
        config.auto_scale_lr.enable = True

    if args.resume is not None:
        set_resume(config, args.resume)

    start = config.get('load_from')
    if config.get('resume') and not start:
        start = find_latest_checkpoint(config.work_dir)
    if start:
        try:
            check_checkpoint(start, args.trust_checkpoint)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'{error}: expected '
                + (
                    'one of the interrupted training after --resume'
                    if config.get('resume')
                    else 'a trained network in load_from of the config, or '
                    'after --cfg-options load_from='
                )
            ) from error

    if not config.get('train_dataloader'):
        raise ValueError(
            'train_dataloader is not set: expected the images to train with'
        )
    complete_dataloaders(config)
    set_launcher(config, args.launcher)
    return config


def set_resume(config: Config, checkpoint: str) -> None:
    """Resume from a checkpoint, or from the latest one if there is one.

    A run that was interrupted before its first checkpoint starts again with
    the weights of the config.
    """
    if checkpoint != 'auto':
        config.resume, config.load_from = True, checkpoint
    elif find_latest_checkpoint(config.work_dir) is not None:
        config.resume, config.load_from = True, None
    else:
        config.resume = False


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with errors_in_one_line(args.debug):
        config = make_config(args)
        if 'runner_type' in config:
            runner = RUNNERS.build(config)
        else:
            runner = Runner.from_cfg(config)
        if args.resume == 'auto' and not config.resume:
            runner.logger.warning(
                f'there is no checkpoint in {config.work_dir} to resume from: '
                'training starts from the beginning'
            )
        try:
            runner.train()
        except KeyboardInterrupt:
            latest = find_latest_checkpoint(config.work_dir)
            print_log(
                f'interrupted in iteration {runner.iter + 1}; '
                + (
                    f'`--resume` continues from {latest}'
                    if latest
                    else f'there is no checkpoint in {config.work_dir} yet'
                ),
                logger='current',
            )
            raise
