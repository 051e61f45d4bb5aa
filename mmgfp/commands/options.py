"""Options shared by several commands."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch
from mmengine.config import Config, DictAction

from ..libraries.config import load_config
from ..utils.atomic import complete
from ..utils.errors import in_one_line


class _Help(HelpFormatter):
    """Keeps the example in one line, so that it can be copied to a shell."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith('example: '):
            return indent + text
        return super()._fill_text(text, width, indent)


class _Parser(ArgumentParser):
    """Names a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'error: {message}; see `{self.prog} --help`\n')


def command_parser(
    name: str, purpose: str | None, example: str
) -> ArgumentParser:
    """Returns a parser with the options of every command.

    Args:
        name (str): Name of the command.
        purpose (str, optional): Description of the command in one line.
        example (str): Valid arguments, shown as an example.
    """
    parser = _Parser(
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
    """Returns the parser of a command with a config."""
    parser = command_parser(name, purpose, example)
    add_config_options(parser)
    return parser


def add_config_options(parser: ArgumentParser) -> None:
    """Add the config and the overrides of its settings."""
    parser.add_argument(
        'config',
        help='path of a config, or the short form of an installed one: '
        'mmdet::..., mmpretrain::..., mmgfp::...',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Settings,
        metavar='KEY=VALUE',
        help='settings that override those of the config, such as '
        'optim_wrapper.optimizer.lr=0.01; a list is written as key="[a,b]"',
    )


def read_config(args: Namespace) -> Config:
    """Returns the config of :func:`add_config_options` with overrides.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If it cannot be read, or an override has no place in it.
    """
    config = load_config(args.config)
    options = args.cfg_options or {}
    try:
        config.merge_from_dict(options)
    except (KeyError, TypeError) as error:  # an index or a kind of value
        raise ValueError(
            f'--cfg-options {" ".join(options)}: {in_one_line(error)[:150]}; '
            'expected keys of the config, and for an entry of a list its '
            'number from 0, such as custom_hooks.0.interval=10'
        ) from error
    return config


def add_debug_option(parser: ArgumentParser) -> None:
    """Add the option ``--debug`` for :func:`errors_in_one_line`."""
    parser.add_argument(
        '--debug', action='store_true', help='show the traceback of an error'
    )


def add_cost_options(parser: ArgumentParser) -> None:
    """Add the options of commands that count cost."""
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='checkpoint of the model, pruned or not (default: none)',
    )
    add_shape_option(parser, 'height and width of the input for counting cost')
    add_json_option(parser)


def add_shape_option(parser: ArgumentParser, what: str) -> None:
    """Add the option of commands that run a model on images of one size."""
    parser.add_argument(
        '--shape',
        nargs=2,
        type=positive,
        metavar=('H', 'W'),
        help=f"{what}, in pixels (default: size of the config's test images)",
    )


def add_device_option(parser: ArgumentParser) -> None:
    """Add the device option of commands that measure."""
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
    """Add the option for a result as JSON."""
    parser.add_argument(
        '--json',
        metavar='FILE',
        help='also write the result to this file as JSON; with -, the JSON '
        'goes to standard output and the text to standard error',
    )


# Where JSON goes that is not written to a file; None: standard output.
_json_output: ContextVar[TextIO | None] = ContextVar('output', default=None)


@contextmanager
def json_alone(file: str | None) -> Iterator[None]:
    """Send all text to standard error if JSON goes to standard output.

    Libraries print there, too, as they are imported or read annotations.

    Args:
        file (str, optional): Value of the option ``--json``.
    """
    if file != '-':
        yield
        return
    token = _json_output.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_output.reset(token)


def write_json(file: str, result: Any) -> None:
    """Write a result as described for the option ``--json``."""
    text = json.dumps(result, indent=1) + '\n'
    if file == '-':
        (_json_output.get() or sys.stdout).write(text)
        return
    with complete(file) as partial:
        Path(partial).write_text(text, encoding='utf-8')


def positive(text: str) -> int:
    """Returns a whole number from 1, for argparse.

    Raises:
        ArgumentTypeError: If the text is not such a number.
    """
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f'{text!r}: expected a whole number from 1')


def file_to_write(*suffixes: str) -> Callable[[str], str]:
    """Returns the argparse type of an option for a file to write.

    It reports an impossible path before the work starts. Missing folders are
    made when the file is written.

    Args:
        *suffixes (str): Allowed suffixes, the usual one first.
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


class Settings(DictAction):
    """``KEY=VALUE ...``, with a clear error for other forms."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Set the values of the option; ends the program if one is none."""
        for value in values:
            if not re.match(r'[^=]+=', value):
                parser.error(f'{option_string} {value}: expected KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)
