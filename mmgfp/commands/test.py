"""Test a checkpoint, pruned or not, with the model and data of a config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import HOOKS, METRICS, RUNNERS
from mmengine.runner import CheckpointLoader, Runner

from ..engine.channel_hook import ChannelHook
from ..engine.sparsity_hook import SparsityHook
from ..engine.structure_hook import StructureHook
from ..libraries.kinds import kind_names
from ..libraries.loading import load_weights
from ..libraries.models import config_library, unwrap
from ..libraries.tta import augment_test
from ..slimming.checkpoint import check_checkpoint, weights_of
from .errors import errors_in_one_line
from .launching import (
    check_hooks,
    complete_dataloaders,
    parse_launched,
    set_launcher,
    set_work_dir,
)
from .options import config_parser, file_to_write, read_config


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(
        'test',
        __doc__,
        'mmgfp::retinanet/finetune_retinanet_acts_coco.py '
        'work_dirs/finetune_retinanet_acts_coco/epoch_12.pth',
    )
    parser.add_argument(
        'checkpoint', help='path or URL of the checkpoint, pruned or not'
    )
    parser.add_argument(
        '--out',
        type=file_to_write('.pkl', '.pickle'),
        metavar='FILE.pkl',
        help='file to write the predictions to',
    )
    parser.add_argument(
        '--show-dir',
        metavar='FOLDER',
        help='folder for images with drawn predictions',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: merge the predictions for several views '
        'of each image: those of tta_pipeline and tta_model in the config, '
        'else the image and its mirror image',
    )
    return parse_launched(parser, arguments)


def make_config(args: argparse.Namespace) -> Config:
    """Load the config and apply the overrides of the command line."""
    config = read_config(args)
    check_hooks(config)
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
    """Enable the visualization hook, whose options differ by package."""
    hook = config.default_hooks.visualization
    folder = str(Path(folder).resolve())
    if 'DetVisualizationHook' in kind_names(hook, HOOKS):
        hook.update(draw=True, interval=1, test_out_dir=folder)
    else:
        hook.update(enable=True, interval=1, out_dir=folder)


def check_fit(runner: Runner, checkpoint: str) -> None:
    """Raise if weights do not fit, which MMEngine only logs.

    Raises:
        ValueError: With the first weight that does not fit.
    """
    hooks = (ChannelHook, SparsityHook, StructureHook)
    if any(isinstance(hook, hooks) for hook in runner.hooks):
        return  # these hooks check the weights themselves
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    weights = weights_of(loaded, checkpoint)
    load_weights(unwrap(runner.model), weights, checkpoint)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
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
