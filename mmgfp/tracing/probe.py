"""Find the image of each row of every consumer's input.

A copy of the network runs on the demo images, and again with one image
changed slightly: the rows of a layer's input that change belong to that image.
A tap gets the layout that predicts these rows for every image and every call.
A group with a consumer without such a layout is frozen.

If the losses can be computed on the demo images, the training forward is
observed, because layers may get other rows in training than in inference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..groups import ChannelGroup, Tap
from ..rows import (
    ImageChange,
    Layout,
    Order,
    images_of_rois,
    picked_images,
)
from ..utils.copies import whole_copy
from ..utils.modes import nothing_recomputed
from ..utils.precision import Run
from .selfcheck import randomize_

# called with a consumer's name, its input and the images of the RoIs so far
See = Callable[[str, Tensor, dict[str, Tensor]], None]


@dataclass
class Call:
    """Observations of one call of a consumer.

    Attributes:
        source (Tensor): The consumer's input.
        trained (bool): Whether a gradient reaches the input.
        rois (dict[str, Tensor]): By extractor, the latest last, the image of
            every RoI extracted before.
        picked (Tensor, optional): See :func:`picked_images`.
        changed (list): Per image and axis a bool vector of the positions that
            change with that image; None if the input changes its shape.
    """

    source: Tensor
    trained: bool
    rois: dict[str, Tensor]
    picked: Tensor | None = None
    changed: list[list[Tensor] | None] = field(default_factory=list)


Calls = Mapping[str, Sequence[Call]]


def find_layouts(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    run: Run,
    images: int,
    train: Run | None = None,
) -> list[ChannelGroup]:
    """Set every tap's layout; freeze groups with a tap without a layout.

    Args:
        model (nn.Module): In eval mode; not changed.
        groups (Sequence[ChannelGroup]): Groups with taps without layouts.
        run (Callable): ``run(model)`` runs it on the demo images.
        images (int): Number of demo images.
        train (Callable, optional): Returns its losses on as many images.

    Returns:
        list[ChannelGroup]: The same groups in the same order.
    """
    taps = {t.module: t for g in groups if not g.frozen for t in g.taps}
    found, listed = _layouts(model, taps, run, images, train)
    batches = False
    if listed and _unknown(found):  # e.g. lists of batches
        others, _ = _layouts(model, taps, run, images, train, batches=True)
        batches = _unknown(others) < _unknown(found)
        found = others if batches else found
    silent = [name for name in taps if found[name] == _silent(name)]
    if silent:  # activations of untrained weights may vanish with depth
        lively = whole_copy(model)
        randomize_(lively, seed=0)
        with suppress(Exception):  # a forward may reject the values
            again, _ = _layouts(lively, taps, run, images, train, batches)
            found |= {name: again[name] for name in silent}
    return [_with_layouts(group, found) for group in groups]


def _layouts(
    model: nn.Module,
    taps: Mapping[str, Tap],
    run: Run,
    images: int,
    train: Run | None,
    batches: bool = False,
) -> tuple[dict[str, Layout | str], bool]:
    """Returns the layout of each consumer's input, or a reason, by name.

    The second result is whether the network gets a list of tensors. Its
    tensors count as images, or as batches with ``batches``.
    """
    seen: tuple[Calls, bool] | None = None
    if train is not None:
        try:
            seen = _observe(model, taps, train, images, batches)
        except Exception:  # the demo input may lack data for the losses
            seen = None
    if seen is None:
        seen = _observe(model, taps, run, images, batches)
    calls, listed = seen
    moved = any(
        changed is not None and any(map(torch.any, changed))
        for some in calls.values()
        for call in some
        for changed in call.changed
    )
    found: dict[str, Layout | str] = {}
    for name, tap in taps.items():
        layout = _layout(tap, calls.get(name, ()), images, moved)
        if isinstance(layout, Layout):
            layout = replace(layout, batches=batches)
        found[name] = layout
    return found, listed


def _unknown(found: Mapping[str, Layout | str]) -> int:
    return sum(isinstance(layout, str) for layout in found.values())


def _silent(name: str) -> str:
    return f'the input of {name} does not depend on the images'


def _with_layouts(
    group: ChannelGroup, found: Mapping[str, Layout | str]
) -> ChannelGroup:
    if group.frozen:
        return group
    taps = []
    for tap in group.taps:
        layout = found[tap.module]
        if isinstance(layout, str):
            return group.freeze(layout)
        taps.append(replace(tap, layout=layout))
    return replace(group, taps=tuple(taps))


# -- observing ---------------------------------------------------------------


def _observe(
    model: nn.Module,
    names: Mapping[str, Tap],
    run: Run,
    images: int,
    batches: bool,
) -> tuple[Calls, bool]:
    """Returns consumers' calls and whether the images came as a list."""
    listed = False
    calls: dict[str, list[Call]] = defaultdict(list)

    def note(name: str, source: Tensor, rois: dict[str, Tensor]) -> None:
        trained = source.requires_grad
        picked = picked_images(source, images) if trained else None
        calls[name].append(
            Call(source.detach().clone(), trained, dict(rois), picked)
        )

    _watch(model, names, run, images, note)
    for image in range(images if images > 1 else 0):
        compare = _comparison(calls)
        change = ImageChange(image, batches)
        _watch(model, names, run, images, compare, change)
        listed |= change.listed
        for some in calls.values():
            for call in some:
                if len(call.changed) == image:  # not called in this run
                    call.changed.append(None)
    return calls, listed


