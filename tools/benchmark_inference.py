"""How fast networks of one config are: a forward of each, in turn.

What is timed is the raw forward, from normalised images to what the heads put
out (:func:`mmgfp.export.make_network`): no reading of pictures, no boxes.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmark_memory import in_own_process, peak_of
from benchmark_turns import in_turn, shares, spread
from environment import machine
from torch import Tensor, nn

from mmgfp.adapt import load_model
from mmgfp.config import load_config
from mmgfp.cost import count_cost, record_calls
from mmgfp.demo import cost_runner
from mmgfp.errors import type_and_line
from mmgfp.export import (
    INPUT,
    check_provider,
    example_images,
    make_network,
    metadata,
    open_session,
    write_onnx,
)
from mmgfp.preprocessing import Preprocessing, read_preprocessing
from mmgfp.progress import duration

Result = dict[str, Any]
Run = Callable[[], Any]

BACKENDS = ('eager', 'compile', 'onnxruntime')
PROVIDERS = dict(cpu='CPUExecutionProvider', cuda='CUDAExecutionProvider')

# Rounds before those that count.
WARMUP = 5

# Seconds that a process of its own usually takes.
PROCESS = 8.0

# Of the time of a forward, what is spent in no module of the model.
REST = 'rest'


class BackendError(Exception):
    """A backend cannot run a network here."""


@dataclass(frozen=True)
class Setting:
    """What all networks have in common.

    Attributes:
        config (str): Path or short form.
        overrides (Mapping): Settings of the config that are replaced.
        shape (Sequence[int], optional): (H, W) instead of the config's.
        device (str): ``'cpu'`` or ``'cuda'``.
        half (bool): Whether weights and images are in half precision.
    """

    config: str
    overrides: Mapping[str, Any]
    shape: Sequence[int] | None
    device: str
    half: bool

    @property
    def name(self) -> str:
        """Of the files that results are written to."""
        precision = '_half' if self.half else ''
        return f'inference_{Path(self.config).stem}{precision}_{self.device}'


@dataclass(frozen=True)
class Subject:
    """A network that is measured.

    Attributes:
        name (str): For people.
        checkpoint (str): Its weights.
        model (nn.Module): In single precision, in eval mode, on the device.
        preprocessing (Preprocessing): Tells the size of its images.
        cost (Mapping): ``{'flops', 'params', 'acts'}`` per image.
    """

    name: str
    checkpoint: str
    model: nn.Module
    preprocessing: Preprocessing
    cost: Mapping[str, float]


def load(setting: Setting, checkpoint: str, name: str) -> Subject:
    """Build a network of the config and load its weights, slim ones too.

    Raises:
        ValueError: If they do not fit the config.
    """
    # MMDetection's places of predictions call it in the old way
    warnings.filterwarnings('ignore', 'torch.meshgrid')
    config = load_config(setting.config)
    config.merge_from_dict(dict(setting.overrides))
    model = load_model(config, checkpoint)
    facts = read_preprocessing(config, model, setting.shape)
    model.to(setting.device)  # some run on a GPU only
    run = cost_runner(facts.input_size)
    cost = count_cost(model, record_calls(model, lambda: run(model)))['']
    return Subject(name, checkpoint, model, facts, cost)


def names_of(checkpoints: Sequence[str]) -> list[str]:
    """Names for people: of the files, and of folders where those are alike.

    A checkpoint may be given twice, which tells how much chance there is.
    """
    parts = [Path(c).with_suffix('').parts for c in checkpoints]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(p[-depth:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [
        f'{name} ({count})' if count > 1 else name
        for name, count in zip(names, counts)
    ]


# -- backends --------------------------------------------------------------


def check_backends(backends: Sequence[str], device: str) -> None:
    """Complain, before anything takes long, about what cannot run here.

    Raises:
        BackendError: If PyTorch cannot compile.
        ValueError: If ONNX Runtime is missing, or its part for GPUs.
    """
    if 'onnxruntime' in backends:
        check_provider(PROVIDERS[device])
    if 'compile' in backends:
        try:
            torch.compile(nn.ReLU())(torch.ones(2, device=device))
        except Exception as error:  # of a compiler, if there is one
            raise BackendError(
                f'torch.compile does not work here: {_words(error)}'
            ) from error


def prepare(
    backend: str, subject: Subject, batch: int, setting: Setting
) -> Run:
    """What runs a forward once; it has run already.

    Args:
        backend (str): One of :data:`BACKENDS`.
        subject (Subject): The network.
        batch (int): Images in a batch.
        setting (Setting): Device and precision.

    Raises:
        BackendError: If the backend does not run the network.
        ValueError: If the model has no raw forward.
    """
    network, images = raw_network(subject, batch, setting)
    try:
        if backend == 'onnxruntime':
            run = _onnx_run(network, images, subject, setting)
        else:
            network, images = in_precision(network, images, setting.half)
            if backend == 'compile':
                # sizes that vary would make slower code for all but the first
                network = torch.compile(network, dynamic=False)
            run = _forward(network, images)
        run()
    except Exception as error:  # any code of any model and backend
        raise BackendError(
            f'{backend} does not run {subject.name} on a batch of {batch}: '
            f'{_words(error)}'
        ) from error
    return run


def raw_network(
    subject: Subject, batch: int, setting: Setting
) -> tuple[Any, Tensor]:
    """The network that is timed, and images (N, C, H, W) for it."""
    images = example_images(subject.preprocessing, batch).to(setting.device)
    network = make_network(subject.model, images, dynamic=False, decode=False)
    return network, images


def in_precision(
    network: Any, images: Tensor, half: bool
) -> tuple[Any, Tensor]:
    """Both in half precision, or as they are."""
    if not half:
        return network, images
    return copy.deepcopy(network).half(), images.half()


def _forward(network: Callable, images: Tensor) -> Run:
    return lambda: network(images)


def _onnx_run(
    network: Any, images: Tensor, subject: Subject, setting: Setting
) -> Run:
    model, half = subject.model, setting.half
    facts = metadata(network, model, subject.preprocessing, [], half)
    with TemporaryDirectory() as folder:
        path = Path(folder, 'model.onnx')
        write_onnx(network, images, path, facts, half=half)
        session = open_session(path, PROVIDERS[setting.device])
    given = images.half() if half else images
    if setting.device == 'cpu':
        arrays = {INPUT: given.numpy()}
        return lambda: session.run(None, arrays)

    # images and outputs stay on the GPU, as PyTorch's do
    binding = session.io_binding()
    kind = given.cpu().numpy().dtype
    binding.bind_input(
        *(INPUT, 'cuda', 0, kind, tuple(given.shape), given.data_ptr())
    )
    for output in session.get_outputs():
        binding.bind_output(output.name, 'cuda')

    def run(images: Tensor = given) -> Any:  # which must live on
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()

    return run


def _forget_compiled(networks: int) -> None:
    """Before several networks of the same code are compiled.

    Compiled code is kept by the code that it was made from. Where there is
    more of it than allowed, PyTorch goes on without compiling.
    """
    from torch import _dynamo

    _dynamo.reset()
    config = _dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, networks + 1)


def _words(error: Exception) -> str:
    """What went wrong inside of the compiler, if it was there."""
    return type_and_line(getattr(error, 'inner_exception', error))


# -- clocks ----------------------------------------------------------------


class ProcessorClock:
    """Time on a CPU."""

    def wait(self) -> None:
        """All is done."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def seconds(self, began: float, ended: float) -> float:
        """Between two marks."""
        return ended - began


