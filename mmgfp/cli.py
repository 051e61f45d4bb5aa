"""What the command-line tools share: errors in one line, training on CPUs.

Knows nothing of pruning.
"""

from __future__ import annotations

import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device

PACKAGE = Path(__file__).resolve().parent


def config_parser(purpose: str | None, example: str) -> ArgumentParser:
    """A parser with what every tool that takes a config has.

    Args:
        purpose (str, optional): What the tool does, one line.
        example (str): A command that works.
    """
    parser = ArgumentParser(description=purpose, epilog=f'example: {example}')
    parser.add_argument(
        'config',
        help='path, or short form: mmdet::..., mmpretrain::..., mmcls::...',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings of the config to override, as in '
        'optim_wrapper.optimizer.lr=0.01; lists as key="[a,b]"',
    )
    parser.add_argument(
        '--debug', action='store_true', help='show the traceback of errors'
    )
    return parser


def add_cost_options(parser: ArgumentParser) -> None:
    """Options of the tools that count cost."""
    parser.add_argument('--checkpoint', help='weights, slim ones too')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='input size that cost is counted at; by default that of the '
        "config's test images",
    )
    parser.add_argument('--json', help='also write the result to this file')


def add_launcher_options(parser: ArgumentParser) -> None:
    """Options of the tools that several processes may run."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started',
    )
    # torch.distributed.launch passes --local-rank, older ones --local_rank
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by it'
    )


@contextmanager
def errors_in_one_line(debug: bool = False) -> Iterator[None]:
    """Turn a user's mistake into one line and exit status 2.

    A mistake of the user is a :exc:`ValueError` or :exc:`FileNotFoundError`
    that mmgfp itself raised, possibly raised again by a registry on the way.
    Whatever other code raised keeps its traceback, for it may be a bug.

    Args:
        debug (bool): Whether to keep every traceback. Defaults to False.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        mistake = _raised_by_mmgfp(error)
        if debug or mistake is None:
            raise
        sys.stderr.write(f'error: {mistake}\n')
        raise SystemExit(2) from None


def _raised_by_mmgfp(error: BaseException) -> BaseException | None:
    """Find the error in a chain of errors that a line of mmgfp raised."""
    link: BaseException | None = error
    while link is not None:
        frames = traceback.extract_tb(link.__traceback__)
        known = isinstance(link, (ValueError, FileNotFoundError))
        if known and frames and PACKAGE in Path(frames[-1].filename).parents:
            return link
        link = link.__cause__ or link.__context__
    return None


def complete_dataloaders(config: Config) -> None:
    """Fill in what MMPretrain leaves to its own tools.

    MMDetection's configs spell these settings out; what a config says stays.

    Args:
        config (Config): The config of the runner, changed in place.
    """
    if config.get('default_scope') not in ('mmpretrain', 'mmcls'):
        return
    for phase in ('train', 'val', 'test'):
        loader = config.get(f'{phase}_dataloader')
        if loader:
            workers = loader.get('num_workers', 0)
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers', workers > 0)
            loader.setdefault('collate_fn', dict(type='default_collate'))


def set_launcher(config: Config, launcher: str) -> None:
    """Choose how processes were started, and make CPUs work with it.

    MMEngine picks a CUDA device for every process it is told of. Where there
    is none, the process group is started here and the model is wrapped
    without devices.

    Args:
        config (Config): The config of the runner, changed in place.
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
    """
    config.launcher = launcher
    if launcher != 'pytorch' or get_device() != 'cpu':
        return
    torch.distributed.init_process_group('gloo')
    wrapper = config.get('model_wrapper_cfg') or dict(
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    config.model_wrapper_cfg = dict(wrapper, device_ids=None)
