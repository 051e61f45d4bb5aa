"""Export of networks to self-contained ONNX files.

A file has operators of the ONNX standard only. Its metadata describes the
preprocessing of the input and the names of the classes. The outputs are the
raw outputs of a detector's heads, or boxes (:mod:`mmgfp.export.decoding`), or
the scores of a classifier.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..libraries.models import CLASSIFICATION, library
from ..libraries.pictures import Preprocessing
from ..utils.errors import first_line, type_and_line
from ..utils.trees import look_into
from ..version import __version__
from .decoding import OneStage, TwoStage, is_two_stage, why_not

# The oldest supported torch can write this version. Its RoiAlign has the
# sampling points of the usual detectors.
OPSET = 17

INPUT = 'images'


@dataclass(frozen=True)
class Exported:
    """Contents of a written file.

    Attributes:
        outputs (dict): Shapes by name, for the example input.
        params (int): Parameters of the network.
        size (int): Bytes of the file.
    """

    outputs: dict[str, list[int]]
    params: int
    size: int


class RawOutputs(nn.Module):
    """A network whose forward returns its output tensors in one tuple."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.model = model
        outputs = model(example, mode='tensor')
        self.names = _names(model, outputs)
        if not self.names:
            raise NotExportableError(
                f'{type(model).__name__} returns no tensors to export'
            )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the heads' outputs for ``images`` (N, C, H, W)."""
        return _tensors(self.model(images, mode='tensor'))


