"""Reads the files that pruning and MMEngine wrote into a work dir.

It depends on names and formats of files. No code in them is run.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..cost.model import METRICS
from ..slimming.history import Scores
from ..slimming.structure import Structure

_STRUCTURE = re.compile(r'((?:flops|acts|params|latency)_\d\.\d\d+)\.json')
# Numbers of a validation that do not depend on the network.
_NO_METRICS = ('data_time', 'time', 'step')
_BEGINNING = re.compile(
    r'^(load_from|resume) *= *(None|True|False|\'.*\'|".*")$', re.MULTILINE
)
_LARGEST_CONFIG = 16_000_000  # bytes; those of MMEngine have some thousands


@dataclass(frozen=True)
class SavedRatio:
    """Files of one saved ratio.

    Attributes:
        stem (str): Common part of their names, such as 'flops_0.50'.
        folder (Path): Their folder.
        structure (Structure): Structure of the slim network.
    """

    stem: str
    folder: Path
    structure: Structure

    @property
    def scores(self) -> Scores | None:
        """Scores that decided the channels; None if they were not saved."""
        return self.structure.scores

    @property
    def checkpoint(self) -> Path:
        """Path of the slim checkpoint, which may not exist."""
        return self.folder / f'{self.stem}.pth'

    @property
    def picture(self) -> Path:
        """Path of the figure of kept channels, which may not exist."""
        return self.folder / f'{self.stem}.png'

    @property
    def course(self) -> Path:
        """Path of the course of a search, which may not exist."""
        return self.folder / f'{self.stem}_search.json'

    @property
    def finetune_config(self) -> Path:
        """Path of the generated config, which may not exist."""
        return self.folder / f'{self.stem}_finetune.py'


@dataclass(frozen=True)
class Run:
    """One start of a tool: a folder that MMEngine named by its time.

    Files are read on demand: beside a work dir there may be large runs that do
    not belong to it.

    Attributes:
        folder (Path): That folder.
    """

    folder: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``load_from`` and ``resume`` of its config."""
        return beginning(self.folder / 'vis_data' / 'config.py')

    @cached_property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """Its scalars, line by line."""
        return [
            record
            for record in _json_lines(
                self.folder / 'vis_data' / 'scalars.json'
            )
            if 'iter' not in record or isinstance(record.get('step'), int)
        ]

    @cached_property
    def tested(self) -> Mapping[str, float]:
        """Metrics of a test; empty for a training."""
        found: dict[str, float] = {}
        for record in _json_lines(self.folder / f'{self.folder.name}.json'):
            found.update(_metrics(record))
        return found

    @property
    def trained(self) -> bool:
        """Whether the run has logged iterations of a training."""
        return any('iter' in record for record in self.records)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a validation or a test.

    Attributes:
        what (str): 'validation' or 'test'.
        of (str): Name of the file that was tested, or when in the training
            it was validated: 'epoch 2', 'iteration 500'.
        iteration (int): Iteration of the training at the validation; 0 if
            not known.
        metrics (Mapping): Name -> value, as in the library.
        place (Path): Folder of the run.
        ratios (Mapping): Remaining ratio of each cost, if it was logged.
    """

    what: str
    of: str
    iteration: int
    metrics: Mapping[str, float]
    place: Path
    ratios: Mapping[str, float]


def saved_ratios(work_dir: str | os.PathLike) -> list[SavedRatio]:
    """Returns the saved ratios in a work dir, descending.

    Raises:
        FileNotFoundError: If there is no such folder, or none in it.
        ValueError: If one of their files is damaged.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f'there is no folder {str(folder)!r}; expected the work dir of a '
            'pruning run'
        )
    stems = [
        match[1]
        for path in folder.iterdir()
        if (match := _STRUCTURE.fullmatch(path.name))
    ]
    if not stems:
        raise FileNotFoundError(
            f'there is no structure of pruned channels in {str(folder)!r}; '
            'expected a file such as flops_0.50.json, which pruning writes '
            'into its work dir when it reaches a ratio of save_at. Runs that '
            'prune single weights (density_*.json) have no report'
        )
    ratios = [
        SavedRatio(stem, folder, Structure.load(folder / f'{stem}.json'))
        for stem in stems
    ]
    return sorted(
        ratios, key=lambda r: (r.stem.split('_')[0], r.stem), reverse=True
    )


def read_runs(folder: Path) -> list[Run]:
    """Returns the runs in a work dir, by time."""
    # only names are read, because folders of images may be large
    return [
        Run(path)
        for path in sorted(folder.glob('[0-9]*_[0-9]*'))
        if _is_run(path) and path.is_dir()
    ]


def _is_run(path: Path) -> bool:
    """Returns whether a folder has the name that MMEngine gives to a run."""
    return re.fullmatch(r'\d{8}_\d{6}', path.name) is not None


