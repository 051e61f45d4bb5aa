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

from torch.distributed import TCPStore

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# those that are not installed are left out
LIBRARIES = [
    f'{package}.{module}'
    for package in ('mmdet', 'mmpretrain', 'mmcls', 'mmseg')
    for module in (
        *('apis', 'datasets', 'engine', 'evaluation', 'models'),
        'visualization',
    )
]
_forking = multiprocessing.get_context('forkserver')
_forking.set_forkserver_preload(
    [*LIBRARIES, 'matplotlib.pyplot', 'rich.table', 'scipy.optimize']
)

LIMIT = 150  # seconds of several processes; a hang is a failure

# What each launcher puts into the environment of a process.
LAUNCHERS = dict(
    pytorch=dict(RANK='{rank}', LOCAL_RANK='{rank}', WORLD_SIZE='{ranks}'),
    slurm=dict(
        SLURM_PROCID='{rank}', SLURM_LOCALID='{rank}', SLURM_NTASKS='{ranks}'
    ),
    mpi=dict(
        OMPI_COMM_WORLD_RANK='{rank}',
        OMPI_COMM_WORLD_LOCAL_RANK='{rank}',
        OMPI_COMM_WORLD_SIZE='{ranks}',
    ),
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


def launch(
    config: Path,
    *args: str,
    ranks: int = 2,
    expected: int | None = 0,
    launcher: str = 'pytorch',
    stop_after: int | None = None,
) -> list[tuple[int, str]]:
    """Train with some processes; all must end as expected, in time.

    With ``stop_after`` the others are killed when that one has ended.
    Returns exit code and output of each.
    """
    # they meet at a store that listens already: a port that is only free now
    # may be taken by the time that they use it
    store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    processes = [
        Tool(
            'train.py',
            config,
            '--launcher',
            launcher,
            *args,
            merged=True,
            **{
                name: value.format(rank=rank, ranks=ranks)
                for name, value in LAUNCHERS[launcher].items()
            },
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE='True',
            TORCHELASTIC_RESTART_COUNT='0',
            CUDA_VISIBLE_DEVICES='',
        )
        for rank in range(ranks)
    ]
    try:
        if stop_after is not None:
            processes[stop_after].wait(LIMIT)
            for process in processes:
                process.kill()
        outputs = [p.communicate(timeout=LIMIT)[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    for rank, (code, output) in enumerate(zip(codes, outputs, strict=True)):
        # shown where the test fails, here or later
        print(f'process {rank} ended with {code}:\n{output[-4000:]}')
    assert expected is None or codes == [expected] * ranks
    return list(zip(codes, outputs, strict=True))


def _execute(argv: list[str], env: dict[str, str], files: list[str]) -> None:
    """Become a process that a shell has started with a script."""
    multiprocessing.set_start_method(None, force=True)
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
    import shortcuts
    import torch

    shortcuts.plain_logs()
    if Path(argv[0]).name == 'train.py':
        shortcuts.empty_pictures()
    torch.set_num_threads(int(env['OMP_NUM_THREADS']))
    runpy.run_path(argv[0], run_name='__main__')
