"""Tools in processes of their own, which start in a second.

A server imports the libraries once and every tool runs in a fork of it;
mmgfp is imported by the fork, as in a process that a user starts.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# those that are not installed are left out
LIBRARIES = [
    f'{package}.{module}'
    for package in ('mmdet', 'mmpretrain', 'mmcls')
    for module in (
        *('apis', 'datasets', 'engine', 'evaluation', 'models'),
        'visualization',
    )
]
_forking = multiprocessing.get_context('forkserver')
_forking.set_forkserver_preload(
    [*LIBRARIES, 'matplotlib.pyplot', 'rich.table', 'scipy.optimize']
)


def command(tool: str | Path, *args: Any) -> list[str]:
    path = tool if Path(tool).is_absolute() else ROOT / 'tools' / tool
    return [sys.executable, str(path), *map(str, args)]


def environment(**env: str) -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), str(ROOT)])
    return {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', **env}


class Tool:
    """A running tool, with the methods of ``subprocess.Popen`` that are used.

    Args:
        tool: A script in tools/, or an absolute path.
        *args: Of the command line.
        merged: Whether errors are written to the output, too.
        **env: Variables that are added to the environment.
    """

    def __init__(
        self, tool: str | Path, *args: Any, merged: bool = False, **env: str
    ):
        self._stack = contextlib.ExitStack()
        files = [self._file()]
        files.append(files[0] if merged else self._file())
        self._files = files
        self.args = command(tool, *args)
        self._process = _forking.Process(
            target=_execute,
            args=(self.args[1:], environment(**env), [f.name for f in files]),
        )
        self._process.start()

    def _file(self) -> Any:
        return self._stack.enter_context(
            tempfile.NamedTemporaryFile('r+', prefix='mmgfp_test_')
        )

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end.

        Raises:
            TimeoutExpired: It runs longer, in seconds, and goes on.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; returns output and errors."""
        self.wait(timeout)
        with self._stack:
            output, errors = (Path(f.name).read_text() for f in self._files)
        return output, errors


def run_tool(
    tool: str | Path, *args: Any, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess:
    """Run a tool in a process that finds the modules of the tests."""
    process = Tool(tool, *args, **env)
    try:
        output, errors = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(
        process.args, process.returncode, output, errors
    )


def _execute(argv: list[str], env: dict[str, str], files: list[str]) -> None:
    """Become a process that a shell has started with a script."""
    for descriptor, path in zip((1, 2), files):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(ROOT)
    sys.argv = argv
    start = [str(Path(argv[0]).parent), *env['PYTHONPATH'].split(os.pathsep)]
    sys.path[:] = [*start, *(p for p in sys.path if p not in start)]
    # what pytest or the tests had imported when they were unpickled
    for name in ('__main__', '__mp_main__'):
        sys.modules.pop(name, None)
    import torch

    torch.set_num_threads(int(env['OMP_NUM_THREADS']))
    runpy.run_path(argv[0], run_name='__main__')
