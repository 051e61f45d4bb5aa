"""Where a slim network goes wrong, and which groups that speaks against.

Of many groups that lose channels at once, those are at fault, as a rule, whose
layers run just before the slim network raises an error, or whose consumer is
given something else than in the masked network. To look at these first spares
a search through all groups.
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

# tells what differs in the second from the first; '' if nothing does
Differs = Callable[[Sequence[Tensor], Sequence[Tensor]], str]

# Groups to look at for each place.
_MOST = 3


def suspects(
    slim: nn.Module,
    masked: nn.Module | None,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
    run: Run,
    differs: Differs,
) -> list[list[str]]:
    """Names of the groups to look at, the nearest first, for each place.

    Args:
        slim (nn.Module): A copy of the network without the units.
        masked (nn.Module, optional): Another one, whose consumers do not read
            them. Needed where the slim one runs.
        groups (Sequence[ChannelGroup]): Groups that lose units.
        removal (Sequence[np.ndarray]): Their units to remove.
        run (Callable): Runs either.
        differs (Callable): Compares what consumers are given.
    """
    expected = _inputs(masked, groups, removal, run) if masked else {}
    trail: list[str] = []  # layers that lose something, as they run
    places: list[int] = []  # where along it something is wrong

    def compare(name: str, args: tuple) -> tuple | None:
        trail.append(name)
        right = next(expected.get(name, iter(())), None)
        if right is None or not args or not differs([right], [args[0]]):
            return None
        places.append(len(trail))
        # what comes behind is right again, so that all places are found
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
    """What consumers are given that stays, by name, in order of the calls."""
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
    """Show what some layers are given, before they run, without gradients."""
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
    """Groups that the last layers read, make or scale, the nearest first."""
    found: dict[str, None] = {}
    for layer in dict.fromkeys(reversed(trail)):
        for roles in (('consumer', 'grouped'), ('producer', 'affine')):
            for group in groups:
                if layer in group.layers(*roles):
                    found[group.name] = None
        if len(found) >= _MOST:
            break
    return list(found)[:_MOST]