class ClassScores(nn.Module):
    """A classifier that returns scores between 0 and 1, as in predict."""

    names = ('scores',)

    def __init__(
        self, model: nn.Module, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self.activation = activation

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Returns scores (N, C) for ``images`` (N, C, H, W)."""
        outputs = self.model(images, mode='tensor')
        return (self.activation(outputs.float()),)


def make_network(
    model: nn.Module, example: Tensor, dynamic: bool, decode: bool
) -> Any:
    """Returns the network to export, in eval mode.

    Its ``forward(images)`` returns a tuple of tensors, whose names are in
    ``names``.

    Args:
        model (nn.Module): In eval mode.
        example (Tensor): Normalised images (N, C, H, W).
        dynamic (bool): Whether the graph takes other sizes.
        decode (bool): Whether a detector returns boxes.

    Raises:
        ValueError: If the model cannot be exported in this form.
    """
    try:
        with torch.no_grad(), _quiet():
            # new modules are in training mode
            return _network(model, example, dynamic, decode).eval()
    except NotExportableError:
        raise
    except Exception as error:  # the model's code may raise any error
        height, width = example.shape[-2:]
        raise ValueError(
            f'{type(model).__name__} does not run on plain images of '
            f'{height}x{width}: {type_and_line(error)}. It may need '
            'annotations or the sizes of images.'
        ) from error


class NotExportableError(ValueError):
    """A model cannot be exported in the requested form."""


def _network(
    model: nn.Module, example: Tensor, dynamic: bool, decode: bool
) -> nn.Module:
    kind = type(model).__name__
    if library(model) in CLASSIFICATION:
        if decode:
            raise NotExportableError(
                f'--decode is for detectors, but {kind} is a classifier; its '
                'output is decoded already (scores)'
            )
        activation = _activation(model, example)
        if activation is not None:
            return ClassScores(model, activation)
        return RawOutputs(model, example)
    if is_two_stage(model):
        reason = why_not(model)
        if reason:
            raise NotExportableError(
                f'{kind} cannot be exported: its second stage needs '
                f'proposals, and they cannot be decoded here ({reason})'
            )
        return TwoStage(model, example, dynamic, decode)
    if decode:
        reason = why_not(model)
        if reason:
            RawOutputs(model, example)  # raises if the advice would be wrong
            raise NotExportableError(
                f'the boxes of {kind} cannot be decoded in ONNX: {reason}; '
                'omit --decode to export the raw outputs'
            )
        return OneStage(model, example, dynamic)
    return RawOutputs(model, example)


def left_out(model: nn.Module) -> str:
    """Returns a warning if the file of a model is incomplete; else ''."""
    head = getattr(model, 'roi_head', None)
    if getattr(head, 'with_mask', False):
        return 'the mask head'
    return ''


def predicted_scores(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the scores (N, C) of a classifier's own predict."""
    samples = model(images, mode='predict')
    return torch.stack(
        [
            s.pred_score if 'pred_score' in s else s.pred_label.score
            for s in samples
        ]
    )


def _activation(
    model: nn.Module, example: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """Returns the activation between a classifier's raw outputs and scores.

    Heads differ (one class or several per image); the results are compared.
    """
    raw = model(example, mode='tensor')
    if not isinstance(raw, Tensor) or raw.dim() != 2:
        return None
    scores = predicted_scores(model, example)
    for activation in (nn.Softmax(1), nn.Sigmoid(), nn.Identity()):
        if scores.shape == raw.shape and torch.allclose(
            activation(raw), scores, atol=1e-6
        ):
            return activation
    return None


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(look_into(outputs)[0])


def _names(model: nn.Module, outputs: Any) -> tuple[str, ...]:
    """Returns the names of the raw outputs.

    For dense heads they are the arguments of the loss: ``cls_scores`` and
    so on, with the number of the level.
    """
    count = len(_tensors(outputs))
    head: Any = getattr(model, 'bbox_head', None)
    if hasattr(head, 'loss_by_feat') and isinstance(outputs, tuple):
        known = list(inspect.signature(head.loss_by_feat).parameters)
        names = [
            f'{name}_{level}'
            for name, levels in zip(known, outputs)
            for level in range(len(_tensors(levels)))
        ]
        if len(names) == count:
            return tuple(names)
    return tuple(f'output_{i}' for i in range(count))


def metadata(
    network: nn.Module,
    model: nn.Module,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    half: bool,
) -> dict[str, str]:
    """Returns the metadata of a file: strings, most of them JSON.

    Args:
        network (nn.Module): From :func:`make_network`.
        model (nn.Module): The model inside the network.
        preprocessing (Preprocessing): Preprocessing of the input.
        classes (Sequence[str]): Names by index.
        half (bool): Whether the input is in half precision.
    """
    task = 'classification' if library(model) in CLASSIFICATION else 'raw'
    if library(model) == 'mmdet':
        task = 'detection'
    decoded = isinstance(network, (OneStage, ClassScores)) or (
        isinstance(network, TwoStage) and network.decode
    )
    return dict(
        producer=f'mmgfp {__version__}',
        task=task,
        architecture=type(model).__name__,
        outputs='decoded' if decoded else 'raw',
        left_out=left_out(model),
        classes=json.dumps(list(classes), ensure_ascii=False),
        layout='NCHW',
        dtype='float16' if half else 'float32',
        **preprocessing.to_metadata(),
    )


def example_images(preprocessing: Preprocessing, images: int = 1) -> Tensor:
    """Returns noise of the input's size, (N, C, H, W), with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(preprocessing.mean), *preprocessing.input_size)
    return torch.randn(images, *shape, generator=generator)


def write_onnx(
    network: Any,
    example: Tensor,
    path: str | os.PathLike,
    facts: Mapping[str, str],
    dynamic: bool = False,
    half: bool = False,
) -> Exported:
    """Write a network as an ONNX file.

    Args:
        network (nn.Module): From :func:`make_network`; not changed.
        example (Tensor): Normalised images (N, C, H, W) to trace it with.
        path (str | os.PathLike): File to write. Not atomic.
        facts (Mapping): Metadata for the file.
        dynamic (bool): Whether batch, height and width may vary. Defaults to
            False.
        half (bool): Whether weights and input are in half precision.
            Defaults to False.

    Raises:
        ValueError: If ONNX lacks an operation of the network, or onnx
            is not installed.
    """
    onnx = import_extra('onnx')
    traced = network
    if half:
        traced = copy.deepcopy(network).half()
        example = example.half()
    names = list(network.names)
    try:
        with torch.no_grad(), _quiet():
            outputs = traced(example)
            torch.onnx.export(
                traced,
                (example,),
                os.fspath(path),
                input_names=[INPUT],
                output_names=names,
                dynamic_axes=_axes(names, outputs) if dynamic else None,
                opset_version=OPSET,
                **_classic_exporter(),
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ValueError(
            f'{facts["architecture"]} cannot be exported'
            f'{" in half precision" if half else ""}: {first_line(error)}'
        ) from error

    file = onnx.load(os.fspath(path))
    foreign = sorted(
        {f'{n.domain}.{n.op_type}' for n in file.graph.node if n.domain}
    )
    if foreign:
        raise ValueError(
            f'{facts["architecture"]} cannot be exported: it needs operations '
            f'outside of the ONNX standard ({", ".join(foreign)})'
        )
    onnx.helper.set_model_props(file, dict(facts))
    onnx.checker.check_model(file)
    onnx.save(file, os.fspath(path))
    return Exported(
        outputs={n: list(o.shape) for n, o in zip(names, outputs)},
        params=sum(
            p.numel()
            for name, p in network.named_parameters()
            if '.mask_' not in name  # see left_out
        ),
        size=os.path.getsize(path),
    )


def _axes(
    names: Sequence[str], outputs: Sequence[Tensor]
) -> dict[str, dict[int, str]]:
    """Returns the axes that vary, each with its own name."""
    axes = {INPUT: {0: 'batch', 2: 'height', 3: 'width'}}
    for name, output in zip(names, outputs):
        axes[name] = {0: 'batch'}
        if output.dim() == 4:
            axes[name] |= {2: f'{name}_height', 3: f'{name}_width'}
        elif len(names) > 1:  # small images have fewer boxes
            axes[name][1] = 'boxes'
    return axes


def _classic_exporter() -> dict[str, Any]:
    """Returns the option for the exporter that all versions of torch have."""
    known = inspect.signature(torch.onnx.export).parameters
    return {'dynamo': False} if 'dynamo' in known else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of the tracer; --check finds mistakes."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def import_extra(name: str) -> Any:
    """Import a package that only exporting needs.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return __import__(name)
    except ImportError as error:
        raise ValueError(
            f'{name} is not installed; pip install {name}, or mmgfp with the '
            "extra: pip install 'mmgfp[export]'"
        ) from error


def check_provider(provider: str) -> None:
    """Raise at the beginning if ONNX files cannot be run here.

    Args:
        provider (str): Provider of ONNX Runtime, such as
            ``CUDAExecutionProvider``.

    Raises:
        ValueError: If a package or the provider is missing.
    """
    import_extra('onnx')
    found = import_extra('onnxruntime').get_available_providers()
    if provider not in found:
        raise ValueError(
            f'ONNX Runtime has no {provider} here, only {", ".join(found)}; '
            'for a GPU, pip install onnxruntime-gpu instead of onnxruntime'
        )


def open_session(
    path: str | os.PathLike, provider: str = 'CPUExecutionProvider'
) -> Any:
    """Returns a session of ONNX Runtime with PyTorch's number of threads.

    Args:
        path (str | os.PathLike): ONNX file.
        provider (str): Execution provider. Defaults to the CPU's.

    Raises:
        ValueError: If the provider does not start.
    """
    onnxruntime = import_extra('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # otherwise idle threads spin, and take a core from other measurements
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=[provider]
    )
    if provider not in session.get_providers():  # it fell back to another
        raise ValueError(f'the {provider} of ONNX Runtime does not start here')
    return session


def number_of_classes(model: Any) -> int | None:
    """Returns the number of classes of a model; None if not known."""
    head = getattr(model, 'bbox_head', None) or getattr(model, 'head', None)
    if is_two_stage(model):
        head = getattr(model.roi_head, 'bbox_head', None)
    count = getattr(head, 'num_classes', None)
    return count if isinstance(count, int) else None
