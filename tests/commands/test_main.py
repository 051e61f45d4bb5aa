"""The command ``mmgfp``: it lists the others, and runs them."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from processes import ROOT, environment

from mmgfp.commands.main import COMMANDS, main, purpose
from mmgfp.version import __version__

SCRIPTS = {name: f'{name.replace("-", "_")}.py' for name in COMMANDS}


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_lists_all_commands_in_a_line_each(capsys):
    with pytest.raises(SystemExit) as end:
        main(['--help'])
    assert not end.value.code
    printed = ' '.join(capsys.readouterr().out.split())
    for name in COMMANDS:
        assert purpose(name).endswith('.')
        assert f'{name} {purpose(name)}' in printed


def test_as_a_module_without_what_takes_long_to_import():
    code = """
import runpy, sys
for name in ('torch', 'mmengine', 'numpy'): sys.modules[name] = None
sys.argv = ['mmgfp', '--help']
runpy.run_module('mmgfp', run_name='__main__')
"""
    done = run('-c', code)
    assert done.returncode == 0, done.stderr
    assert 'latency-table' in done.stdout


def test_without_mmengine():
    code = "import sys; sys.modules['mmengine'] = None; "
    code += "from mmgfp.commands.main import main; main(['groups', 'x.py'])"
    done = run('-c', code)
    assert done.returncode == 2
    line = last_line(done.stderr)
    assert line.startswith('error: mmgfp groups needs MMEngine, which is not')


def test_version():
    done = run('-m', 'mmgfp', '--version')
    assert done.stdout == f'mmgfp {__version__}\n'


def test_modules_in_the_current_folder(tmp_path, monkeypatch):
    """As with `python -m mmgfp`; the script of the package lacks it."""
    (tmp_path / 'beside_the_config.py').write_text('')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p])
    with pytest.raises(SystemExit):
        main(['groups', '--help'])
    assert find_spec('beside_the_config')


@pytest.mark.parametrize('given', [['pruned'], [], ['--gpu']])
def test_unknown_command(capsys, given):
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('mmgfp: error: ')
    assert given != ['pruned'] or "'pruned' (choose from" in line


@pytest.mark.parametrize('name', COMMANDS)
def test_help_has_an_example(capsys, name):
    with pytest.raises(SystemExit) as end:
        main([name, '--help'])
    assert not end.value.code
    help_text = capsys.readouterr().out
    printed = ' '.join(help_text.split())
    assert printed.startswith(f'usage: mmgfp {name} ')
    assert purpose(name).split('.')[0] in printed
    # in one line, whatever the width of the terminal: it is to be copied
    example = help_text.strip().splitlines()[-1]
    assert example.startswith(f'example: mmgfp {name} ')
    assert ' --debug ' in printed


def last_line(text: str) -> str:
    """Of errors; MMEngine with torch 2.4 warns before."""
    assert 'Traceback' not in text
    return text.splitlines()[-1]


@pytest.mark.parametrize('how', ['module', 'tool'])
def test_mistakes_in_one_line(how):
    command = [str(ROOT / 'tools/groups.py')]
    if how == 'module':
        command = ['-m', 'mmgfp', 'groups']
    done = run(*command, 'mmgfp::retinanet/no_such.py')
    assert done.returncode == 2
    line = last_line(done.stderr)
    assert line.startswith("error: mmgfp has no config 'retinanet/no_such.py'")


def test_a_tool_for_every_command():
    others = {'make_digits.py', 'quickstart.py'}
    there = {path.name for path in (ROOT / 'tools').glob('*.py')}
    assert there - others == {*SCRIPTS.values()}
    for script in SCRIPTS.values():
        text = (ROOT / 'tools' / script).read_text()
        assert f'mmgfp.commands.{script[:-3]} import main' in text