def runs_around(work_dir: Path) -> Iterator[Run]:
    """Yields runs in a work dir, inside it, and up to two folders beside it.

    The tests of several networks may have one folder beside the work dir,
    with a folder for each of them.
    """
    folder = work_dir.resolve()
    yield from read_runs(folder)
    inside, beside = folder.glob('*'), folder.parent.glob('*')
    among = (
        path
        for path in folder.parent.glob('*/*')
        if path.parent != folder and not _is_run(path.parent)
    )
    for path in (*sorted(inside), *sorted(beside), *sorted(among)):
        if path.is_dir() and path != folder and not _is_run(path):
            yield from read_runs(path)


def _json_lines(path: Path) -> list[Mapping[str, Any]]:
    """Returns one object per line; incomplete lines are skipped."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text('utf-8', errors='replace').splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # or nested without end
            continue
        if isinstance(record, Mapping):
            found.append(record)
    return found


def beginning(path: Path) -> dict[str, Any]:
    """Returns load_from and resume of a config, without running it.

    It is empty if the file does not exist, cannot be read or was not written
    by MMEngine.
    """
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            return {}
        text = path.read_text('utf-8', errors='replace')
    except OSError:
        return {}
    found = {}
    for name, value in _BEGINNING.findall(text):
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):  # several strings, or damaged
            continue
    return found


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in record.items()
        if key not in _NO_METRICS and isinstance(value, (int, float))
    }


# -- a training that was resumed -------------------------------------------


def join_scalars(runs: Sequence[Run]) -> list[Mapping[str, Any]]:
    """Returns the scalars of a training that may have been resumed.

    If a later run resumed from an iteration, the lines that the earlier run
    logged after it are left out.

    Args:
        runs (Sequence[Run]): Runs of one work dir, by time.
    """
    joined: list[Mapping[str, Any]] = []
    for run in runs:
        if run.trained:
            first = next(r['step'] for r in run.records if 'iter' in r)
            end = next(
                (
                    i
                    for i, record in enumerate(joined)
                    if 'iter' in record and record['step'] >= first
                ),
                len(joined),
            )
            joined = [*joined[:end], *run.records]
    return joined


def validations(
    records: Sequence[Mapping[str, Any]], place: Path
) -> list[Evaluation]:
    """Returns the validations of a training, with the remaining cost.

    Args:
        records (Sequence[Mapping]): See :func:`join_scalars`.
        place (Path): The work dir.
    """
    found: list[Evaluation] = []
    last: Mapping[str, Any] = {}  # of the training
    for record in records:
        if 'iter' in record:
            last = record
        elif metrics := _metrics(record):
            ratios: dict[str, float] = {
                m: float(last[m]) for m in (*METRICS, 'latency') if m in last
            }
            step = int(record.get('step', 0))
            # MMEngine numbers validations by epoch unless configured otherwise
            by_epoch = 'epoch' in last or step < last.get('step', 0)
            when = f'{"epoch" if by_epoch else "iteration"} {step}'
            iteration = 0 if by_epoch else step
            found.append(
                Evaluation(
                    'validation', when, iteration, metrics, place, ratios
                )
            )
    return found


# -- which checkpoint a run began with -------------------------------------


def begins_with(run: Run, checkpoint: str | os.PathLike) -> bool:
    """Returns whether a run loaded a checkpoint, also of a moved folder."""
    loaded = run.config.get('load_from')
    if not isinstance(loaded, str):
        return False
    if '://' in loaded or '://' in os.fspath(checkpoint):
        return loaded == os.fspath(checkpoint)
    theirs, ours = Path(loaded), Path(checkpoint)
    try:
        if theirs.exists():
            return theirs.resolve() == ours.resolve()
    except (OSError, ValueError):  # no path at all
        return False
    # the folders were moved together
    return theirs.parts[-2:] == ours.resolve().parts[-2:]


def baseline_of(runs: Sequence[Run]) -> str:
    """Returns the checkpoint that a run began with; '' if not known."""
    for run in runs:
        loaded = run.config.get('load_from')
        if run.trained and loaded and not run.config.get('resume'):
            return str(loaded)
    return ''


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the last checkpoint of a training, if it still exists."""
    note = folder / 'last_checkpoint'
    if not note.is_file():
        return None
    # by name only, for the work dir may have been moved
    path = folder / Path(note.read_text('utf-8').strip()).name
    return path if path.is_file() else None


def read_course(path: Path) -> tuple[list[str], list[tuple[int, list[float]]]]:
    """Read what a search that was trained has written.

    Args:
        path (Path): Such as 'flops_0.50_search.json'.

    Returns:
        tuple: Names of G groups, and steps with (G,) expected ratios of their
        units.

    Raises:
        ValueError: If it is something else.
    """
    try:
        data = json.loads(path.read_text('utf-8'))
        groups = [str(name) for name in data['groups']]
        course = [
            (int(step), [float(ratio) for ratio in ratios])
            for step, ratios in data['course']
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{path} is no course of a search') from error
    if not course or any(len(r) != len(groups) for _, r in course):
        raise ValueError(
            f'{path} is no course of a search: expected a ratio of each of '
            f'its {len(groups)} groups in every step'
        )
    return groups, course
