"""Prune every family of models that MMDetection and MMPretrain bring.

Every model is pruned at random with random weights, in processes of its own
with limits, and its slim network compared with the masked one. What is up to
date is not repeated, so an interrupted sweep goes on with the same command.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from zoo_families import LIBRARIES, Family, all_families
from zoo_report import verdict, write_report

import mmgfp
from mmgfp.commands.errors import errors_in_one_line
from mmgfp.commands.options import positive
from mmgfp.utils import environment
from mmgfp.utils.atomic import complete

HERE = Path(__file__).resolve().parent
REGISTERED = ('models', 'datasets')  # parts of a library that hold classes

NO_MEMORY = re.compile(
    r"MemoryError|bad_alloc|(can't|cannot|unable to) allocate", re.IGNORECASE
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__.partition('\n')[0],
        epilog='example: python benchmarks/zoo/zoo.py --filter '
        "'mmdet/faster_rcnn*' --out /tmp/zoo",
    )
    parser.add_argument(
        '--detection', action='store_true', help='families of MMDetection only'
    )
    parser.add_argument(
        '--classification',
        action='store_true',
        help='families of MMPretrain only',
    )
    parser.add_argument(
        '--filter',
        default='*',
        metavar='GLOB',
        help="names of families, such as 'mmdet/faster_rcnn*' (all)",
    )
    parser.add_argument(
        '--jobs', type=positive, default=1, metavar='N', help='at a time (1)'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('docs/zoo'),
        help='folder for results (docs/zoo)',
    )
    parser.add_argument(
        '--time-limit',
        type=float,
        default=600,
        metavar='S',
        help='seconds per family (600)',
    )
    parser.add_argument(
        '--memory-limit',
        type=float,
        default=12,
        metavar='GB',
        help='per process (12)',
    )
    parser.add_argument(
        '--fresh', action='store_true', help='repeat what is up to date'
    )
    parser.add_argument(
        '--list', action='store_true', help='print what would run, and stop'
    )
    parser.add_argument(
        '--debug', action='store_true', help='show the traceback of errors'
    )
    return parser.parse_args()


# -- what is run -----------------------------------------------------------


def chosen_families(args: argparse.Namespace) -> list[Family]:
    """Families that the arguments ask for."""
    libraries = LIBRARIES
    if args.detection != args.classification:
        libraries = LIBRARIES[:1] if args.detection else LIBRARIES[1:]
    families = [
        family
        for family in all_families(libraries)
        if fnmatchcase(family.name, args.filter)
    ]
    if not families:
        names = [family.name for family in all_families(libraries)]
        inside = [name for name in names if args.filter.strip('*') in name]
        hint = f', such as {inside[0]!r}' if inside else ''
        raise SystemExit(
            f'error: --filter {args.filter!r} matches no family; expected a '
            f'pattern for whole names{hint}. --list prints them'
        )
    return families


def versions() -> dict[str, str]:
    """Versions of what results depend on, mmgfp's by its source."""
    digest = hashlib.sha256()
    sources = sorted(Path(mmgfp.__file__).parent.rglob('*.py'))
    for file in [*sources, HERE / 'zoo_trial.py']:
        digest.update(file.name.encode() + b'\0' + file.read_bytes())
    own = {'mmgfp': f'{mmgfp.__version__}+{digest.hexdigest()[:12]}'}
    return {**own, **environment.versions()}


def up_to_date(
    result: Mapping[str, Any],
    family: Family,
    current: Mapping[str, str],
    limits: Mapping[str, float],
) -> bool:
    """Whether a family need not run again.

    One that broke a limit runs again when there is a more generous one.
    """
    if result.get('versions') != current:
        return False
    if result.get('config') != family.config:
        return False
    if not result.get('over_limit'):
        return True
    before = result.get('limits', {})
    return all(limits[key] <= before.get(key, 0) for key in limits)


