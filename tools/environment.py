"""Where and with what something was measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import (
    PackageNotFoundError,
    packages_distributions,
    version,
)
from pathlib import Path

from zoo_families import LIBRARIES

PACKAGES = ('torch', 'mmcv', *LIBRARIES)


def processor() -> str:
    """Number and name of the processor's cores."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
        names = [line for line in text.splitlines() if 'model name' in line]
        name = names[0].partition(': ')[2]
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f'{os.cpu_count()} cores of {name}'


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, by import name."""
    owners = packages_distributions()
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(owners.get(package, [package])[0])
        except PackageNotFoundError:
            found[package] = 'not installed'
    return found
