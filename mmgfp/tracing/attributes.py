"""Attributes whose value shrinks with the channels that they count.

An attribute that counts channels is treated like a vector with one slot per
channel: it is coupled with these channels, belongs to channel groups like any
tensor axis, and loses positions with them. The numbers of a layer that follow
from its tensors (``conv.in_channels``) stand for the axes of these tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..groups import ATTRIBUTE
from .sizes import (
    Attribute,
    Choice,
    Extent,
    SizeFact,
    SizeRecord,
    attributes_in,
    describe,
    evaluate,
    extents_in,
)
from .slots import Trace

Extents = Callable[[Extent], np.ndarray]  # labels of an axis, (n, k)


def settle_sizes(
    trace: Trace,
    sizes: SizeRecord,
    extent_labels: Extents,
    own: Mapping[str, np.ndarray],
) -> Trace:
    """Add edges and frozen slots that the sizes in the code require.

    Args:
        trace (Trace): The trace of the operations; changed in place.
        sizes (SizeRecord): The sizes recorded in the same forward.
        extent_labels (Callable): Returns the labels of an axis, (n, k).
        own (Mapping): The slots that the numbers of layers stand for, (n,),
            by the attribute's name.
    """
    edges = [trace.edges, *_columns(trace, sizes.choices)]
    trace = replace(trace, edges=np.concatenate(edges, axis=1))
    trace = _couple_attributes(trace, sizes.facts, own)
    return _freeze_misfits(trace, sizes.facts, extent_labels, own)


def _columns(trace: Trace, choices: Sequence[Choice]) -> list[np.ndarray]:
    """Decide for each view whether rows or columns are cut.

    If an operation sums over whole rows (attention heads), each row is one
    component already. Otherwise the same columns of each row are cut.
    """
    component = _Components(trace)
    edges = []
    for choice in choices:
        if (component.common(choice.labels) < 0).any():
            first = np.broadcast_to(choice.labels[:1], choice.labels.shape)
            pairs = np.stack([first.ravel(), choice.labels.ravel()])
            edges.append(pairs[:, (pairs >= 0).all(0)])
    return edges


class _Components:
    """The connected component of every slot."""

    def __init__(self, trace: Trace) -> None:
        # label -1 has no component
        self._of = np.append(trace.components(), -1)

    def of(self, labels: np.ndarray) -> np.ndarray:
        return self._of[labels]

    def common(self, labels: np.ndarray) -> np.ndarray:
        """Returns the component of each row of (n, k) labels, (n,).

        A row with labels of several components has -1.
        """
        found = self._of[labels]
        return np.where((found == found[:, :1]).all(1), found[:, 0], -1)


def _couple_attributes(
    trace: Trace, facts: Sequence[SizeFact], own: Mapping[str, np.ndarray]
) -> Trace:
    component = _Components(trace)
    by_name: dict[str, list[SizeFact]] = defaultdict(list)
    for fact in facts:
        if isinstance(fact.term, Attribute):
            by_name[fact.term.name].append(fact)
    edges, frozen = [trace.edges], list(trace.frozen)
    for name, counted in by_name.items():
        whole = [_removable(component, fact.labels) for fact in counted]
        if all((found < 0).all() for found in whole):
            continue
        if name in own:
            slots = own[name]
        else:
            trace.table.add_attribute(name, len(counted[0].labels))
            slots = trace.table.slots(name, ATTRIBUTE)
        for fact, found in zip(counted, whole):
            moves = found >= 0
            pairs = np.stack([slots[moves], fact.labels[moves, 0]])
            edges.append(pairs)
            if not moves.all():
                frozen.append(
                    (
                        slots[~moves],
                        f'{name} = {len(slots)} also counts what stays '
                        f'in {fact.where or "the network"}',
                    )
                )
    return replace(trace, edges=np.concatenate(edges, axis=1), frozen=frozen)


def couple_unread(
    trace: Trace,
    counted: Mapping[str, Sequence[np.ndarray]],
    unread: Callable[[Mapping[str, int]], set[str]],
) -> Trace:
    """Couple attributes that the forward does not read with their channels.

    Attributes that may count channels of several groups stay as they are.

    Args:
        trace (Trace): The trace with :func:`settle_sizes` applied.
        counted (Mapping): The (n, k) labels of all channels that an
            attribute may count, by the attribute's name.
        unread (Callable): Given other values of the attributes, returns the
            names of those without effect on the outputs.

    Returns:
        Trace: The trace with more edges; it shares the slot table.
    """
    component, table = _Components(trace), trace.table
    stay = [component.of(slots) for slots, _ in trace.frozen]
    stays = np.unique(np.concatenate([[-1], *stay]))
    clear: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    unclear = []
    for name, candidates in counted.items():
        if (name, ATTRIBUTE) in table:
            continue
        found = [_removable(component, labels) for labels in candidates]
        found = [np.where(np.isin(f, stays), -1, f) for f in found]
        if all((f < 0).all() for f in found):
            continue
        if all((f == found[0]).all() for f in found):
            clear[name] = candidates[0][:, 0], found[0]
        else:
            unclear.append(name)

    every = np.unique(np.concatenate([[-1], *(u for _, u in clear.values())]))
    fewer = {
        name: max(1, int((~np.isin(units, every[1::2])).sum()))
        for name, (_, units) in clear.items()
    }
    followers = unread(fewer) if fewer else set()
    edges = [trace.edges]
    for name, (labels, units) in clear.items():
        if name not in followers:
            unclear.append(name)
            continue
        table.add_attribute(name, len(labels))
        slots = table.slots(name, ATTRIBUTE)
        moves = units >= 0
        edges.append(np.stack([slots[moves], labels[moves]]))
    return replace(trace, edges=np.concatenate(edges, axis=1), unclear=unclear)


def _removable(component: _Components, labels: np.ndarray) -> np.ndarray:
    """Returns the component that each position is cut with, else -1; (n,)."""
    found = component.common(labels)
    if (found == found[0]).all():  # all positions are one unit
        return np.full_like(found, -1)
    return found


def _freeze_misfits(
    trace: Trace,
    facts: Sequence[SizeFact],
    extent_labels: Extents,
    own: Mapping[str, np.ndarray],
) -> Trace:
    """Freeze units whose removal makes a computed size wrong."""
    component = _Components(trace)
    frozen = list(trace.frozen)
    known: dict[
        Attribute | Extent, np.ndarray
    ] = {}  # components of the channels that each source counts

    def counted(term: Attribute | Extent) -> np.ndarray:
        if term not in known:
            known[term] = np.full(0, -1)
            if isinstance(term, Extent):
                known[term] = component.common(extent_labels(term))
            elif term.name in own:
                known[term] = component.of(own[term.name])
            elif (term.name, ATTRIBUTE) in trace.table:
                slots = trace.table.slots(term.name, ATTRIBUTE)
                known[term] = component.of(slots)
        return known[term]

    for fact in facts:
        if isinstance(fact.term, Attribute):
            continue
        needed = component.common(fact.labels)
        sources: list[Attribute | Extent]
        sources = [*attributes_in(fact.term), *extents_in(fact.term)]
        units = np.unique(np.concatenate([needed, *map(counted, sources)]))
        units = units[units >= 0]

        left = {
            term: term.value - _count(counted(term), units) for term in sources
        }
        fewer = evaluate(fact.term, lambda term: term.value) - evaluate(
            fact.term, left.__getitem__
        )
        lost = _count(needed, units)
        # if all positions are one unit, the freeze has that reason
        wrong = units[~np.isclose(fewer, lost) & (lost < len(needed))]
        if wrong.size:
            every = np.arange(len(trace.table))
            slots = every[np.isin(component.of(every), wrong)]
            frozen.append((slots, _misfit(fact)))
    return replace(trace, frozen=frozen)


def _count(found: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Returns the number of positions of each unit, (units,)."""
    return (found[:, None] == units).sum(0)


def _misfit(fact: SizeFact) -> str:
    size, extents = describe(fact.term), extents_in(fact.term)
    if isinstance(fact.term, Extent):
        what = f'takes the size {size} from another tensor'
    elif extents:
        what = f'computes a size as {size} from the width of a tensor'
    else:
        what = f'computes a size as {size}'
    return f'{fact.where} {what}; without these channels it would not fit'
