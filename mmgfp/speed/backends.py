"""Networks of one config, and the backends that run them.

A run is the raw forward, from normalised images to the outputs of the heads
(:func:`mmgfp.export.onnx.make_network`), without reading pictures or decoding
boxes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..cost.model import count_cost, record_calls
from ..export.onnx import (
    INPUT,
    check_provider,
    example_images,
    make_network,
    metadata,
    open_session,
    write_onnx,
)
from ..libraries.config import load_config
from ..libraries.forward import cost_runner
from ..libraries.models import load_model
from ..libraries.pictures import Preprocessing, read_preprocessing
from ..utils.errors import type_and_line

Run = Callable[[], Any]

BACKENDS = ('eager', 'compile', 'onnxruntime')
PROVIDERS = dict(cpu='CPUExecutionProvider', cuda='CUDAExecutionProvider')


class BackendError(Exception):
    """A backend cannot run a network here."""


@dataclass(frozen=True)
class Setting:
    """Settings common to all networks.

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
        """Name of the files with the results."""
        precision = '_half' if self.half else ''
        return f'inference_{Path(self.config).stem}{precision}_{self.device}'


@dataclass(frozen=True)
class Subject:
    """A measured network.

    Attributes:
        name (str): Name in tables.
        checkpoint (str): Checkpoint with its weights.
        model (nn.Module): In single precision, in eval mode, on the device.
        preprocessing (Preprocessing): Preprocessing, with the image size.
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
        ValueError: If the weights do not fit the config.
    """
    # MMDetection calls torch.meshgrid without the argument indexing
    warnings.filterwarnings('ignore', 'torch.meshgrid')
    config = load_config(setting.config)
    config.merge_from_dict(dict(setting.overrides))
    model = load_model(config, checkpoint)
    facts = read_preprocessing(config, model, setting.shape)
    model.to(setting.device)  # some models run on a GPU only
    run = cost_runner(facts.input_size)
    cost = count_cost(model, record_calls(model, lambda: run(model)))['']
    return Subject(name, checkpoint, model, facts, cost)


def names_of(checkpoints: Sequence[str]) -> list[str]:
    """Returns file names, with folders if file names are equal.

    A checkpoint may be given twice, to measure the noise.
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


def check_backends(backends: Sequence[str], device: str) -> None:
    """Check before the measurement that the backends work here.

    Raises:
        BackendError: If PyTorch cannot compile.
        ValueError: If ONNX Runtime is missing, or its part for GPUs.
    """
    if 'onnxruntime' in backends:
        check_provider(PROVIDERS[device])
    if 'compile' in backends:
        try:
            torch.compile(nn.ReLU())(torch.ones(2, device=device))
        except Exception as error:  # the compiler may raise anything
            raise BackendError(
                f'torch.compile does not work here: {_words(error)}'
            ) from error


def prepare(
    backend: str, subject: Subject, batch: int, setting: Setting
) -> Run:
    """Returns a function that runs a forward, after a first run.

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
                # dynamic sizes would make slower code after the first size
                network = torch.compile(network, dynamic=False)
            run = forward(network, images)
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
    """Returns the timed network, and images (N, C, H, W) for it."""
    images = example_images(subject.preprocessing, batch).to(setting.device)
    network = make_network(subject.model, images, dynamic=False, decode=False)
    return network, images


def in_precision(
    network: Any, images: Tensor, half: bool
) -> tuple[Any, Tensor]:
    """Returns network and images, in half precision if set."""
    if not half:
        return network, images
    return copy.deepcopy(network).half(), images.half()


def forward(network: Callable, images: Tensor) -> Run:
    """Returns a function that runs a network once."""
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

    def run(images: Tensor = given) -> Any:  # keeps them alive
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()

    return run


def forget_compiled(networks: int) -> None:
    """Clear the compiled code before networks of the same class are compiled.

    PyTorch caches compiled code by its source code, and stops compiling if
    the cache exceeds its limit.
    """
    from torch import _dynamo

    _dynamo.reset()
    config = _dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, networks + 1)


def _words(error: Exception) -> str:
    """Returns the message of the compiler's inner error, if there is one."""
    return type_and_line(getattr(error, 'inner_exception', error))