class GpuClock:
    """Time on a GPU, which works on what was asked of it earlier."""

    def wait(self) -> None:
        """Until all is done."""
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        """When the GPU comes to this place."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(
        self, began: torch.cuda.Event, ended: torch.cuda.Event
    ) -> float:
        """Between two marks."""
        ended.synchronize()
        return began.elapsed_time(ended) / 1000


def seconds_of(run: Run, clock: Any) -> float:
    """That a forward takes, with nothing else under way."""
    clock.wait()
    began = clock.mark()
    run()
    ended = clock.mark()
    return clock.seconds(began, ended)


# -- modules ---------------------------------------------------------------


def entrances(model: nn.Module, run: Run) -> list[str]:
    """Modules that a forward calls from outside of all modules but the model.

    The backbone for one. Heads are often run by a method of their own, which
    hooks do not see; then it is their layers.
    """
    inside: list[str] = []
    found: dict[str, None] = {}

    def enter(name: str) -> Callable:
        def hook(*_: Any) -> None:
            if not inside:
                found[name] = None
            inside.append(name)

        return hook

    def leave(*_: Any) -> None:
        inside.pop()

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return list(found)


def module_shares(
    model: nn.Module, names: Sequence[str], run: Run, clock: Any
) -> dict[str, float]:
    """Shares of a forward's time by top-level module.

    Args:
        model (nn.Module): What ``run`` runs.
        names (Sequence[str]): From :func:`entrances`.
        run (Callable): A forward.
        clock (ProcessorClock | GpuClock): That of the device.
    """
    open_calls: list[Any] = []
    spans: list[tuple[str, Any, Any]] = []

    def enter(*_: Any) -> None:
        open_calls.append(clock.mark())

    def leave(top: str) -> Callable:
        def hook(*_: Any) -> None:
            began = open_calls.pop()
            if not open_calls:  # a call inside of another is in its time
                spans.append((top, began, clock.mark()))

        return hook

    handles = []
    for name in names:
        module, top = model.get_submodule(name), name.partition('.')[0]
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave(top)))
    try:
        total = seconds_of(run, clock)
    finally:
        for handle in handles:
            handle.remove()
    tops = dict.fromkeys(name.partition('.')[0] for name in names)
    found = {top: 0.0 for top, _ in model.named_children() if top in tops}
    for top, began, ended in spans:
        found[top] += clock.seconds(began, ended) / total
    return {**found, REST: 1 - sum(found.values())}


# -- everything ------------------------------------------------------------


class Progress:
    """Says what is being done and how much time is left.

    Args:
        tell (Callable): Shows a line.
        images (int): That networks will run on in this process.
        processes (int): That will measure memory after that.
    """

    def __init__(
        self, tell: Callable[[str], None], images: int, processes: int
    ) -> None:
        self._tell = tell
        self._images, self._processes = images, processes  # still to come
        self._done = 0
        self._took = PROCESS
        self._began = self._told = time.monotonic()

    def begin(self, what: str) -> None:
        """Something else from now on."""
        self._what = what
        self._say()

    def ran(self, images: int) -> None:
        """A network has run."""
        self._done += images
        self._images -= images
        self.go_on()

    def go_on(self) -> None:
        """Say it again if ten seconds have passed."""
        if time.monotonic() > self._told + 10:
            self._say()

    def ended(self) -> None:
        """A process of its own has."""
        self._took = time.monotonic() - self._told
        self._processes -= 1

    def _say(self) -> None:
        self._told = time.monotonic()
        left = ''
        if self._done:
            pace = (self._told - self._began) / self._done
            seconds = pace * self._images + self._took * self._processes
            left = f', about {duration(seconds)} left'
        self._tell(f'{self._what}{left}')


class Comparison:
    """Measures one thing after another.

    Args:
        setting (Setting): What the networks have in common.
        subjects (Sequence[Subject]): The networks; ratios are to the first.
        batches (Sequence[int]): Images in a batch.
        rounds (int): In which every network runs once.
        progress (Progress): Is told of every forward.
        clock (ProcessorClock | GpuClock): That of the device.
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
        """Milliseconds per image and ratios to the first, by network."""
        self.progress.begin(f'{backend}, batches of {batch}')
        if backend == 'compile':
            _forget_compiled(len(self.subjects))
        runs = {}
        for name, subject in self.subjects.items():
            runs[name] = prepare(backend, subject, batch, self.setting)
            self.progress.go_on()  # compiling takes long

        def measure(name: str) -> float:
            taken = seconds_of(runs[name], self.clock)
            self.progress.ran(batch)
            return 1000 * taken / batch

        found = in_turn(measure, list(runs), self.rounds, WARMUP)
        ratios = shares(found, next(iter(runs)))
        networks = {
            name: dict(ms=spread(found[name]), ratio=spread(ratios[name]))
            for name in runs
        }
        return dict(backend=backend, batch=batch, networks=networks)

    def modules(self, batch: int) -> Result:
        """Median shares of the eager forward's time, by network."""
        self.progress.begin(f'modules, batches of {batch}')
        models, runs, names = {}, {}, {}
        for name, subject in self.subjects.items():
            network, images = in_precision(
                *raw_network(subject, batch, self.setting), self.setting.half
            )
            models[name], runs[name] = network.model, _forward(network, images)
            names[name] = entrances(models[name], runs[name])

        def measure(name: str) -> dict[str, float]:
            self.progress.ran(batch)
            return module_shares(
                models[name], names[name], runs[name], self.clock
            )

        found = in_turn(measure, list(runs), self.rounds, WARMUP)
        networks = {name: _typical(taken) for name, taken in found.items()}
        return dict(batch=batch, networks=networks)

    def memory(self, name: str) -> dict[str, float]:
        """Peak in MB of the eager forward, by batch."""
        self.progress.begin(f'memory of {name}')
        checkpoint = self.subjects[name].checkpoint
        found = in_own_process(_peaks, self.setting, checkpoint, self.batches)
        self.progress.ended()
        return found


def _typical(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median shares, with a sum of 1."""
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
            # loaded anew, and kept by what runs alone: weights in single
            # precision are no part of a network in half
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
    tell: Callable[[str], None],
) -> Result:
    """Measure networks of a config.

    Args:
        setting (Setting): What they have in common.
        checkpoints (Sequence[str]): Their weights; ratios are to the first.
        backends (Sequence[str]): Of :data:`BACKENDS`.
        batches (Sequence[int]): Images in a batch.
        rounds (int): In which every network runs once.
        with_modules (bool): Whether to time the top-level modules, too.
        tell (Callable): Shows a line of progress.

    Raises:
        BackendError: If a backend does not work here, or not with a network.
        ValueError: If a checkpoint does not fit the config.
    """
    subjects = []
    for name, checkpoint in zip(names_of(checkpoints), checkpoints):
        tell(f'loading {name}')
        subjects.append(load(setting, checkpoint, name))
    tell('trying the backends')
    check_backends(backends, setting.device)
    turns = (len(backends) + with_modules) * (rounds + WARMUP)
    images = turns * len(subjects) * sum(batches)
    progress = Progress(tell, images, len(subjects))
    clock = GpuClock() if setting.device == 'cuda' else ProcessorClock()
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
