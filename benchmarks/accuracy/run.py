"""Run a list of experiments, each in its own process; resumable.

A folder in configs/ is a list. First every experiment runs with the first
seed and each learning rate of fine-tuning; then, with the rate that was best
for it, with the other seeds. Where the results say already which rate is best,
it is not asked again. A line is added to the results as each ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from precision import precision
from results import read_results, score, seeds_of, summaries

from mmgfp.commands.errors import errors_in_one_line
from mmgfp.commands.options import add_debug_option, positive
from mmgfp.engine.progress import duration

HERE = Path(__file__).parent

RESULTS = HERE / 'results'  # those of the page

Job = tuple[str, int, float]  # experiment, seed, learning rate


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python benchmarks/accuracy/run.py cifar10 '
        '--data-root DATA/cifar10 --weights DATA/cifar10_resnet20.th --jobs 2',
    )
    lists = sorted(p.name for p in (HERE / 'configs').glob('[!_]*/'))
    parser.add_argument('list', choices=lists, help='folder in configs/')
    parser.add_argument(
        '--data-root', required=True, help='folder of the data set'
    )
    parser.add_argument(
        '--weights',
        help='what the baseline is fine-tuned from; by default it is '
        'trained from random weights',
    )
    parser.add_argument(
        '--filter',
        nargs='+',
        default=['*'],
        metavar='GLOB',
        help='names of experiments; by default all',
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0, 1, 2], help='(0 1 2)'
    )
    parser.add_argument(
        '--baseline-seed',
        type=int,
        default=0,
        metavar='N',
        help='of the baseline that they begin with, whatever --seeds; on '
        'another kind of machine a number that no baseline has yet (0)',
    )
    parser.add_argument(
        '--lrs',
        nargs='+',
        type=float,
        help='of fine-tuning, to choose from where the results do not yet; '
        'by default those of the list, `rates` in its configs',
    )
    parser.add_argument(
        '--jobs', type=positive, default=1, help='processes at once (1)'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=RESULTS,
        help='folder for <list>.jsonl (benchmarks/accuracy/results)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder for networks and logs (work_dirs/accuracy/<list>)',
    )
    add_debug_option(parser)
    args = parser.parse_args(argv)
    if args.work_dir is None:
        args.work_dir = Path('work_dirs/accuracy', args.list)
    return args


def main() -> None:
    args = parse_args()
    # or experiments would be left
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with errors_in_one_line(args.debug):
        Experiments(args).run()


class Experiments:
    """A list of experiments and what is known of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.file = args.out / f'{args.list}.jsonl'
        self.results = read_results(self.file)
        folder = HERE / 'configs' / args.list
        self.configs = {
            path.stem: path
            for path in sorted(folder.glob('[!_]*.py'))
            if any(fnmatchcase(path.stem, f) for f in args.filter)
            or path.stem == 'baseline'
        }
        self.lrs = args.lrs or Config.fromfile(self.configs['baseline']).rates
        for pattern in args.filter:
            if not any(fnmatchcase(name, pattern) for name in self.configs):
                raise SystemExit(
                    f'error: --filter {pattern}: no experiment of that name '
                    f'in {folder}'
                )
        self._took: list[float] = []
        self._failed: list[str] = []

    def run(self) -> None:
        """All that is missing.

        Raises:
            SystemExit: If an experiment failed, the results in the file are
                of another baseline, or a package is missing.
        """
        names = [name for name in self.configs if name != 'baseline']
        seeds = self.args.seeds
        _, seed, _ = self._baseline
        baseline = self._jobs(['baseline'], [seed], [0.0])
        known = summaries(self.results)
        untuned = [
            name
            for name in names
            if name not in known
            or not set(self.lrs) <= set(known[name].tuning)
        ]
        tuning = self._jobs(untuned, seeds[:1], self.lrs)
        repeats = [j for j in self._repeats(names, seeds) if j not in tuning]
        self._check_peers(name for name, _, _ in tuning + repeats)
        if self._baseline_result.exists():
            self._check_baseline()
        elif tuning + repeats:
            # its result may come from elsewhere, what the others need not
            baseline = [self._baseline]
        if not baseline + tuning + repeats:
            print(f'nothing to do: {self.file} has all of it (--out FOLDER)')
        elif get_device() == 'cpu' and precision() != 'bfloat16':
            print(
                'warning: this processor has no instructions for bfloat16; '
                'experiments train in float32, which takes several times as '
                'long as the page says, and no baseline in bfloat16 will fit',
                file=sys.stderr,
            )
        self.args.out.mkdir(parents=True, exist_ok=True)
        self._run(baseline, len(tuning + repeats))
        if not self._failed:
            self._run(tuning, len(repeats))
            self._run(self._repeats(names, seeds), 0)
        if self._failed:
            raise SystemExit(f'error: failed: {", ".join(self._failed)}')

    def _check_peers(self, names: Iterable[str]) -> None:
        """Before a baseline is trained for nothing.

        Raises:
            SystemExit: If one of the experiments needs a package that is not
                installed.
        """
        if find_spec('torch_pruning') is not None:
            return
        for name in names:
            config = Config.fromfile(
                self.configs[name], import_custom_modules=False
            )
            if 'peers' in config.custom_imports.imports:
                raise SystemExit(
                    f'error: {name} needs Torch-Pruning, which is not '
                    f'installed: pip install --no-deps -r '
                    f'{HERE / "requirements.txt"}'
                )

    def _repeats(
        self, names: Sequence[str], seeds: Sequence[int]
    ) -> list[Job]:
        """With the rate that was best, which may not be known yet."""
        best = {n: s.lr for n, s in summaries(self.results).items()}
        failed = {name.partition('_seed')[0] for name in self._failed}
        return [
            job
            for seed in seeds
            for name in names
            if name not in failed
            for job in self._jobs(
                [name], [seed], [best.get(name, self.lrs[0])]
            )
        ]

    def _jobs(
        self, names: Iterable[str], seeds: Iterable[int], lrs: Iterable[float]
    ) -> list[Job]:
        """Those that have no result yet."""
        known = {
            (r['experiment'], r['seed'], r['lr'])
            for r in self.results
            if r['baseline_seed'] == self.args.baseline_seed
        }
        known |= {(n, s, 0.0) for n, s, _ in known if n == 'baseline'}
        wanted = [(n, s, lr) for lr in lrs for n in names for s in seeds]
        return [job for job in wanted if job not in known]

    def _run(self, jobs: list[Job], later: int) -> None:
        """Some jobs, so many at once; ``later`` is how many come after."""
        waiting = list(jobs)
        running: dict[Job, tuple[subprocess.Popen, float]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.args.jobs:
                    job = waiting.pop(0)
                    running[job] = (self._start(job), time.monotonic())
                    log = self._folder(job) / 'log.txt'
                    self._tell(job, f'began, {log}', waiting, running, later)
                time.sleep(1)
                for job in [
                    j for j in running if running[j][0].poll() is not None
                ]:
                    process, began = running.pop(job)
                    self._took.append(time.monotonic() - began)
                    outcome = self._end(job, process.returncode)
                    self._tell(job, outcome, waiting, running, later)
        finally:
            for process, _ in running.values():
                process.terminate()
                process.wait()

    def _name(self, job: Job) -> str:
        """Of the folder of a job."""
        name, seed, lr = job
        words = f'{name}_seed{seed}'
        if lr:
            words += f'_lr{lr:g}'
            if self.args.baseline_seed:
                words += f'_baseline{self.args.baseline_seed}'
        return words

    def _folder(self, job: Job) -> Path:
        return self.args.work_dir / self._name(job)

    @property
    def _baseline(self) -> Job:
        """What all begin with."""
        return 'baseline', self.args.baseline_seed, 0.0

    @property
    def _baseline_result(self) -> Path:
        """Written last, when the weights are beside it."""
        return self._folder(self._baseline) / 'result.json'

    def _start(self, job: Job) -> subprocess.Popen:
        name, seed, lr = job
        folder = self._folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.args.weights
        if name != 'baseline':
            weights = str(self._baseline_result.with_name('model.pth'))
        command = [sys.executable, str(HERE / 'experiment.py')]
        command += [str(self.configs[name])]
        if weights is not None:
            command += ['--load-from', weights]
        command += ['--data-root', self.args.data_root, '--seed', str(seed)]
        command += ['--out', str(folder)]
        if lr:
            command += ['--lr', str(lr)]
        with open(folder / 'log.txt', 'w') as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                # two processes of two threads wait for each other
                env={'OMP_NUM_THREADS': '1', **os.environ},
            )

    def _end(self, job: Job, code: int) -> str:
        folder = self._folder(job)
        if code:
            self._failed.append(self._name(job))
            return f'failed with status {code}, see {folder}/log.txt'
        result = json.loads((folder / 'result.json').read_text())
        pruned, tuned = score(result['pruned']), score(result['finetuned'])
        outcome = f'{pruned:.2f} -> {tuned:.2f}'
        if job == self._baseline and self._check_baseline():
            return f'{outcome}, as in {self.file}'
        result['baseline_seed'] = self.args.baseline_seed
        self.results.append(result)
        with open(self.file, 'a') as file:
            file.write(json.dumps(result) + '\n')
        flops = result['shares']['flops']
        return f'{outcome} with {flops:.1%} of the flops{self._before(job)}'

    def _before(self, job: Job) -> str:
        """What the page has, if its run is repeated somewhere else."""
        if self.args.out.resolve() == RESULTS.resolve():
            return ''
        name, seed, lr = job
        for run in read_results(RESULTS / self.file.name):
            if (
                run['experiment'] == name
                and seeds_of(run) == (self.args.baseline_seed, seed)
                and (job == self._baseline or run['lr'] == lr)
            ):
                page = f'docs/accuracy/{self.file.stem}.md'
                return f'; {page} has {score(run["finetuned"]):.2f}'
        return ''

    def _check_baseline(self) -> bool:
        """Whether the results have the baseline of the folder.

        Raises:
            SystemExit: If they have another one.
        """
        result = json.loads(self._baseline_result.read_text())
        here = score(result['finetuned'])
        for known in self.results:
            if (known['experiment'], known['seed']) == self._baseline[:2]:
                there = score(known['finetuned'])
                if abs(here - there) > 0.005:
                    raise SystemExit(
                        f'error: the baseline comes to {here:.2f} here and '
                        f'{there:.2f} in {self.file}: its other results do '
                        'not compare; give another --baseline-seed, or an '
                        'empty --out and --work-dir'
                    )
                return True
        return False

    def _tell(
        self, job: Job, what: str, waiting: list, running: dict, later: int
    ) -> None:
        left = len(waiting) + len(running) + later
        words = f'{left} left'
        if self._took and left:
            each = sum(self._took) / len(self._took) / self.args.jobs
            words += f', about {duration(each * left)}'
        now = time.strftime('[%H:%M:%S]')
        print(f'{now} {self._name(job)}: {what} ({words})', flush=True)


if __name__ == '__main__':
    main()
