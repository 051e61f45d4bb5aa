"""Train the model of a config; prunes where the config has the hook."""

from __future__ import annotations

import argparse
import logging

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from mmgfp.engine.cli import (
    complete_dataloaders,
    config_parser,
    errors_in_one_line,
    parse_launched,
    read_config,
    set_launcher,
    set_work_dir,
)
from mmgfp.slimming.checkpoint import check_checkpoint


def parse_args() -> argparse.Namespace:
    parser = config_parser(
        __doc__,
        'python tools/train.py '
        'configs/retinanet/prune_retinanet_acts_coco.py --amp',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='checkpoint to resume from; without a value, the latest one in '
        'the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train with mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size',
    )
    return parse_launched(parser)


def make_config(args: argparse.Namespace) -> Config:
    """Load the config and let the command line override it."""
    config = read_config(args)
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
        check_checkpoint(start, args.trust_checkpoint)

    complete_dataloaders(config)
    set_launcher(config, args.launcher)
    return config


def set_resume(config: Config, checkpoint: str) -> None:
    """Resume from a checkpoint, or from the latest one where there is one.

    A run that was interrupted before its first checkpoint starts anew, with
    the weights that the config names.
    """
    if checkpoint != 'auto':
        config.resume, config.load_from = True, checkpoint
    elif find_latest_checkpoint(config.work_dir) is not None:
        config.resume, config.load_from = True, None
    else:
        config.resume = False
        print_log(
            f'there is no checkpoint in {config.work_dir} to resume from: '
            'training starts anew',
            level=logging.WARNING,
        )


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
        config = make_config(args)
        if 'runner_type' in config:
            runner = RUNNERS.build(config)
        else:
            runner = Runner.from_cfg(config)
        runner.train()


if __name__ == '__main__':
    main()
