"""What experiments gave: reading, choosing, averaging."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]

Seeds = tuple[int, int]  # of the baseline that a run began with, of the run


@dataclass(frozen=True)
class Summary:
    """One experiment at the learning rate that was best for it.

    Attributes:
        name (str): Of its config.
        lr (float): That rate, chosen with the first seed; others do not
            change it.
        runs (Sequence[Result]): One per seed, in their order.
        tuning (Mapping): Rate -> accuracy with that first seed.
        rates (Mapping): Rate -> all runs with it.
        baselines (Mapping): Seed -> accuracy of the baseline trained with it.
    """

    name: str
    lr: float
    runs: Sequence[Result]
    tuning: Mapping[float, float]
    rates: Mapping[float, Sequence[Result]]
    baselines: Mapping[int, float]

    @property
    def target(self) -> float | None:
        """Share of the flops to keep; None for the baseline."""
        pruning = self.runs[0]['pruning']
        return pruning and pruning['target']['flops']

    def by_seed(self) -> dict[Seeds, float]:
        """Seeds -> accuracy after fine-tuning."""
        return {seeds_of(run): score(run['finetuned']) for run in self.runs}

    def gains(self) -> list[float]:
        """Accuracy less that of the baseline it began with; one per seed."""
        return [
            score(run['finetuned']) - self.baselines[run['baseline_seed']]
            for run in self.runs
        ]

    def gain(self) -> float:
        """Mean of :meth:`gains`."""
        return statistics.mean(self.gains())

    def accuracies(self, phase: str = 'finetuned') -> list[float]:
        """One per seed."""
        return [score(run[phase]) for run in self.runs]

    def accuracy(self, phase: str = 'finetuned') -> float:
        """Mean over seeds."""
        return statistics.mean(self.accuracies(phase))

    def share(self, metric: str) -> float:
        """Mean remaining share of 'flops', 'acts' or 'params'."""
        return statistics.mean(run['shares'][metric] for run in self.runs)


def read_results(file: Path) -> list[dict[str, Any]]:
    """Lines of a file of results; none if there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def score(metrics: Mapping[str, float]) -> float:
    """The metric that decides, in percent: top-1 or mAP."""
    if 'accuracy/top1' in metrics:
        return metrics['accuracy/top1']
    return 100 * metrics['pascal_voc/mAP']


def seeds_of(result: Result) -> Seeds:
    """Runs of the same seeds differ in nothing but what is compared."""
    return result['baseline_seed'], result['seed']


def summaries(results: Sequence[Result]) -> dict[str, Summary]:
    """By name; the baseline too."""
    by_name: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_name[result['experiment']].append(result)
    baselines = {
        run['seed']: score(run['finetuned'])
        for run in by_name.get('baseline', ())
    }
    found = {}
    for name, runs in sorted(by_name.items()):
        runs.sort(key=seeds_of)
        rates: dict[float, list[Result]] = defaultdict(list)
        for run in runs:
            rates[run['lr']].append(run)
        tuning = {
            run['lr']: score(run['finetuned'])
            for run in runs
            if seeds_of(run) == seeds_of(runs[0])
        }
        lr = max(tuning, key=lambda rate: (tuning[rate], rate))
        found[name] = Summary(name, lr, rates[lr], tuning, rates, baselines)
    return found
