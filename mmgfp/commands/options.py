"""Options that several commands have."""

from __future__ import annotations

import json
import os
import re
import sys
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    HelpFormatter,
    Namespace,
)
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction

from ..libraries.config import load_config
from ..utils.atomic import complete


class _Help(HelpFormatter):
    """Keeps the example in one line, so that it can be copied to a shell."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith('example: '):
            return indent + text
        return super()._fill_text(text, width, indent)


def command_parser(
    name: str, purpose: str | None, example: str
) -> ArgumentParser:
    """A parser with what every command has.

    Args:
        name (str): Of the command.
        purpose (str, optional): What the command does, in one line.
        example (str): Arguments that work.
    """
    parser = ArgumentParser(
        prog=f'mmgfp {name}',
        description=purpose,
        epilog=f'example: mmgfp {name} {example}',
        formatter_class=_Help,
        allow_abbrev=False,
    )
    add_debug_option(parser)
    return parser


def config_parser(
    name: str, purpose: str | None, example: str
) -> ArgumentParser:
    """The same for a command that takes a config."""
    parser = command_parser(name, purpose, example)
    add_config_options(parser)
    return parser


def add_config_options(parser: ArgumentParser) -> None:
    """The config, and what changes it."""
    parser.add_argument(
        'config',
        help='path of a config, or the short form of an installed one: '
        'mmdet::..., mmpretrain::..., mmgfp::...',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Settings,
        metavar='KEY=VALUE',
        help='settings that override those of the config, such as '
        'optim_wrapper.optimizer.lr=0.01; a list is written as key="[a,b]"',
    )


def read_config(args: Namespace) -> Config:
    """The config that :func:`add_config_options` asks for, overridden."""
    config = load_config(args.config)
    config.merge_from_dict(args.cfg_options or {})
    return config


def add_debug_option(parser: ArgumentParser) -> None:
    """The option that :func:`errors_in_one_line` wants to know of."""
    parser.add_argument(
        '--debug', action='store_true', help='show the traceback of an error'
    )


def add_cost_options(parser: ArgumentParser) -> None:
    """Options of the commands that count cost."""
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='checkpoint of the model, pruned or not (default: none)',
    )
    add_shape_option(
        parser, 'height and width of the input that cost is counted at'
    )
    add_json_option(parser)


def add_shape_option(parser: ArgumentParser, what: str) -> None:
    """The option of commands that run a model on images of one size."""
    parser.add_argument(
        '--shape',
        nargs=2,
        type=positive,
        metavar=('H', 'W'),
        help=f"{what}, in pixels (default: size of the config's test images)",
    )


def add_device_option(parser: ArgumentParser) -> None:
    """The option of commands that measure."""
    parser.add_argument(
        '--device',
        type=_device,
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='device to measure on (default: cuda if PyTorch finds a GPU)',
    )


def _device(text: str) -> str:
    if text == 'cuda' and not torch.cuda.is_available():
        raise ArgumentTypeError(f'{text}: PyTorch finds no GPU here')
    return text


def add_json_option(parser: ArgumentParser) -> None:
    """The option of commands whose result a program may want."""
    parser.add_argument(
        '--json',
        metavar='FILE',
        help='also write the result to this file as JSON; with -, the JSON '
        'goes to standard output and the text to standard error',
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
