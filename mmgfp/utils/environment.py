"""The machine and the package versions of a measurement."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import date
from importlib.metadata import (
    PackageNotFoundError,
    packages_distributions,
    version,
)
from importlib.util import find_spec
from pathlib import Path

import torch

from mmgfp.version import __version__

# MMClassification became MMPretrain.
_CLASSIFICATION = 'mmpretrain' if find_spec('mmpretrain') else 'mmcls'
PACKAGES = ('torch', 'mmcv', 'mmdet', _CLASSIFICATION)


def processor() -> str:
    """Returns number and name of the processor's cores, and instruction set.

    Processors of the same name may have different instruction sets, and so
    different times.
    """
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
        names = [line for line in text.splitlines() if 'model name' in line]
        name = names[0].partition(': ')[2]
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    # torch.backends.cpu came with torch 2.1
    _, _, after = torch.__config__.show().partition('CPU capability usage: ')
    instructions = after.splitlines()[0]
    return f'{os.cpu_count()} cores of {name} ({instructions})'


def versions() -> dict[str, str]:
    """Returns versions of packages that affect results, by import name."""
    owners = packages_distributions()
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(owners.get(package, [package])[0])
        except PackageNotFoundError:
            found[package] = 'not installed'
    return found


def machine(device: str) -> dict[str, str]:
    """Returns the device, versions and date of a measurement."""
    return dict(
        device=torch.cuda.get_device_name()
        if device == 'cuda'
        else processor(),
        threads=str(torch.get_num_threads()),
        python=platform.python_version(),
        mmgfp=__version__,
        date=date.today().isoformat(),
        **versions(),
    )


def with_what(where: Mapping[str, str]) -> str:
    """Returns a sentence with all of :func:`machine` but the device.

    Args:
        where (Mapping): Result of :func:`machine`.
    """
    packages = ', '.join(
        f'{package} {where[package]}'
        for package in PACKAGES
        if package in where
    )
    count = where['threads']
    threads = f'{count} thread' + 's' * (count != '1')
    return (
        f'{threads}, Python {where["python"]}, {packages}, '
        f'mmgfp {where["mmgfp"]}, {where["date"]}.'
    )
