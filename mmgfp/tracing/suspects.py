"""Groups near the place where a slim network fails or differs.

When many groups lose channels at once, the cause is usually a group whose
layers run just before the slim network raises an error, or whose consumer
gets another input than in the masked network. Checking these groups first
avoids a search through all groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import ChannelGroup
from ..utils.precision import Run

# describes how the second differs from the first; '' for no difference
Differs = Callable[[Sequence[Tensor], Sequence[Tensor]], str]

# Largest number of groups returned for each place.
_MOST = 3


def suspects(
    slim: nn.Module,
    masked: nn.Module | None,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
    run: Run,
    differs: Differs,
) -> list[list[str]]:
    """Returns the names of groups to check, the nearest first, per place.

    Args:
        slim (nn.Module): A copy of the network without the units.
        masked (nn.Module, optional): A copy whose consumers do not read the
            units. None if the slim copy does not run.
        groups (Sequence[ChannelGroup]): Groups that lose units.
        removal (Sequence[np.ndarray]): Cut units of each group, (k,).
        run (Callable): Runs a network on the demo input.
        differs (Callable): Compares inputs of consumers.
    """
    expected = _inputs(masked, groups, removal, run) if masked else {}
    trail: list[str] = []  # layers that lose channels, in execution order
    places: list[int] = []  # lengths of the trail where an input differs

    def compare(name: str, args: tuple) -> tuple | None:
        trail.append(name)
        right = next(expected.get(name, iter(())), None)
        if right is None or not args or not differs([right], [args[0]]):
            return None
        places.append(len(trail))
        # later layers get the expected input, so that all places are found
        return (right, *args[1:]) if right.shape == args[0].shape else None

    layers = {m.layer for group in groups for m in group.members}
    with _watching(slim, layers, compare):
        try:
            run(slim)
        except Exception:  # the user's forward may raise anything
            places.append(len(trail))
    return [_near(trail[:place], groups) for place in places or [len(trail)]]


def _inputs(
    masked: nn.Module,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
    run: Run,
) -> Mapping[str, Iterator[Tensor | None]]:
    """Returns the kept channels of consumers' inputs, in order of calls."""
    masked_units: dict[str, list[np.ndarray]] = defaultdict(list)
    axes: dict[str, int] = {}
    for group, units in zip(groups, removal):
        for tap in group.taps:
            masked_units[tap.module].append(np.isin(tap.unit, units))
            axes[tap.module] = tap.channel_axis
    stays = {
        name: ~np.any(parts, axis=0) for name, parts in masked_units.items()
    }
    found: dict[str, list[Tensor | None]] = {name: [] for name in masked_units}

    def note(name: str, args: tuple) -> None:
        part = None
        if args and args[0].shape[axes[name]] == len(stays[name]):
            index = torch.from_numpy(np.flatnonzero(stays[name]))
            index = index.to(args[0].device)
            part = args[0].index_select(axes[name], index)
        found[name].append(part)

    with _watching(masked, masked_units, note):
        run(masked)
    return {name: iter(inputs) for name, inputs in found.items()}


@contextmanager
def _watching(
    model: nn.Module, layers: Iterable[str], see: Callable[[str, tuple], Any]
) -> Iterator[None]:
    """Call ``see`` with some layers' inputs in a run without gradients."""
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(
            lambda module, args, name=name: see(name, args)
        )
        for name in layers
        if name in modules
    ]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _near(trail: Sequence[str], groups: Sequence[ChannelGroup]) -> list[str]:
    """Returns groups of the last layers of the trail, the nearest first."""
    found: dict[str, None] = {}
    for layer in dict.fromkeys(reversed(trail)):
        for roles in (('consumer', 'grouped'), ('producer', 'affine')):
            for group in groups:
                if layer in group.layers(*roles):
                    found[group.name] = None
        if len(found) >= _MOST:
            break
    return list(found)[:_MOST]
