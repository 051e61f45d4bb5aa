"""What the command-line tools share: errors in one line, training on CPUs.

Knows nothing of pruning.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device

from ..libraries.config import load_config
from ..libraries.models import CLASSIFICATION, config_library
from ..utils.atomic import complete
from ..utils.errors import type_and_line

PACKAGE = Path(__file__).resolve().parents[1]  # all of mmgfp


def config_parser(purpose: str | None, example: str) -> ArgumentParser:
    """A parser with what every tool that takes a config has.

    Args:
        purpose (str, optional): What the tool does, one line.
        example (str): A command that works.
    """
    parser = ArgumentParser(
        description=purpose, epilog=f'example: {example}', allow_abbrev=False
    )
    add_config_options(parser)
    add_debug_option(parser)
    return parser


def add_config_options(parser: ArgumentParser) -> None:
    """The config, and what changes it."""
    parser.add_argument(
        'config',
        help='path, or short form: mmdet::..., mmpretrain::..., mmcls::...',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Settings,
        metavar='KEY=VALUE',
        help='settings of the config to override, as in '
        'optim_wrapper.optimizer.lr=0.01; lists as key="[a,b]"',
    )


def read_config(args: Namespace) -> Config:
    """The config that :func:`add_config_options` asks for, overridden."""
    config = load_config(args.config)
    config.merge_from_dict(args.cfg_options or {})
    return config


def add_debug_option(parser: ArgumentParser) -> None:
    """The option that :func:`errors_in_one_line` wants to know of."""
    parser.add_argument(
        '--debug', action='store_true', help='show the traceback of errors'
    )


def add_cost_options(parser: ArgumentParser) -> None:
    """Options of the tools that count cost."""
    parser.add_argument('--checkpoint', help='weights, slim ones too')
    add_shape_option(parser, 'input size that cost is counted at')
    add_json_option(parser)


def add_shape_option(parser: ArgumentParser, what: str) -> None:
    """The option of tools that run a model on images of one size."""
    parser.add_argument(
        '--shape',
        nargs=2,
        type=positive,
        metavar=('H', 'W'),
        help=f"{what}; by default that of the config's test images",
    )


def add_device_option(parser: ArgumentParser) -> None:
    """The option of tools that measure."""
    parser.add_argument(
        '--device',
        type=_device,
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='by default the GPU if any',
    )


def _device(text: str) -> str:
    if text == 'cuda' and not torch.cuda.is_available():
        raise ArgumentTypeError(f'{text}: PyTorch finds no GPU here')
    return text


def add_json_option(parser: ArgumentParser) -> None:
    """The option of tools whose result a program may want."""
    parser.add_argument(
        '--json',
        metavar='FILE',
        help='also write the result to this file; - for standard output, '
        'instead of the words',
    )


def write_json(file: str, result: Any) -> None:
    """Write a result as the option ``--json`` has it."""
    text = json.dumps(result, indent=1) + '\n'
    if file == '-':
        sys.stdout.write(text)
        return
    with complete(file) as partial:
        Path(partial).write_text(text, encoding='utf-8')


def positive(text: str) -> int:
    """A whole number from 1, for argparse.

    Raises:
        ArgumentTypeError: If it is none.
    """
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f'{text!r}: expected a whole number from 1')


def file_to_write(*suffixes: str) -> Callable[[str], str]:
    """Type of an option that names a file to write, for argparse.

    Says at once what writing would say after the work is done. Folders that
    are missing are made when the file is written.

    Args:
        *suffixes (str): Those that the file may have, the usual one first.
    """

    def checked(text: str) -> str:
        if not text.endswith(suffixes):
            raise ArgumentTypeError(
                f'{text!r}: expected a file that ends in {suffixes[0]}'
            )
        path = Path(text).absolute()
        if path.is_dir():
            raise ArgumentTypeError(f'{text!r} is a folder, expected a file')
        there = next(parent for parent in path.parents if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ArgumentTypeError(
                f'{text!r}: nothing can be written into {str(there)!r}'
            )
        return text

    return checked


class _Settings(DictAction):
    """``KEY=VALUE ...``, with an error that says so."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for value in values:
            if not re.match(r'[^=]+=', value):
                parser.error(f'{option_string} {value}: expected KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)


def parse_launched(parser: ArgumentParser) -> Namespace:
    """Parse what a launcher, too, may have written; adds its options."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load a checkpoint that may run code: it holds objects other '
        'than tensors and plain types',
    )
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
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def set_work_dir(config: Config, folder: str | None) -> None:
    """Command line, then config, then the name of the config."""
    if folder is not None:
        config.work_dir = folder
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs', Path(config.filename).stem))


_MISTAKES = (ValueError, RuntimeError, FileNotFoundError)


@contextmanager
def errors_in_one_line(debug: bool = False) -> Iterator[None]:
    """Turn errors into one line: status 2 for a user's mistake, 1 for others.

    A mistake of the user is a :exc:`ValueError`, :exc:`RuntimeError` or
    :exc:`FileNotFoundError` that mmgfp itself raised, possibly raised again by
    a registry on the way. What other code raised may be a bug, or the end of
    hours of training: its traceback is kept in a file that the line names.
    Ctrl-C ends with status 130, as in a shell.

    Args:
        debug (bool): Whether to let every error through. Defaults to False.
    """
    try:
        yield
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write('interrupted\n')
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        mistake = _raised_by_mmgfp(error)
        if mistake is not None:
            sys.stderr.write(f'error: {mistake}\n')
            raise SystemExit(2) from None
        sys.stderr.write(
            f'error: {type_and_line(error)} ({_keep_traceback()} has the '
            'traceback; --debug shows it)\n'
        )
        raise SystemExit(1) from None


def _keep_traceback() -> str:
    """Write that of the error at hand into a file; returns its path."""
    number, path = tempfile.mkstemp(prefix='mmgfp_error_', suffix='.txt')
    with open(number, 'w', encoding='utf-8') as file:
        file.write(traceback.format_exc())
    return path


def _raised_by_mmgfp(error: BaseException) -> BaseException | None:
    """Find the error in a chain of errors that a line of mmgfp raised."""
    link: BaseException | None = error
    while link is not None:
        frames = traceback.extract_tb(link.__traceback__)
        known = isinstance(link, _MISTAKES)
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
    if config_library(config) not in CLASSIFICATION:
        return
    for phase in ('train', 'val', 'test'):
        loader = config.get(f'{phase}_dataloader')
        if loader:
            workers = loader.get('num_workers', 0)
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers', workers > 0)
            loader.setdefault('collate_fn', dict(type='default_collate'))


# What launchers tell a process: its number, how many there are, and its number
# on its machine.
_TOLD = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=tuple(f'OMPI_COMM_WORLD_{n}' for n in ('RANK', 'SIZE', 'LOCAL_RANK')),
)
_STARTERS = dict(pytorch='torchrun', slurm='srun', mpi="Open MPI's mpirun")


def set_launcher(config: Config, launcher: str) -> None:
    """Choose how processes were started, and make CPUs work with it.

    MMEngine picks a CUDA device for every process it is told of. Where there
    is none, the process group is started here and the model is wrapped
    without devices.

    Args:
        config (Config): The config of the runner, changed in place.
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ValueError: If the launcher has not started this process.
    """
    config.launcher = launcher
    if launcher == 'none':
        return
    missing = [name for name in _TOLD[launcher] if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher {launcher}: the environment has no {missing[0]}; '
            f'expected to be started by {_STARTERS[launcher]}'
        )
    if get_device() != 'cpu':
        return
    for name, told in zip(_TOLD['pytorch'], _TOLD[launcher]):
        os.environ[name] = os.environ[told]
    _find_master(launcher)
    settings = config.get('env_cfg', {}).get('dist_cfg', {})
    limit: dict[str, Any] = {}
    if settings.get('timeout'):  # seconds, as MMEngine reads it
        limit['timeout'] = timedelta(seconds=settings['timeout'])
    torch.distributed.init_process_group('gloo', **limit)
    # A thread of gloo that still holds the tensors of the last collective when
    # Python ends aborts the process, or hangs it: about one in four hundred
    # that exit right away (PyTorch 2.10). It needs the interpreter's lock once
    # to let go of them.
    atexit.register(time.sleep, 0.5)
    wrapper = config.get('model_wrapper_cfg') or dict(
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    config.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _find_master(launcher: str) -> None:
    """Where processes meet, as MMEngine finds it."""
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' in os.environ:
        return
    if launcher != 'slurm':
        raise ValueError(
            f'--launcher {launcher}: the environment has no MASTER_ADDR; '
            'expected the address of the first machine there, such as '
            '127.0.0.1'
        )
    command = ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']]
    hosts = subprocess.run(command, capture_output=True, text=True, check=True)
    os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
