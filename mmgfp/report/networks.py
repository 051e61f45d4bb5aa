"""The networks of a pruning run - baseline, saved, fine-tuned - with their
accuracies, read from MMEngine's files in and around its work dir.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..slimming.checkpoint import load_plain_checkpoint
from ..slimming.structure import KEY, Structure
from .workdir import (
    Evaluation,
    Run,
    SavedRatio,
    baseline_of,
    begins_with,
    join_scalars,
    last_checkpoint,
    read_runs,
    runs_around,
    saved_ratios,
    validations,
)


@dataclass(frozen=True)
class Network:
    """A network that the run began with or saved, or a fine-tuned one.

    Attributes:
        name (str): 'baseline', 'flops_0.50' or 'flops_0.50 fine-tuned'.
        ratio (SavedRatio | None): Its saved ratio; None for the baseline.
        cost (Mapping): Its flops, params and acts.
        checkpoint (str): Path or address of its weights; '' if not known.
        evaluations (Sequence[Evaluation]): Evaluations; tests come last.
    """

    name: str
    ratio: SavedRatio | None
    cost: Mapping[str, float]
    checkpoint: str
    evaluations: Sequence[Evaluation]

    @property
    def kind(self) -> str:
        """'baseline', 'saved' or 'finetuned'."""
        if self.ratio is None:
            return 'baseline'
        return 'saved' if self.name == self.ratio.stem else 'finetuned'

    def accuracy(self, metric: str) -> Evaluation | None:
        """Returns the last evaluation with a metric, if possible a test."""
        known = [e for e in self.evaluations if metric in e.metrics]
        return known[-1] if known else None


@dataclass(frozen=True)
class PruningRun:
    """The files of a pruning run, read.

    Attributes:
        work_dir (Path): Its folder.
        config (Path | None): The config that MMEngine wrote.
        ratios (Sequence[SavedRatio]): Saved ratios, descending.
        records (Sequence[Mapping]): Scalars of the training, in order.
        evaluations (Sequence[Evaluation]): Validations during pruning.
        networks (Sequence[Network]): The baseline first.
    """

    work_dir: Path
    config: Path | None
    ratios: Sequence[SavedRatio]
    records: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Evaluation]
    networks: Sequence[Network]

    @property
    def metric(self) -> str:
        """Name of the accuracy to show: the first one found; '' for none."""
        for evaluation in self.all_evaluations():
            return next(iter(evaluation.metrics))
        return ''

    def all_evaluations(self) -> Iterator[Evaluation]:
        """Yields the evaluations of all networks, and those during pruning."""
        for network in self.networks:
            yield from network.evaluations
        yield from self.evaluations


def read_pruning_run(work_dir: str | os.PathLike) -> PruningRun:
    """Read the files of a pruning run.

    Raises:
        FileNotFoundError: If there is no such folder, or no structure in it.
        ValueError: If one of its files is damaged.
    """
    ratios = saved_ratios(work_dir)
    folder = Path(work_dir)
    own = read_runs(folder)
    records = join_scalars(own)
    around = list(runs_around(folder))
    baseline = baseline_of(own)
    found = validations(records, folder)
    cost = _baseline_cost(baseline, ratios[-1].structure)
    seen = [*_last_validation(baseline), *_tests(around, [baseline])]
    networks = [Network('baseline', None, cost, baseline, seen)]
    for ratio in ratios:
        path = str(ratio.checkpoint)
        # validations of the saved network before training changed it
        same = [
            e
            for e in found
            if ratio.scores and e.iteration == ratio.scores.iteration
        ]
        cost = ratio.structure.cost_after
        tests = _tests(around, [path])
        networks.append(Network(ratio.stem, ratio, cost, path, same + tests))
        networks += _finetuned(ratio, around, folder)
    trainings = [
        run.folder / 'vis_data' / 'config.py' for run in own if run.trained
    ]
    return PruningRun(
        folder,
        next((path for path in trainings[::-1] if path.is_file()), None),
        ratios,
        records,
        found,
        networks,
    )


def _baseline_cost(path: str, slim: Structure) -> Mapping[str, float]:
    """Returns the cost of the network that the run began with."""
    if not Path(path).is_file():
        return slim.cost_before
    try:
        checkpoint = load_plain_checkpoint(path)
    except ValueError:  # holds other objects: not written by mmgfp
        return slim.cost_before
    if KEY not in checkpoint:
        return slim.cost_before
    return Structure.from_dict(checkpoint[KEY], path).cost_after


def _last_validation(checkpoint: str) -> list[Evaluation]:
    """Returns the last validation of the training that ended with it."""
    folder = Path(checkpoint).parent
    if not checkpoint or last_checkpoint(folder) != Path(checkpoint):
        return []
    return validations(join_scalars(read_runs(folder)), folder)[-1:]


def _tests(
    runs: Sequence[Run], checkpoints: Sequence[str]
) -> list[Evaluation]:
    """Returns the tests of some checkpoints, by time."""
    return [
        Evaluation(
            'test', Path(checkpoint).name, 0, run.tested, run.folder, {}
        )
        for run in sorted(runs, key=lambda run: run.folder.name)
        for checkpoint in checkpoints
        if checkpoint and begins_with(run, checkpoint) and run.tested
    ]


def _finetuned(
    ratio: SavedRatio, around: Sequence[Run], work_dir: Path
) -> Iterator[Network]:
    """Returns the fine-tuned networks of a saved ratio."""
    folders = {
        run.folder.parent: None
        for run in around
        if begins_with(run, ratio.checkpoint)
        and run.trained
        and not any('channels_pruned' in record for record in run.records)
    }
    for number, folder in enumerate(folders):
        found = validations(join_scalars(read_runs(folder)), folder)
        weights = sorted(str(path) for path in folder.glob('*.pth'))
        found += _tests(around, weights)
        name = f'{ratio.stem} fine-tuned'
        yield Network(
            f'{name} ({folder.name})' if number else name,
            ratio,
            ratio.structure.cost_after,
            str(last_checkpoint(folder) or ''),
            found,
        )