def _comparison(calls: Calls) -> See:
    """Returns an observer of changes of inputs since the first run."""
    number: dict[str, int] = defaultdict(int)

    def compare(name: str, source: Tensor, rois: dict[str, Tensor]) -> None:
        if number[name] < len(calls[name]):
            call = calls[name][number[name]]
            call.changed.append(_changes(call.source, source))
        number[name] += 1

    return compare


def _changes(before: Tensor, after: Tensor) -> list[Tensor] | None:
    """Returns one element of :attr:`Call.changed`."""
    if before.shape != after.shape:
        return None
    differs = (before != after).cpu().numpy()  # NumPy reduces faster
    axes = range(differs.ndim)
    return [
        torch.from_numpy(
            differs.any(tuple(other for other in axes if other != axis))
        )
        for axis in axes
    ]


def _watch(
    model: nn.Module,
    names: Mapping[str, Tap],
    run: Run,
    images: int,
    see: See,
    change: ImageChange | None = None,
) -> None:
    """Run a copy; observe the inputs of consumers and the RoIs so far."""
    model = whole_copy(model)
    rois: dict[str, Tensor] = {}

    def extraction(name: str) -> Callable:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            owners = images_of_rois(args, kwargs, out)
            if owners is not None and bool(
                ((owners >= 0) & (owners < images)).all()
            ):
                rois.pop(name, None)  # the latest is the last
                rois[name] = owners.cpu()

        return hook

    def consumer(name: str) -> Callable:
        return lambda module, args: see(name, args[0], rois)

    for name, module in model.named_modules():
        module.register_forward_hook(extraction(name), with_kwargs=True)
        if name in names:
            module.register_forward_pre_hook(consumer(name))
    if change is not None:
        model.register_forward_pre_hook(change, with_kwargs=True)
    torch.manual_seed(0)
    with torch.enable_grad(), nothing_recomputed():
        run(model)


# -- deciding ----------------------------------------------------------------


def _layout(
    tap: Tap, calls: Sequence[Call], images: int, moved: bool
) -> Layout | str:
    """Returns the layout of a consumer's input, or a reason for none."""
    name = tap.module
    if not calls:
        return f'{name} does not run in training'
    if not all(call.trained for call in calls):
        return (
            f'no gradient reaches the input of {name}: the layers before it '
            'do not train (frozen_stages=-1 unfreezes the stages of '
            'backbones), or have a backward of their own'
        )
    if not moved:  # a single image, or no image could be changed
        if all(Layout().fits(len(call.source), images) for call in calls):
            return Layout()
        return (
            f'the first axis of the input of {name} is not the axis of the '
            'images'
        )
    depends = [False] * images
    for call in calls:
        for image, changed in enumerate(call.changed):
            if changed is None:
                return (
                    f'the number of rows of the input of {name} changes with '
                    'the smallest change of an image, so the rows of an image '
                    'cannot be identified'
                )
            depends[image] |= any(map(torch.any, changed))
            # the picked rows may include none of the image
            depends[image] |= call.picked is not None and not bool(
                (call.picked == image).any()
            )
    if not all(depends):
        return _silent(name)
    return _agreed(tap, calls, images)


def _agreed(tap: Tap, calls: Sequence[Call], images: int) -> Layout | str:
    """Returns the first layout that all calls agree with, or a reason."""
    shape = calls[0].source.shape
    axes = [a for a in range(len(shape)) if a != tap.channel_axis % len(shape)]

    def first(order: Order, extractors: Sequence[str] = ('',)) -> list[Layout]:
        layouts = [Layout(a, order, e) for e in extractors for a in axes]
        return [x for x in layouts if _agrees(x, calls, images)][:1]

    plain = first('images')
    rois = first('rois', list(reversed(calls[-1].rois)))
    if plain and rois:
        return (
            'the demo forward has one RoI per image, so the rows of the input '
            f'of {tap.module} may be RoIs or images'
        )
    found = plain or rois or first('picked')
    found = found or first('blocks') or first('turns')
    if found:
        return found[0]
    return (
        f'the image of each row of the input of {tap.module} is unknown: '
        'images are mixed there, or rows were selected'
    )


def _agrees(layout: Layout, calls: Sequence[Call], images: int) -> bool:
    """Returns whether only an image's rows change with it in all calls."""
    for call in calls:
        if layout.axis >= call.source.dim():
            return False
        rows = call.source.shape[layout.axis]
        rois = call.rois.get(layout.extractor)
        picked = call.picked if layout.axis == 0 else None
        if layout.order == 'picked' and picked is not None:
            owners = picked.cpu()
        elif layout.fits(rows, images, rois):
            owners = layout.owners(rows, images, rois)
        else:
            return False
        for image, changed in enumerate(call.changed):
            assert changed is not None
            if (changed[layout.axis] & (owners != image)).any():
                return False
    return True
