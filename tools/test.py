"""Test a checkpoint, pruned or not, with the model and data of a config."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import HOOKS, METRICS, RUNNERS
from mmengine.runner import CheckpointLoader, Runner

from mmgfp import FisherPruningHook, SparsityHook, StructureHook
from mmgfp.engine.cli import (
    complete_dataloaders,
    config_parser,
    errors_in_one_line,
    file_to_write,
    parse_launched,
    read_config,
    set_launcher,
    set_work_dir,
)
from mmgfp.libraries.kinds import kind_names
from mmgfp.libraries.loading import load_weights
from mmgfp.libraries.models import config_library, unwrap
from mmgfp.libraries.tta import augment_test
from mmgfp.slimming.checkpoint import check_checkpoint, weights_of


def parse_args() -> argparse.Namespace:
    parser = config_parser(
        __doc__,
        'python tools/test.py '
        'configs/retinanet/finetune_retinanet_acts_coco.py '
        'work_dirs/finetune_retinanet_acts_coco/epoch_12.pth',
    )
    parser.add_argument('checkpoint', help='path or address of the weights')
    parser.add_argument(
        '--out',
        type=file_to_write('.pkl', '.pickle'),
        metavar='FILE.pkl',
        help='file for the predictions',
    )
    parser.add_argument(
        '--show-dir', help='folder for the images with painted predictions'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test several views of each image: those of tta_pipeline and '
        'tta_model in the config, else it and its mirror image',
    )
    return parse_launched(parser)


def make_config(args: argparse.Namespace) -> Config:
    """Load the config and let the command line override it."""
    config = read_config(args)
    set_work_dir(config, args.work_dir)
    check_checkpoint(args.checkpoint, args.trust_checkpoint)
    config.load_from = args.checkpoint
    config.resume = False
    complete_dataloaders(config)
    if args.tta:
        augment_test(config)
    if args.show_dir is not None:
        show(config, args.show_dir)
    set_launcher(config, args.launcher)
    return config


def show(config: Config, folder: str) -> None:
    """Switch the visualization hook on, whose options differ by package."""
    hook = config.default_hooks.visualization
    folder = str(Path(folder).resolve())
    if 'DetVisualizationHook' in kind_names(hook, HOOKS):
        hook.update(draw=True, interval=1, test_out_dir=folder)
    else:
        hook.update(enable=True, interval=1, out_dir=folder)


def check_fit(runner: Runner, checkpoint: str) -> None:
    """Complain where MMEngine would go on with the weights that do fit."""
    hooks = (FisherPruningHook, SparsityHook, StructureHook)
    if any(isinstance(hook, hooks) for hook in runner.hooks):
        return  # they do so
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    weights = weights_of(loaded, checkpoint)
    load_weights(unwrap(runner.model), weights, checkpoint)


def main() -> None:
    args = parse_args()
    with errors_in_one_line(args.debug):
        config = make_config(args)
        if 'runner_type' in config:
            runner = RUNNERS.build(config)
        else:
            runner = Runner.from_cfg(config)
        check_fit(runner, args.checkpoint)
        if args.out is not None:
            # MMDetection's own also packs masks
            detection = config_library(config) == 'mmdet'
            dump = 'mmdet.DumpDetResults' if detection else 'DumpResults'
            runner.test_evaluator.metrics.append(
                METRICS.build(dict(type=dump, out_file_path=args.out))
            )
        runner.test()


if __name__ == '__main__':
    main()
