"""Channel labels: the parameter slice to which each element belongs.

Every slice of every parameter and buffer is a *slot*, ``(tensor, axis,
index)``, numbered from 0. One real forward runs under a dispatch mode; each
tensor has *label layers*, int64 tensors of its own shape that hold the slot of
each element (-1: none). Structure operations (view, cat, slice, ...) are
repeated on the layers; element-wise operations couple the slots at the same
element; convolutions and linear layers couple their input's slots with the
weight's input axis and issue the slots of the weight's output axis.
Operations without a rule freeze their channels with the reason.

This file handles operations and slots. Groups, scores and cost follow from
them in other files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..groups import layer_of
from ..utils.trees import tree_leaves
from .label_layers import canonical, squeezed
from .origins import MIXING
from .sizes import SizeRecord
from .slots import SlotTable, Use

# reason for freezing channels coupled with a tensor of unknown origin
_UNSEEN = 'comes from the input, or from an operation PyTorch does not see'

Rule = Callable[..., None]  # (tracer, func, args, kwargs, out)


@dataclass
class _Tag:
    """Labels of one tensor.

    ``weight``: the parameter whose values the tensor has; None after an
    operation with an activation. ``sources``: all parameters from which the
    values are computed; None if the network's input or another activation is
    among the operands. ``writable``: whether the tensor was freshly
    allocated; views of its labels alias them as views of the tensor do.
    ``opaque``: whether no element has a slot. ``pending``: labels to freeze,
    with the reason, when the value is used. ``absent``: labels of values
    that were multiplied by zero. ``known``: the layers in canonical form, set
    when first read unless the labels are writable.
    """

    layers: tuple[Tensor, ...] = ()
    weight: str | None = None
    writable: bool = False
    opaque: bool = False
    pending: tuple[tuple[Tensor, str], ...] = ()
    absent: tuple[Tensor, ...] = ()
    sources: tuple[str, ...] | None = ()
    known: tuple[Tensor, ...] | None = None


@dataclass
class Frame:
    """A module being executed and its first argument."""

    module: nn.Module
    source: Tensor | None


@dataclass
class Record:
    """Facts about slots: edges, reasons, consumers and producers."""

    edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    causes: list[tuple[np.ndarray, str]] = field(default_factory=list)
    uses: dict[tuple, Use] = field(default_factory=dict)
    issued: dict[tuple[str, int], int] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    absent: list[tuple[Sequence[Tensor], Sequence[Tensor], str]] = field(
        default_factory=list
    )

    def follow(self, kept: Record) -> None:
        """Add facts about weights computed before the forward.

        They are in the order of registration. The order of the forward takes
        precedence.
        """
        self.edges.extend(kept.edges)
        self.frozen.extend(kept.frozen)
        self.causes.extend(kept.causes)
        self.absent.extend(kept.absent)
        self.uses = {**kept.uses, **self.uses}
        self.issued = {**kept.issued, **self.issued}
        for weight in kept.order:
            self.order.setdefault(weight, len(self.order))


def _is_one(layer: Tensor) -> bool:
    """Returns whether the layer is one repeated label."""
    return all(
        n == 1 or step == 0 for n, step in zip(layer.shape, layer.stride())
    )


class LabelTracer(TorchDispatchMode):
    """Dispatch mode that computes the labels of every result.

    Frozen sources (the image, results of unknown operations) get slots after
    those of the table. An edge to such a slot freezes the other slot.
    """

    def __init__(
        self, model: nn.Module, find_rule: Callable[[Any], Rule]
    ) -> None:
        super().__init__()
        self.table = SlotTable(model)
        self._find_rule = find_rule
        self.modules = dict(model.named_modules())
        self.module_names = {id(m): n for n, m in self.modules.items()}
        self.stack: list[Frame] = []
        # parameters from which the current result is computed
        self._sources: tuple[str, ...] | None = ()
        self.entered: set[nn.Module] = set()
        self.suspended = False
        self.trained = False
        self.record = Record()
        self.sizes = SizeRecord()
        self.reasons: list[str] = []
        self._stored = {
            id(tensor): f'meets the tensor {name}.{key}, which is neither '
            'parameter nor buffer'
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            for tensor in tree_leaves(value)
            if isinstance(tensor, Tensor)
        }
        self._tags = WeakIdKeyDictionary()
        for name, tensor in self.table.tensors.items():
            self._tags[tensor] = _Tag(self._own_layers(name, tensor), name)

    # -- labels of tensors ------------------------------------------------

    def _own_layers(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        layers = []
        for axis, size in enumerate(tensor.shape):
            if size > 1:
                shape = [1] * tensor.dim()
                shape[axis] = size
                slots = torch.from_numpy(self.table.slots(name, axis))
                layers.append(slots.view(shape).expand(tensor.shape))
        return tuple(layers)

    def tag(self, tensor: Tensor) -> _Tag:
        """Returns a tensor's tag; one without a tag counts as an input."""
        tag = self._tags.get(tensor)
        if tag is None:
            tag = _Tag()
            if tensor.is_floating_point() and tensor.numel() > 1:
                reason = self._stored.get(id(tensor), _UNSEEN)
                tag = _Tag((self.opaque(tensor, reason),), opaque=True)
            self._tags[tensor] = tag
        return tag

    def layers(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Returns the label layers; constant axes have stride 0."""
        tag = self.tag(tensor)
        for labels, reason in tag.pending:
            self.freeze(labels, reason)
        tag.pending = ()
        if tag.known is not None:
            return tag.known
        layers = tuple(
            canonical(layer)
            for layer in tag.layers
            if bool((squeezed(layer) >= 0).any())
        )
        tag.known = None if tag.writable else layers
        return layers

    def opaque(self, tensor: Tensor, reason: str) -> Tensor:
        """Returns a layer that freezes all labels coupled with it."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        slot = len(self.table) + self.reasons.index(reason)
        return torch.tensor(slot).expand(tensor.shape)

    def is_opaque(self, layer: Tensor) -> bool:
        """Returns whether a layer holds no slot of the table."""
        labels = squeezed(layer)
        return bool(labels.numel()) and int(labels.min()) >= len(self.table)

    def varying(self, layer: Tensor) -> set[int]:
        """Returns the axes along which a layer's labels differ."""
        if self.is_opaque(layer):
            return {d for d, n in enumerate(layer.shape) if n > 1}
        return {
            d
            for d, n in enumerate(layer.shape)
            if n > 1 and layer.stride(d) != 0
        }

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Suspend the tracer: operations inside are not the network's."""
        before, self.suspended = self.suspended, True
        try:
            yield
        finally:
            self.suspended = before

    # -- record -----------------------------------------------------------

    def couple(self, a: np.ndarray, b: np.ndarray) -> None:
        """Couple slots pairwise; pairs with a -1 are skipped."""
        a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
        meet = (a >= 0) & (b >= 0) & (a != b)
        if meet.any():
            # one number for each pair: sorting those is ten times faster
            most = len(self.table) + len(self.reasons)
            pairs = np.unique(a[meet] * most + b[meet])
            self.record.edges.append(tuple(np.divmod(pairs, most)))

    def freeze(
        self, labels: Tensor | np.ndarray, reason: str, cause: bool = False
    ) -> None:
        """Freeze slots.

        Args:
            labels (Tensor | np.ndarray): The slots; -1 is none.
            reason (str): The reason that reports show.
            cause (bool): Whether this reason takes precedence over reasons
                found before. Defaults to False.
        """
        if isinstance(labels, Tensor):
            labels = squeezed(labels).numpy()
        slots = np.unique(labels)
        slots = slots[(slots >= 0) & (slots < len(self.table))]
        if slots.size:
            kind = self.record.causes if cause else self.record.frozen
            kind.append((slots, reason))

    def where(self) -> str:
        """Returns the layer of the current operation, for messages.

        A result computed from weights alone belongs to the layer that owns
        the largest of them, because a hook computes a layer's weight before
        the layer is entered. Other results belong to the innermost module
        being executed.
        """
        if self._sources and layer_of(self._sources[0]) in self.modules:
            return layer_of(self._sources[0])
        for frame in reversed(self.stack):
            name = self.module_names.get(id(frame.module))
            if name:  # not what computes a layer's weight
                return name.partition('.parametrizations.')[0]
        return 'the network itself'

    def _sources_of(
        self, func: Any, operands: Sequence[Tensor]
    ) -> tuple[str, ...] | None:
        """Returns the parameters of a result, the largest first.

        Returns None if an operand is an activation. The input of a layer
        counts as one even without labels, such as an image made in ``run``.
        """
        names: set[str] = set()
        mixing = func._schema.name in MIXING
        for tensor in operands:
            tag = self.tag(tensor)
            if tag.sources is None:
                return None
            own = tag.sources or ((tag.weight,) if tag.weight else ())
            if not own and (
                mixing
                or any(bool((squeezed(x) >= 0).any()) for x in tag.layers)
            ):
                return None
            names.update(own)
        place = self.table.tensors
        return tuple(sorted(names, key=lambda n: (-place[n].numel(), n)))

    # -- dispatch ---------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.suspended:
            return func(*args, **kwargs)
        operands = [
            t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        ]
        for tensor in operands:  # an in-place result replaces their tags
            weight = self.tag(tensor).weight
            if weight is not None:
                self.record.order.setdefault(weight, len(self.record.order))
        sources = self._sources = self._sources_of(func, operands)
        out = func(*args, **kwargs)
        rule = self._find_rule(func)
        if rule.__name__ == 'constant' or not self._stays_opaque(
            operands, out
        ):
            rule(self, func, args, kwargs, out)
        for result in tree_leaves(out) if sources != () else ():
            if isinstance(result, Tensor):
                self.tag(result).sources = sources
        self._sources = ()  # extension operators are not dispatched here
        return out

    def _stays_opaque(self, operands: Sequence[Tensor], out: Any) -> bool:
        """Returns whether all operands are opaque, so no rule is needed.

        Losses compute many such results from the outputs.
        """
        tags = [self.tag(tensor) for tensor in operands]
        opaque = [tag for tag in tags if tag.opaque]
        if not opaque or any(
            (tag.layers and not tag.opaque) or tag.pending for tag in tags
        ):
            return False
        labels = squeezed(opaque[0].layers[0])
        if not labels.numel():
            return False
        label = int(labels.flatten()[0])
        for result in tree_leaves(out):
            if isinstance(result, Tensor):
                layer = torch.tensor(label).expand(result.shape)
                self._tags[result] = _Tag((layer,), opaque=True)
        return True

    def set(
        self,
        tensor: Tensor,
        layers: Sequence[Tensor],
        weight: str | None = None,
        writable: bool = False,
        pending: Sequence[tuple[Tensor, str]] = (),
    ) -> None:
        """Set the label layers of a tensor, each of the tensor's shape."""
        for layer in layers:
            assert layer.shape == tensor.shape, (layer.shape, tensor.shape)
        opaque = len(layers) == 1 and not writable and _is_one(layers[0])
        self._tags[tensor] = _Tag(
            tuple(layers),
            weight,
            writable,
            opaque and self.is_opaque(layers[0]),
            tuple(pending),
        )
