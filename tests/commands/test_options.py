"""What the command-line tools share."""

from __future__ import annotations

import json
import os
import re
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

import pytest

from mmgfp.commands.errors import errors_in_one_line
from mmgfp.commands.options import (
    add_cost_options,
    config_parser,
    file_to_write,
    json_alone,
    write_json,
)
from mmgfp.engine.settings import one_of


def parser() -> ArgumentParser:
    made = config_parser('x', 'Do something.', 'config.py')
    add_cost_options(made)
    return made


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (['--shape', '-5', '4'], "'-5': expected a whole number from 1"),
        (['--shape', '0', '4'], "'0': expected a whole number from 1"),
        (['--shape', 'a', '4'], "'a': expected a whole number from 1"),
        (['--cfg-options', 'a=1', 'foo'], '--cfg-options foo: expected KEY='),
        (['--cfg-options', '=1'], '--cfg-options =1: expected KEY='),
    ],
)
def test_bad_options(capsys, given, message):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(['config.py', *given])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_options():
    args = parser().parse_args(
        [
            'c.py',
            '--shape',
            '64',
            '96',
            '--cfg-options',
            'a.b=[1,2]',
            'c="d=e"',
        ]
    )
    assert args.shape == [64, 96]
    assert args.cfg_options == {'a.b': [1, 2], 'c': 'd=e'}


def test_help_has_an_example():
    assert 'example: mmgfp x config.py' in parser().format_help()


def test_json_stands_alone(capsys):
    """Libraries print as they are imported."""
    with json_alone('-'):
        print('Could not import a library')
        write_json('-', {'a': 2})
    found = capsys.readouterr()
    assert json.loads(found.out) == {'a': 2}
    assert found.err == 'Could not import a library\n'
    with json_alone(None):
        print('a table')
    assert capsys.readouterr().out == 'a table\n'


def test_json(tmp_path, capsys):
    write_json(str(tmp_path / 'new' / 'x.json'), {'a': 1})
    assert json.loads((tmp_path / 'new' / 'x.json').read_text()) == {'a': 1}
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['x.json']
    write_json('-', {'a': 2})
    assert json.loads(capsys.readouterr().out) == {'a': 2}


def test_mistakes_in_one_line(capsys):
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        one_of('scope', 'some', ('all',))
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: scope='some'")
    with pytest.raises(ValueError, match='scope'), errors_in_one_line(True):
        one_of('scope', 'some', ('all',))


@pytest.mark.parametrize('kind', [ValueError, KeyError, OSError])
def test_errors_of_others_keep_their_traceback_in_a_file(kind, capsys):
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        raise kind('mine')
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {kind.__name__}: ') and 'mine' in line
    (file,) = re.findall(r'\((.*) has the traceback', line)
    text = Path(file).read_text()
    os.remove(file)
    assert text.startswith('Traceback') and 'raise kind(' in text
    with pytest.raises(kind, match='mine'), errors_in_one_line(True):
        raise kind('mine')


def test_files_to_write(tmp_path):
    checked = file_to_write('.pkl', '.pickle')
    for name in ('a.pkl', 'new/folder/a.pickle'):
        assert checked(str(tmp_path / name)) == str(tmp_path / name)
    (tmp_path / 'd.pkl').mkdir()
    (tmp_path / 'file').touch()
    for name, message in (
        ('a.txt', r'a.txt.: expected a file that ends in \.pkl'),
        ('d.pkl', 'is a folder, expected a file'),
        ('file/a.pkl', 'nothing can be written into'),
    ):
        with pytest.raises(ArgumentTypeError, match=message):
            checked(str(tmp_path / name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['d.pkl', 'file']


def test_interrupted(capsys):
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == 'interrupted\n'
