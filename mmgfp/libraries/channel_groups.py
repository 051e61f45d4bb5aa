"""Channel groups of a model of any library, found with a cheap forward.

A small image gives the same groups as a large one if the network runs the same
operations on it.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..groups import ChannelGroup
from ..tracing.finder import find_groups
from ..tracing.selfcheck import DifferenceError, UnsteadyError
from ..utils.modes import modes_kept
from ..utils.trees import any_floats, look_into, tree_leaves
from .forward import Mode, demo_runner
from .models import CLASSIFICATION, CONVOLUTIONAL, library

# Sides of the images that channel groups are found with, in pixels.
_TRACE_SIDES = (64, 128, 256, 384, 512)

# Sizes that are tried until no proof fails.
_MOST_SIZES = 3


def runnable(
    model: nn.Module, shape: Sequence[int], images: int = 1
) -> Iterator[tuple[tuple[int, int], Mode]]:
    """Yields forwards that channel groups can be found with, cheapest first.

    Networks with many levels or large kernels may need a larger image.
    Classifiers may fix the size or work in windows; they get a small image
    only if they run the same operations on it. If there are no raw outputs,
    the results are used, or the losses.

    Args:
        model (nn.Module): The model; it is run to check what works.
        shape (Sequence[int]): (H, W) that the model is for.
        images (int): Images in the batch. Defaults to 1.

    Yields:
        tuple: (H, W) and the mode, for :func:`demo_runner`; the whole shape
        and 'tensor' if nothing works.
    """
    whole = (shape[0], shape[1])
    shapes = [whole]
    if library(model) in CONVOLUTIONAL:
        small = [(min(s, shape[0]), min(s, shape[1])) for s in _TRACE_SIDES]
        shapes = list(dict.fromkeys([*small, whole]))
    elif library(model) in CLASSIFICATION:
        small = [(s, s) for s in _TRACE_SIDES[:1] if s < min(whole)]
        shapes = [s for s in small if _does_the_same(model, s, whole)]
        shapes.append(whole)
    modes: tuple[Mode, ...] = ('tensor', 'predict', 'loss')
    for mode in modes:
        problem = _problem(model, demo_runner(shapes[0], images, mode))
        if problem:
            # large images are slow; other problems occur at both sizes
            large = shapes[min(len(shapes), len(_TRACE_SIDES)) - 1]
            if problem == _problem(model, demo_runner(large, images, mode)):
                continue
        works = not problem
        if works:
            yield shapes[0], mode
        for some in shapes[1:]:
            if not _problem(model, demo_runner(some, images, mode)):
                works = True
                yield some, mode
        if works:
            return
    yield whole, 'tensor'  # running it raises the error


def _does_the_same(
    model: nn.Module, small: tuple[int, int], whole: tuple[int, int]
) -> bool:
    """Returns whether a network runs the same with smaller images.

    The same operations and modules must run. Tensors of modules must have a
    row per image and may be smaller only in the number of positions along an
    axis, of which there are several. Networks with windows or tokens make
    other rows; networks for one size run more operations to adapt.
    """
    steps = _Steps.of(model, small)
    return steps is not None and _Steps.of(model, whole, steps) is not None


@dataclass(frozen=True)
class _Step:
    """An operation, or an input or result of a module.

    Attributes:
        name (str): Name of the operation or module.
        shape (tuple): Shape of the module's input or result.
    """

    name: str
    shape: tuple[int, ...] = ()

    def grows_to(self, other: _Step) -> bool:
        """Returns whether ``other`` is the same step with a larger image."""
        return (
            self.name == other.name
            and len(self.shape) == len(other.shape)
            and self.shape[:1] == other.shape[:1]
            and all(
                m == n or 1 < m < n for m, n in zip(self.shape, other.shape)
            )
        )


class _Steps(TorchDispatchMode):
    """Steps of a network with one image in training, in order.

    Args:
        smaller (Sequence[_Step], optional): Steps with a smaller image. A
            different step is an error.
    """

    def __init__(self, smaller: Sequence[_Step] | None) -> None:
        super().__init__()
        self._smaller = smaller
        self.steps: list[_Step] = []

    @classmethod
    def of(
        cls,
        model: nn.Module,
        shape: tuple[int, int],
        smaller: Sequence[_Step] | None = None,
    ) -> list[_Step] | None:
        """Returns the steps; None if a step differs or the losses fail."""
        found = cls(smaller)
        handles = [
            module.register_forward_hook(partial(found.passed, name))
            for name, module in model.named_modules()
        ]
        try:
            with found:
                problem = _problem(model, demo_runner(shape, 1, 'loss'))
        finally:
            for handle in handles:
                handle.remove()
        same = smaller is None or len(smaller) == len(found.steps)
        return None if problem or not same else found.steps

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        self._add(_Step(func._schema.name))
        return func(*args, **(kwargs or {}))

    def passed(
        self, name: str, module: nn.Module, args: tuple, output: Any
    ) -> None:
        """Record inputs and results of a module."""
        for value in (*args[:1], output):
            if not isinstance(value, Mapping):  # images to be prepared
                for tensor in tree_leaves(value):
                    if isinstance(tensor, torch.Tensor):
                        self._add(_Step(name, tuple(tensor.shape)))

    def _add(self, step: _Step) -> None:
        place = len(self.steps)
        if len(step.shape) > 1 and step.shape[0] != 1:
            raise ValueError(f'{step.name} has other rows than images')
        if self._smaller is not None and not (
            place < len(self._smaller) and self._smaller[place].grows_to(step)
        ):
            raise ValueError(f'{step.name} does something else')
        self.steps.append(step)


def demo_groups(
    model: nn.Module,
    shape: Sequence[int],
    log: Callable[[str], object] | None = None,
) -> list[ChannelGroup]:
    """Find and prove the channel groups of a model on random images.

    Args:
        model (nn.Module): A model of any library.
        shape (Sequence[int]): (H, W) of the model's images; the images of
            the forward may be smaller.
        log (Callable, optional): See
            :func:`mmgfp.tracing.finder.find_groups`.

    Raises:
        ValueError: If the model is a student with its teacher.
        UnsteadyError: If rounding errors decide the outputs at all sizes.
    """
    check_single(model)
    # two images, because one cannot show the image of each row
    sizes = runnable(model, shape, images=2)
    groups, _, _ = groups_at_some_size(model, sizes, 2, log)
    return groups


def groups_at_some_size(
    model: nn.Module,
    sizes: Iterable[tuple[tuple[int, int], Mode]],
    images: int,
    log: Callable[[str], object] | None = None,
) -> tuple[list[ChannelGroup], tuple[int, int], Mode]:
    """Find and prove channel groups with an image that rounding permits.

    Rounding errors may decide the outputs of a small image, or make a proof
    fail: coarse maps of one pixel are full of ties. Up to three sizes are
    tried until no proof fails. If that does not happen, groups whose proof
    fails with the smallest of them are frozen; with the largest, if no larger
    one is left.

    Args:
        model (nn.Module): A model of any library.
        sizes (Iterable): See :func:`runnable`.
        images (int): Images in the batch.
        log (Callable, optional): See
            :func:`mmgfp.tracing.finder.find_groups`.

    Raises:
        UnsteadyError: If rounding errors decide the outputs at all sizes.

    Returns:
        tuple: The groups, and the size and mode that they were found with.
    """
    problem = None
    differing: list[tuple[tuple[int, int], Mode]] = []
    for size, mode in sizes:
        try:
            found = _find(model, size, mode, images, log, strict=True)
            return found, size, mode
        except DifferenceError as error:
            if log is not None:
                log(f'images of {size[1]}x{size[0]} pixels: {error}')
            differing.append((size, mode))
            if len(differing) == _MOST_SIZES:
                size, mode = differing[0]
                break
        except UnsteadyError as error:
            problem = error
    else:
        if not differing:
            assert problem is not None  # there is at least one size
            raise problem
        size, mode = differing[-1]
    return _find(model, size, mode, images, log, strict=False), size, mode


def _find(
    model: nn.Module,
    size: tuple[int, int],
    mode: Mode,
    images: int,
    log: Callable[[str], object] | None,
    strict: bool,
) -> list[ChannelGroup]:
    run = demo_runner(size, images, mode)
    train = demo_runner(size, images, 'loss')
    return find_groups(model, run, images, train, log, strict)


def check_single(model: nn.Module) -> None:
    """Raise if a model holds a network and a copy that follows its weights.

    Raises:
        ValueError: If it does.
    """
    parts = dict(model.named_children())
    if not {'student', 'teacher'} <= parts.keys():
        return
    student, teacher = (
        {name: p.shape for name, p in parts[part].named_parameters()}
        for part in ('student', 'teacher')
    )
    if student and student == teacher:
        raise ValueError(
            f'{type(model).__name__} holds a network twice, as student and '
            'teacher, whose tensors follow those of the student and would '
            'have to lose the same channels; expected a single network. '
            'Prune the network itself: a config whose `model` is the network '
            'inside (`detector` in MMDetection), with the trained '
            "weights by `init_cfg=dict(type='Pretrained', checkpoint=..., "
            "prefix='student')`."
        )


def _problem(model: nn.Module, run: Callable[[nn.Module], Any]) -> str:
    """Returns the error of a forward or what it lacks; '' if it works."""
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            tensors, _ = look_into(run(model))
    except Exception as error:
        return repr(error)
    return '' if any_floats(tensors) else 'no numbers come out'