def read_result(path: Path) -> dict[str, Any]:
    """What is known of a family; {} if nothing."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}


def unpack_results(out: Path) -> None:
    """Put what ``results.json`` tells of families into files of their own.

    So that the table keeps its other rows when some families run again.
    """
    if not (out / 'results.json').exists():
        return
    for result in json.loads((out / 'results.json').read_text('utf-8')):
        family = Family(result['family'], result['config'])
        file = out / 'families' / f'{family.file_name}.json'
        if not file.exists():
            with complete(file) as partial:
                text = json.dumps(result, indent=1) + '\n'
                Path(partial).write_text(text, encoding='utf-8')


# -- running it ------------------------------------------------------------


class Sweep:
    """Runs families in processes of their own, keeps what was found.

    Args:
        out (Path): Folder; results go to ``families/``, tracebacks to
            ``errors/``.
        limits (Mapping): ``seconds`` per family, ``gigabytes`` per process.
        jobs (int): Families at a time. Defaults to 1.
        script (Path, optional): Runs the steps of a trial; for tests.
    """

    steps = ('prune', 'check')

    def __init__(
        self,
        out: Path,
        limits: Mapping[str, float],
        jobs: int = 1,
        script: Path = HERE / 'zoo_trial.py',
    ) -> None:
        self.out = out
        self.limits = dict(limits)
        self.jobs = jobs
        self.versions = versions()
        self._stop = Event()
        # a sweep takes long: what is changed meanwhile must not get into it
        self._code = tempfile.TemporaryDirectory(prefix='zoo-code-')
        code = Path(self._code.name)
        self.script = Path(shutil.copy(script, code))
        shutil.copytree(
            Path(mmgfp.__file__).parent,
            code / 'mmgfp',
            ignore=shutil.ignore_patterns('__pycache__'),
        )
        for name in ('families', 'errors'):
            (out / name).mkdir(parents=True, exist_ok=True)
        unpack_results(out)
        self._warm = script == HERE / 'zoo_trial.py'
        if self._warm:
            self._start_server()

    def _start_server(self) -> None:
        """Have a process that has imported everything; trials fork from it.

        Importing a library takes as long as the rest of many trials.
        """
        os.environ['PYTHONPATH'] = os.pathsep.join(
            [self._code.name, os.environ.get('PYTHONPATH', '')]
        ).rstrip(os.pathsep)
        os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'
        if self.jobs > 1:
            os.environ['OMP_NUM_THREADS'] = '1'
        self._context = multiprocessing.get_context('forkserver')
        parts = [f'{lib}.{part}' for lib in LIBRARIES for part in REGISTERED]
        self._context.set_forkserver_preload([self.script.stem, *parts])

    def file(self, family: Family) -> Path:
        """Where the result of a family is kept."""
        return self.out / 'families' / f'{family.file_name}.json'

    def missing(
        self, families: Sequence[Family], fresh: bool = False
    ) -> list[Family]:
        """Families without a result that is up to date."""
        return [
            family
            for family in families
            if fresh
            or not up_to_date(
                read_result(self.file(family)),
                family,
                self.versions,
                self.limits,
            )
        ]

    def run(self, families: Sequence[Family], console: Console) -> None:
        """Run families; show each result, and the time left."""
        began = time.monotonic()
        bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
        )
        with bar, ThreadPoolExecutor(self.jobs) as pool:
            task = bar.add_task('', total=len(families))
            work = {pool.submit(self.family, f): f for f in families}
            try:
                for done, future in enumerate(as_completed(work), 1):
                    result = future.result()
                    pace = (time.monotonic() - began) / done
                    left = _clock(pace * (len(families) - done))
                    console.print(
                        f'[bold]{work[future].name}[/]: '
                        f'{escape(verdict(result))}, '
                        f'{_clock(result["wall_seconds"])}; {done} of '
                        f'{len(families)}, about {left} left',
                        highlight=False,
                        soft_wrap=True,
                    )
                    bar.update(
                        task, completed=done, description=f'{left} left'
                    )
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def family(self, family: Family) -> dict[str, Any]:
        """Run one family and keep its result."""
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix='zoo-'))
        try:
            failure = self._steps(family, folder, began)
            result = read_result(folder / 'result.json')
            trace = folder / 'errors.txt'
            errors = self.out / 'errors' / f'{family.file_name}.txt'
            errors.unlink(missing_ok=True)
            if trace.exists() or failure:
                text = trace.read_text() if trace.exists() else ''
                log = (folder / 'log.txt').read_text(errors='replace')
                errors.write_text(f'{text}\n{log[-5000:]}')
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        result.update(
            family=family.name,
            config=family.config,
            versions=self.versions,
            limits=self.limits,
            wall_seconds=round(time.monotonic() - began, 1),
        )
        # the self-check takes missing memory for a failure of the group
        frozen = ' '.join(row['full'] for row in result.get('frozen', ()))
        missing = NO_MEMORY.search(frozen)
        failure = failure or (missing[0] if missing else '')
        if failure or result.get('error'):
            result['error'] = failure or result['error']
            if NO_MEMORY.search(result['error']):
                result['error'] = (
                    f'needs more than {self.limits["gigabytes"]:g} GB of '
                    'memory'
                )
                result['over_limit'] = True
            elif 'takes more than' in result['error']:
                result['over_limit'] = True
        with complete(self.file(family)) as partial:
            Path(partial).write_text(
                json.dumps(result, indent=1) + '\n', encoding='utf-8'
            )
        return result

    def _steps(self, family: Family, folder: Path, began: float) -> str:
        """Run the processes of a trial; how they failed, '' if they did not.

        What a trial notes itself is no failure here.
        """
        run = self._fork if self._warm else self._process
        for step in self.steps:
            arguments = [step, family.config, str(folder), '--memory-limit']
            arguments.append(str(self.limits['gigabytes']))
            left = self.limits['seconds'] - (time.monotonic() - began)
            status = run(arguments, folder / 'log.txt', left)
            if status is None:
                return f'takes more than {self.limits["seconds"]:g} s'
            if status and not read_result(folder / 'result.json').get('error'):
                return _ending(status, folder / 'log.txt')
            if status:
                return ''
        return ''

    def _fork(
        self, arguments: Sequence[str], log: Path, seconds: float
    ) -> int | None:
        """As :meth:`_process`, from the process that has imported all."""
        process = self._context.Process(
            target=run_trial, args=(list(arguments), str(log))
        )
        process.start()
        deadline = time.monotonic() + seconds
        try:
            while process.is_alive():
                process.join(0.5)
                if self._stop.is_set():
                    raise KeyboardInterrupt
                if process.is_alive() and time.monotonic() > deadline:
                    return None
            return process.exitcode
        finally:
            if process.is_alive():
                process.kill()
                process.join()

    def _process(
        self, arguments: Sequence[str], log: Path, seconds: float
    ) -> int | None:
        """Exit status of a process; None if it took too long."""
        command = [sys.executable, str(self.script), *arguments]
        environment = dict(
            os.environ,
            OMP_WAIT_POLICY='PASSIVE',
            PYTHONPATH=os.pathsep.join(
                [self._code.name, os.environ.get('PYTHONPATH', '')]
            ).rstrip(os.pathsep),
        )
        if self.jobs > 1:
            environment['OMP_NUM_THREADS'] = '1'
        deadline = time.monotonic() + seconds
        with (
            log.open('a') as file,
            subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            ) as process,
        ):
            try:
                while True:
                    try:
                        return process.wait(0.5)
                    except subprocess.TimeoutExpired:
                        if self._stop.is_set():
                            raise KeyboardInterrupt from None
                        if time.monotonic() > deadline:
                            return None
            finally:
                if process.poll() is None:
                    # all that it started
                    os.killpg(process.pid, signal.SIGKILL)


def run_trial(arguments: Sequence[str], log: str) -> None:
    """What a forked process does."""
    import zoo_trial

    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.exit(zoo_trial.main(arguments))


def _ending(status: int, log: Path) -> str:
    """How a process ended that said nothing itself."""
    if status < 0:
        return f'was ended by {signal.Signals(-status).name}'
    lines = log.read_text(errors='replace').strip().splitlines()
    return f'ended with status {status}: {lines[-1] if lines else ""}'[:300]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes}:{seconds:02}'


def main() -> int:
    args = parse_args()
    # or processes would be left
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    with errors_in_one_line(args.debug):
        families = chosen_families(args)
        if args.list:
            for family in families:
                console.print(
                    f'{family.name}  {family.config}',
                    highlight=False,
                    soft_wrap=True,
                )
            return 0
        limits = dict(seconds=args.time_limit, gigabytes=args.memory_limit)
        sweep = Sweep(args.out, limits, args.jobs)
        missing = sweep.missing(families, args.fresh)
        console.print(
            f'{len(families)} families, {len(families) - len(missing)} of '
            'them are up to date'
        )
        try:
            sweep.run(missing, console)
        except KeyboardInterrupt:
            console.print('interrupted; run the same command to resume')
            return 130
        finally:
            write_report(args.out, sweep.versions)
    console.print(f'the table is in {args.out / "README.md"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
