"""Speed of networks of one config, measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..cost.clocks import (
    clock_of,
    entrances,
    module_ratios,
    seconds_of,
)
from ..cost.turns import in_turn, ratios_to, spread
from ..engine.progress import duration
from ..utils.environment import machine
from .backends import (
    Setting,
    Subject,
    check_backends,
    forget_compiled,
    forward,
    in_precision,
    load,
    names_of,
    prepare,
    raw_network,
)
from .memory import in_own_process, peak_of

Result = dict[str, Any]

# Warm-up rounds.
WARMUP = 5

# Usual duration of a separate process in seconds.
PROCESS = 8.0


class Progress:
    """Prints the current measurement and the remaining time.

    Args:
        log (Callable): Prints a line.
        images (int): Number of images of all forwards in this process.
        processes (int): Number of processes that measure memory afterwards.
    """

    def __init__(
        self, log: Callable[[str], None], images: int, processes: int
    ) -> None:
        self._log = log
        self._images, self._processes = images, processes  # remaining
        self._done = 0
        self._took = PROCESS
        self._began = self._told = time.monotonic()

    def begin(self, what: str) -> None:
        """Set the current measurement."""
        self._what = what
        self._say()

    def ran(self, images: int) -> None:
        """Count the images of a finished forward."""
        self._done += images
        self._images -= images
        self.go_on()

    def go_on(self) -> None:
        """Print again if ten seconds have passed."""
        if time.monotonic() > self._told + 10:
            self._say()

    def ended(self) -> None:
        """Count a finished process."""
        self._took = time.monotonic() - self._told
        self._processes -= 1

    def _say(self) -> None:
        self._told = time.monotonic()
        left = ''
        if self._done:
            pace = (self._told - self._began) / self._done
            seconds = pace * self._images + self._took * self._processes
            left = f', about {duration(seconds)} left'
        self._log(f'{self._what}{left}')


class Comparison:
    """Measures networks in turn.

    Args:
        setting (Setting): Settings common to all networks.
        subjects (Sequence[Subject]): The networks; ratios are to the first.
        batches (Sequence[int]): Batch sizes.
        rounds (int): Number of rounds; every network runs once per round.
        progress (Progress): Informed of every forward.
        clock (ProcessorClock | GpuClock): Clock of the device.
    """

    def __init__(
        self,
        setting: Setting,
        subjects: Sequence[Subject],
        batches: Sequence[int],
        rounds: int,
        progress: Progress,
        clock: Any,
    ) -> None:
        self.setting, self.batches, self.rounds = setting, batches, rounds
        self.subjects = {subject.name: subject for subject in subjects}
        self.progress, self.clock = progress, clock

    def times(self, backend: str, batch: int) -> Result:
        """Returns milliseconds per image and ratios to the first network."""
        self.progress.begin(f'{backend}, batches of {batch}')
        if backend == 'compile':
            forget_compiled(len(self.subjects))
        runs = {}
        for name, subject in self.subjects.items():
            runs[name] = prepare(backend, subject, batch, self.setting)
            self.progress.go_on()  # compiling takes up to minutes

        def measure(name: str) -> float:
            taken = seconds_of(runs[name], self.clock)
            self.progress.ran(batch)
            return 1000 * taken / batch

        found = in_turn(measure, list(runs), self.rounds, WARMUP)
        ratios = ratios_to(found, next(iter(runs)))
        networks = {
            name: dict(ms=spread(found[name]), ratio=spread(ratios[name]))
            for name in runs
        }
        return dict(backend=backend, batch=batch, networks=networks)

    def modules(self, batch: int) -> Result:
        """Returns median ratios of the eager forward's time, by network."""
        self.progress.begin(f'modules, batches of {batch}')
        models, runs, names = {}, {}, {}
        for name, subject in self.subjects.items():
            network, images = in_precision(
                *raw_network(subject, batch, self.setting), self.setting.half
            )
            models[name], runs[name] = network.model, forward(network, images)
            names[name] = entrances(models[name], runs[name])

        def measure(name: str) -> dict[str, float]:
            self.progress.ran(batch)
            return module_ratios(
                models[name], names[name], runs[name], self.clock
            )

        found = in_turn(measure, list(runs), self.rounds, WARMUP)
        networks = {name: _typical(taken) for name, taken in found.items()}
        return dict(batch=batch, networks=networks)

    def memory(self, name: str) -> dict[str, float]:
        """Returns the peak in MB of the eager forward, by batch."""
        self.progress.begin(f'memory of {name}')
        checkpoint = self.subjects[name].checkpoint
        found = in_own_process(_peaks, self.setting, checkpoint, self.batches)
        self.progress.ended()
        return found


def _typical(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns median ratios, with a sum of 1."""
    medians = {
        key: spread([one[key] for one in rounds])['median']
        for key in rounds[0]
    }
    return {key: n / sum(medians.values()) for key, n in medians.items()}


def _peaks(
    setting: Setting, checkpoint: str, batches: Sequence[int]
) -> dict[str, float]:
    found = {}
    with torch.no_grad():
        for batch in batches:
            # loaded again and held by the run alone, because weights in single
            # precision are not part of a network in half precision
            subject = load(setting, checkpoint, checkpoint)
            run = prepare('eager', subject, batch, setting)
            del subject
            found[str(batch)] = peak_of(run, setting.device)
    return found


def compare(
    setting: Setting,
    checkpoints: Sequence[str],
    backends: Sequence[str],
    batches: Sequence[int],
    rounds: int,
    with_modules: bool,
    log: Callable[[str], None],
) -> Result:
    """Measure networks of a config.

    Args:
        setting (Setting): Settings common to all networks.
        checkpoints (Sequence[str]): Their weights; ratios are to the first.
        backends (Sequence[str]): Some of :data:`BACKENDS`.
        batches (Sequence[int]): Batch sizes.
        rounds (int): Number of rounds; every network runs once per round.
        with_modules (bool): Whether to time the top-level modules, too.
        log (Callable): Prints a line of progress.

    Raises:
        BackendError: If a backend does not work here or with a network.
        ValueError: If a checkpoint does not fit the config.
    """
    subjects = []
    for name, checkpoint in zip(names_of(checkpoints), checkpoints):
        log(f'loading {name}')
        subjects.append(load(setting, checkpoint, name))
    log('trying the backends')
    check_backends(backends, setting.device)
    turns = (len(backends) + with_modules) * (rounds + WARMUP)
    images = turns * len(subjects) * sum(batches)
    progress = Progress(log, images, len(subjects))
    clock = clock_of(setting.device)
    comparison = Comparison(
        setting, subjects, batches, rounds, progress, clock
    )
    with torch.no_grad():
        times = [comparison.times(k, n) for k in backends for n in batches]
        modules = [comparison.modules(n) for n in batches if with_modules]
    networks = {
        subject.name: dict(
            checkpoint=subject.checkpoint,
            **subject.cost,
            memory=comparison.memory(subject.name),
        )
        for subject in subjects
    }
    return dict(
        machine=machine(setting.device),
        config=setting.config,
        shape=list(subjects[0].preprocessing.input_size),
        half=setting.half,
        rounds=rounds,
        networks=networks,
        times=times,
        modules=modules,
    )
