"""What a pruning run and MMEngine left on disk, read back.

Knows names and formats of files. Nothing in them is executed.
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
# Numbers of a validation that tell nothing of the network.
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
        folder (Path): Where they are.
        structure (Structure): What is left.
    """

    stem: str
    folder: Path
    structure: Structure

    @property
    def scores(self) -> Scores | None:
        """By which channels were chosen; None where that was not kept."""
        return self.structure.scores

    @property
    def checkpoint(self) -> Path:
        """The slim checkpoint, there or not."""
        return self.folder / f'{self.stem}.pth'

    @property
    def picture(self) -> Path:
        """The picture of kept channels, there or not."""
        return self.folder / f'{self.stem}.png'

    @property
    def finetune_config(self) -> Path:
        """The generated config, there or not."""
        return self.folder / f'{self.stem}_finetune.py'


@dataclass(frozen=True)
class Run:
    """One start of a tool: a folder that MMEngine named by its time.

    Its files are read when they are asked for: beside a work dir there may
    be runs of any size that have nothing to do with it.

    Attributes:
        folder (Path): That folder.
    """

    folder: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What it began with: ``load_from`` and ``resume``."""
        return beginning(self.folder / 'vis_data' / 'config.py')

    @cached_property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """Lines of its scalars, in order."""
        return [
            record
            for record in _json_lines(
                self.folder / 'vis_data' / 'scalars.json'
            )
            if 'iter' not in record or isinstance(record.get('step'), int)
        ]

    @cached_property
    def tested(self) -> Mapping[str, float]:
        """Metrics of a test; empty if it was a training."""
        found: dict[str, float] = {}
        for record in _json_lines(self.folder / f'{self.folder.name}.json'):
            found.update(_metrics(record))
        return found

    @property
    def trained(self) -> bool:
        """Whether it has logged iterations of a training."""
        return any('iter' in record for record in self.records)


@dataclass(frozen=True)
class Evaluation:
    """Metrics that a validation or a test found.

    Attributes:
        what (str): 'validation' or 'test'.
        of (str): Name of the file that was tested, or when in the training
            it was validated: 'epoch 2', 'iteration 500'.
        iteration (int): Of the training that a validation interrupted; 0 if
            not known.
        metrics (Mapping): Name -> value, as the library has it.
        place (Path): Folder of the run.
        shares (Mapping): Remaining share of each cost, where it was logged.
    """

    what: str
    of: str
    iteration: int
    metrics: Mapping[str, float]
    place: Path
    shares: Mapping[str, float]


def saved_ratios(work_dir: str | os.PathLike) -> list[SavedRatio]:
    """The saved ratios in a work dir, from large to small.

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
            f'there is no structure in {str(folder)!r}; expected a file such '
            'as flops_0.50.json, which pruning leaves in its work dir when it '
            'has reached a share of save_at'
        )
    ratios = [
        SavedRatio(stem, folder, Structure.load(folder / f'{stem}.json'))
        for stem in stems
    ]
    return sorted(
        ratios, key=lambda r: (r.stem.split('_')[0], r.stem), reverse=True
    )


def read_runs(folder: Path) -> list[Run]:
    """The runs in a work dir, by time."""
    # of large folders of pictures nothing but the names is looked at
    return [
        Run(path)
        for path in sorted(folder.glob('[0-9]*_[0-9]*'))
        if re.fullmatch(r'\d{8}_\d{6}', path.name) and path.is_dir()
    ]


def runs_around(work_dir: Path) -> Iterator[Run]:
    """Runs in a work dir, in the folders inside it, and beside it."""
    folder = work_dir.resolve()
    yield from read_runs(folder)
    for place in (folder, folder.parent):
        for path in sorted(place.glob('*')):
            if path.is_dir() and path != folder:
                yield from read_runs(path)


def _json_lines(path: Path) -> list[Mapping[str, Any]]:
    """Objects, one a line; a line that a crash cut short is left out."""
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
    """What a config says of how a run began, without running it.

    Empty where the file is not there, is none that MMEngine wrote, or cannot
    be read.
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
    """Scalars of a training in order, whatever interrupted it.

    What a run logged after the iteration that a later one went on from is
    left out: the later one did it again.

    Args:
        runs (Sequence[Run]): Of one work dir, by time.
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
    """Validations of a training, with the cost that was left by then.

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
            shares: dict[str, float] = {
                m: float(last[m]) for m in (*METRICS, 'latency') if m in last
            }
            step = int(record.get('step', 0))
            # MMEngine numbers validations by epoch, if not told otherwise
            by_epoch = 'epoch' in last or step < last.get('step', 0)
            when = f'{"epoch" if by_epoch else "iteration"} {step}'
            iteration = 0 if by_epoch else step
            found.append(
                Evaluation(
                    'validation', when, iteration, metrics, place, shares
                )
            )
    return found


# -- which checkpoint a run began with -------------------------------------


def begins_with(run: Run, checkpoint: str | os.PathLike) -> bool:
    """Whether a run loaded a checkpoint, wherever the folder was then."""
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
    """The checkpoint that a pruning run began with; '' if none is told."""
    for run in runs:
        loaded = run.config.get('load_from')
        if run.trained and loaded and not run.config.get('resume'):
            return str(loaded)
    return ''


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a training ended with, if it is still there."""
    note = folder / 'last_checkpoint'
    if not note.is_file():
        return None
    # by name only, for the work dir may have been moved
    path = folder / Path(note.read_text('utf-8').strip()).name
    return path if path.is_file() else None
