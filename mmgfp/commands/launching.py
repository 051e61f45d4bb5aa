"""Runners from the command line, and launchers of processes."""

from __future__ import annotations

import atexit
import os
import subprocess
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import HOOKS

from ..libraries.models import CLASSIFICATION, config_library
from ..registry import HOOKS as OWN_HOOKS
from ..utils.errors import did_you_mean


def parse_launched(
    parser: ArgumentParser, arguments: Sequence[str] | None
) -> Namespace:
    """Add the options of runners and launchers to a parser, and parse."""
    parser.add_argument(
        '--work-dir',
        metavar='FOLDER',
        help='folder for logs and checkpoints (default: work_dir of the '
        'config, else work_dirs/NAME OF THE CONFIG)',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='also load a checkpoint that holds objects other than tensors '
        'and plain types; loading such a checkpoint can run code',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='launcher that started the processes (default: none)',
    )
    # torch.distributed.launch passes --local-rank, older ones --local_rank
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='set by the launcher',
    )
    args = parser.parse_args(arguments)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def set_work_dir(config: Config, folder: str | None) -> None:
    """Set the work dir: command line, else config, else name of the config."""
    if folder is not None:
        config.work_dir = folder
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs', Path(config.filename).stem))


def check_hooks(config: Config) -> None:
    """Check that ``custom_hooks`` names hooks.

    Raises:
        ValueError: If an entry has no type, or mmgfp has no such hook.
    """
    for number, hook in enumerate(config.get('custom_hooks') or ()):
        kind = hook.get('type') if isinstance(hook, Mapping) else hook
        if kind is None:
            raise ValueError(
                f"custom_hooks[{number}] has no 'type': expected one such as "
                "dict(type='mmgfp.PruningHook', ...). A list in a config "
                'replaces that of its _base_'
            )
        scope, _, name = str(kind).rpartition('.')
        if scope == 'mmgfp' and HOOKS.get(kind) is None:
            known = sorted(OWN_HOOKS.module_dict)
            raise ValueError(
                f'custom_hooks[{number}]: there is no hook '
                f'{kind!r}{did_you_mean(name, known)} Expected one of '
                f'{", ".join(known)}'
            )


def complete_dataloaders(config: Config) -> None:
    """Add settings of dataloaders that MMPretrain's own tools add.

    MMDetection's configs contain these settings. Settings of the config stay.

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


# Variables of launchers: number of the process, number of processes, number of
# the process on its machine.
_TOLD = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=tuple(f'OMPI_COMM_WORLD_{n}' for n in ('RANK', 'SIZE', 'LOCAL_RANK')),
)
_STARTERS = dict(pytorch='torchrun', slurm='srun', mpi="Open MPI's mpirun")


def set_launcher(config: Config, launcher: str) -> None:
    """Set the launcher, and make it work without GPUs.

    MMEngine selects a CUDA device for every process of a launcher. If there
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
    # If a thread of gloo holds the tensors of the last collective when Python
    # ends, the process aborts or hangs: about one in four hundred that exit
    # at once (PyTorch 2.10). The thread needs the interpreter's lock once to
    # release them.
    atexit.register(time.sleep, 0.5)
    wrapper = config.get('model_wrapper_cfg') or dict(
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    config.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _find_master(launcher: str) -> None:
    """Set the address of the first process like MMEngine."""
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
