"""The command ``mmgfp`` with its subcommands.

Only the chosen subcommand is imported, so ``mmgfp --help`` needs no torch.
"""

from __future__ import annotations

import ast
import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ..utils.errors import NO_MMENGINE
from ..version import __version__

COMMANDS = (
    'groups',
    'cost',
    'prune',
    'report',
    'export',
    'latency-table',
    'benchmark',
    'train',
    'test',
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the subcommand named by the first argument."""
    parser = ArgumentParser(
        prog='mmgfp',
        description='Prune channels of MMDetection and MMPretrain models. '
        'mmgfp COMMAND --help describes a command.',
        epilog='example: mmgfp groups '
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        allow_abbrev=False,
    )
    parser.add_argument(
        '--version', action='version', version=f'mmgfp {__version__}'
    )
    commands = parser.add_subparsers(
        dest='command', metavar='COMMAND', required=True
    )
    for name in COMMANDS:
        # its own parser answers --help
        commands.add_parser(name, help=purpose(name), add_help=False)
    chosen, others = parser.parse_known_args(arguments)
    # `python -m mmgfp` finds modules here, too
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        command = import_module(_module(chosen.command))
    except ModuleNotFoundError:
        if find_spec('mmengine'):
            raise
        parser.exit(2, f'error: mmgfp {chosen.command} {NO_MMENGINE}\n')
    command.main(others)


def purpose(command: str) -> str:
    """Returns the first line of a command's file as its description."""
    file = Path(__file__).with_name(f'{command.replace("-", "_")}.py')
    text = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8')))
    return (text or '').partition('\n')[0]


def _module(command: str) -> str:
    return f'{__package__}.{command.replace("-", "_")}'
