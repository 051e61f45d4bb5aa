"""Channel labels: which slice of which parameter does an element belong to.

Every slice of every parameter and buffer is a *slot*, ``(tensor, axis,
index)``, numbered from 0. One real forward runs under a dispatch mode; each
tensor carries *label layers*, int64 tensors of its own shape that hold the
slot an element belongs to (-1: none). Structure operations (view, cat, slice,
...) are simply repeated on the layers; element-wise operations couple the
slots that meet; convolutions and linear layers couple their input's slots
with the weight's input axis and issue the slots of the weight's output axis.
Whatever is not understood is frozen with the reason, never guessed.

This file knows operations and slots. It does not know groups, scores or cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..groups import layer_of
from ..slimming.surgery import compute_again, own_numbers
from ..utils.trees import tree_leaves, values_in
from .attributes import couple_unread, settle_sizes
from .label_layers import along, canonical, squeezed
from .origins import MIXING
from .size_facts import SizeRecord, axis_labels
from .size_watch import watch_sizes
from .sizes import attributes_in
from .slots import SlotTable, Trace, Use
from .unread import Passing, own_labels, unread

# what a tensor is that no operation made
_UNSEEN = 'comes from the input, or from an operation PyTorch does not see'

Rule = Callable[..., None]  # (tracer, func, args, kwargs, out)


@dataclass
class _Tag:
    """Labels of one tensor.

    ``weight`` names the parameter the values come from, as long as no
    activation had a part in them; ``sources`` names all that they are computed
    from, by any operations, and is None if the network's input or another
    activation is among it; ``writable`` marks labels of freshly
    allocated tensors, whose views alias them like the tensors' own do.
    ``opaque`` is set if there is nothing to remove anywhere in it.
    ``pending`` holds labels to freeze, and why, as soon as the value is used.
    ``absent`` holds labels of what was multiplied by zero. ``known`` holds
    the layers in canonical form, once they were asked for and if nothing can
    be written into them.
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
class _Frame:
    """A module being executed and its first argument."""

    module: nn.Module
    source: Tensor | None


@dataclass
class _Record:
    edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    causes: list[tuple[np.ndarray, str]] = field(default_factory=list)
    uses: dict[tuple, Use] = field(default_factory=dict)
    issued: dict[tuple[str, int], int] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    absent: list[tuple[Sequence[Tensor], Sequence[Tensor], str]] = field(
        default_factory=list
    )

    def follow(self, kept: _Record) -> None:
        """Add what modules made of their weights before the forward.

        They did so in the order of registration, which decides nothing where
        the forward tells of an order of its own.
        """
        self.edges.extend(kept.edges)
        self.frozen.extend(kept.frozen)
        self.causes.extend(kept.causes)
        self.absent.extend(kept.absent)
        self.uses = {**kept.uses, **self.uses}
        self.issued = {**kept.issued, **self.issued}
        for weight in kept.order:
            self.order.setdefault(weight, len(self.order))


def trace_labels(
    model: nn.Module,
    run: Callable[[], Any],
    find_rule: Callable[[Any], Rule],
    watch: Callable[[LabelTracer], AbstractContextManager] = nullcontext,
    train: Callable[[], Any] | None = None,
) -> Trace:
    """Push labels through one forward, and another one if need be.

    Args:
        model (nn.Module): The model; put in eval mode by the caller.
        run (Callable): Runs the model on demo input, without arguments, and
            returns its outputs. Its floating-point inputs that are not
            parameters count as the image.
        find_rule (Callable): Gives the rule of an operation.
        watch (Callable): Context, given the tracer, in which operations that
            the dispatcher does not see get their rules. Defaults to none.
        train (Callable, optional): Runs the model for its losses. Called if
            the first forward leaves parameters unused, which training may
            use; what it tells before it fails, if it does, counts.

    Raises:
        RuntimeError: If the forward itself fails.
    """
    tracer, passing = LabelTracer(model, find_rule), Passing.through(model)
    with (
        torch.no_grad(),
        _module_stack(tracer, passing),
        _input_marked(model, tracer),
        watch(tracer),
        watch_sizes(model, tracer),
        tracer,
    ):
        compute_again(model)
        kept, tracer.record = tracer.record, _Record()
        tracer.end(run())
        tracer.record.follow(kept)
        if train is not None and tracer.unused():
            try:
                tracer.end(train())
                tracer.trained = True
            except Exception:  # the demo may lack what these losses need
                tracer.stack.clear()
    slots = len(tracer.table)
    trace = settle_sizes(
        tracer.result(),
        tracer.sizes,
        lambda extent: axis_labels(extent.layers, extent.axis, slots),
        tracer.own_numbers(),
    )
    counted = passing.counted(trace.table, slots)
    return couple_unread(
        trace, counted, lambda widths: unread(model, run, widths)
    )


@contextmanager
def _module_stack(tracer: LabelTracer, passing: Passing) -> Iterator[None]:
    """Tell the tracer which module is being executed."""

    def layers(tensor: Tensor) -> tuple[Tensor, ...]:
        return tracer.tag(tensor).layers

    def enter(module: nn.Module, args: tuple) -> None:
        tracer.entered.add(module)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        tracer.stack.append(_Frame(module, first))
        with tracer.aside():
            passing.note(module, 'in', args[:1], layers)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        tracer.stack.pop()
        with tracer.aside():
            passing.note(module, 'out', output, layers)

    handles = [
        nn_module.register_module_forward_pre_hook(enter),
        nn_module.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _input_marked(model: nn.Module, tracer: LabelTracer) -> Iterator[None]:
    """What a network is called with is none of its weights.

    Buffers may have had a part in it, which normalised the images.
    """

    def mark(module: nn.Module, args: tuple, kwargs: dict) -> None:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                tracer.tag(value).sources = None

    handle = model.register_forward_pre_hook(mark, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _is_one(layer: Tensor) -> bool:
    """Whether it is one label, repeated."""
    return all(
        n == 1 or step == 0 for n, step in zip(layer.shape, layer.stride())
    )


class LabelTracer(TorchDispatchMode):
    """Dispatch mode that computes the labels of every result.

    Frozen sources (the image, results of unknown operations) get slots of
    their own behind the table's; an edge to such a slot freezes the other end.
    """

    def __init__(
        self, model: nn.Module, find_rule: Callable[[Any], Rule]
    ) -> None:
        super().__init__()
        self.table = SlotTable(model)
        self._find_rule = find_rule
        self._modules = dict(model.named_modules())
        self.module_names = {id(m): n for n, m in self._modules.items()}
        self.stack: list[_Frame] = []
        self._sources: tuple[str, ...] | None = ()  # of the result at hand
        self.entered: set[nn.Module] = set()
        self.suspended = False
        self.trained = False
        self.record = _Record()
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
        """The tag of a tensor; a tensor never seen before is an input."""
        tag = self._tags.get(tensor)
        if tag is None:
            tag = _Tag()
            if tensor.is_floating_point() and tensor.numel() > 1:
                reason = self._stored.get(id(tensor), _UNSEEN)
                tag = _Tag((self.opaque(tensor, reason),), opaque=True)
            self._tags[tensor] = tag
        return tag

    def layers(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Label layers in canonical form: constant axes have stride 0."""
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
        """A layer that freezes whatever meets it."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        slot = len(self.table) + self.reasons.index(reason)
        return torch.tensor(slot).expand(tensor.shape)

    def is_opaque(self, layer: Tensor) -> bool:
        """Whether nothing in a layer can be removed."""
        labels = squeezed(layer)
        return bool(labels.numel()) and int(labels.min()) >= len(self.table)

    def varying(self, layer: Tensor) -> set[int]:
        """The axes along which a layer's labels differ."""
        if self.is_opaque(layer):
            return {d for d, n in enumerate(layer.shape) if n > 1}
        return {
            d
            for d, n in enumerate(layer.shape)
            if n > 1 and layer.stride(d) != 0
        }

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done with labels in between is no part of the network."""
        before, self.suspended = self.suspended, True
        try:
            yield
        finally:
            self.suspended = before

    # -- what is learned --------------------------------------------------

    def couple(self, a: np.ndarray, b: np.ndarray) -> None:
        """Slots that meet one to one; a -1 meets nothing."""
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
        """Keep these slots for ever.

        Args:
            labels (Tensor | np.ndarray): The slots; -1 is none.
            reason (str): Why.
            cause (bool): Whether to tell this reason rather than others
                that were found before. Defaults to False.
        """
        if isinstance(labels, Tensor):
            labels = squeezed(labels).numpy()
        slots = np.unique(labels)
        slots = slots[(slots >= 0) & (slots < len(self.table))]
        if slots.size:
            kind = self.record.causes if cause else self.record.frozen
            kind.append((slots, reason))

    def end(self, outputs: Any) -> None:
        """Channels that reach an output must stay."""
        with self.aside():
            for out in values_in(outputs):
                for layer in self.layers(out):
                    self.freeze(layer, 'reaches an output of the network')

    def unused(self) -> list[str]:
        """Parameters that no operation has seen; attributes like counted ones.

        The latter are those of modules that were not run, where others of
        the same class count channels with theirs.
        """
        terms = [
            *(fact.term for fact in self.sizes.facts),
            *(size for size, *_ in self.sizes.made),
        ]
        counted = set()
        for attribute in {a for term in terms for a in attributes_in(term)}:
            owner, _, key = attribute.name.rpartition('.')
            module = self._modules[owner]
            if key not in own_numbers(module):
                counted.add((type(module), key))
        return [
            *(
                name
                for name, tensor in self.table.tensors.items()
                if isinstance(tensor, nn.Parameter)
                and name not in self.record.order
            ),
            *(
                f'{name}.{key}'
                for name, module in self._modules.items()
                if module not in self.entered
                for kind, key in sorted(counted, key=str)
                if type(module) is kind
            ),
        ]

    def own_numbers(self) -> dict[str, np.ndarray]:
        """The slots that the numbers of layers stand for, by their names."""
        names = {id(t): name for name, t in self.table.tensors.items()}
        return {
            f'{name}.{key}' if name else key: slots
            for name, module in self._modules.items()
            for key, slots in own_labels(module, self.table, names).items()
        }

    def where(self) -> str:
        """The layer of the operation at hand, for messages.

        A hook computes a layer's weight before the layer is entered: what is
        made of weights alone belongs to the layer that owns the largest.
        Everything else belongs to the innermost module being executed.
        """
        if self._sources and layer_of(self._sources[0]) in self._modules:
            return layer_of(self._sources[0])
        for frame in reversed(self.stack):
            name = self.module_names.get(id(frame.module))
            if name:  # not what computes a layer's weight
                return name.partition('.parametrizations.')[0]
        return 'the network itself'

    def _sources_of(
        self, func: Any, operands: Sequence[Tensor]
    ) -> tuple[str, ...] | None:
        """The parameters that a result is computed from, the largest first.

        None if an activation has a part in it; also one without labels, such
        as an image that the run makes up, if a layer is given it.
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

    def result(self) -> Trace:
        """Sort what was learned; edges to opaque slots become reasons."""
        record, size = self.record, len(self.table)
        edges = np.zeros((2, 0), dtype=np.int64)
        if record.edges:
            edges = np.concatenate(
                [np.stack(pair) for pair in record.edges], axis=1
            )
        hard = (edges >= size).any(0)
        frozen = [*record.causes, *record.frozen]
        for i, reason in enumerate(self.reasons):
            touched = edges[:, (edges == size + i).any(0)]
            slots = np.unique(touched[touched < size])
            if slots.size:
                frozen.append((slots, reason))
        issued = [(w, a, n) for (w, a), n in record.issued.items()]
        trace = Trace(
            self.table,
            edges[:, ~hard],
            frozen,
            list(record.uses.values()),
            issued,
            record.order,
            self.unused(),
            self.trained,
        )
        if record.absent:
            trace.frozen.extend(self._half_known(trace.components()))
        return trace

    def _half_known(self, component: np.ndarray) -> list:
        """Sums of which this forward does not show one part.

        Such as RoI features read from another level of a pyramid, which
        depends on the RoIs: where nothing else tells that the levels lose the
        same channels, they lose none.
        """
        frozen = []
        for absent, present, where in self.record.absent:
            slots, units = [], []
            for layers in (absent, present):
                labels = [np.unique(squeezed(x).numpy()) for x in layers]
                found = np.unique(np.concatenate([[-1], *labels]))
                found = found[(found >= 0) & (found < len(self.table))]
                slots.append(found)
                units.append(set(component[found].tolist()))
            if all(units) and units[0] != units[1]:
                reason = f'{where} may be given other channels than it was'
                frozen.append((np.concatenate(slots), reason))
        return frozen

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
        for tensor in operands:  # before an in-place result replaces them
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
        self._sources = ()  # extension operators do not come through here
        return out

    def _stays_opaque(self, operands: Sequence[Tensor], out: Any) -> bool:
        """Spare the rules what losses do with outputs: nothing new in it."""
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
        """Give a tensor its label layers, each of the tensor's shape."""
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

    # -- consumers and producers ------------------------------------------

    def add_use(
        self,
        weight: str,
        axis: int,
        grouped: bool,
        channel_axis: int,
        input_labels: np.ndarray,
        slots: np.ndarray,
    ) -> None:
        """Register that ``weight`` consumes channels in this call."""
        module = self._observable(weight, channel_axis, input_labels)
        use = Use(
            weight,
            axis,
            grouped,
            module,
            channel_axis,
            tuple(int(s) for s in slots),
        )
        key = (weight, axis, use.slots)
        known = self.record.uses.get(key)
        if known is None or known.module is not None:
            self.record.uses[key] = use

    def _observable(
        self, weight: str, channel_axis: int, input_labels: np.ndarray
    ) -> str | None:
        """The module that owns the weight and is handed these channels."""
        if not self.stack:
            return None
        frame = self.stack[-1]
        name = self.module_names.get(id(frame.module))
        if name is None or layer_of(weight) != name:
            return None
        for layer in () if frame.source is None else self.layers(frame.source):
            dims = {d % layer.dim() for d in self.varying(layer)}
            axis = channel_axis % layer.dim()
            if axis in dims and not self.is_opaque(layer):
                mine = along(layer, axis)
                if (
                    mine.shape == input_labels.shape
                    and (mine == input_labels).all()
                ):
                    return name
        return None

    def add_issue(self, weight: str, axis: int, channels: int) -> None:
        """Register that ``weight`` produces ``channels`` channels."""
        self.record.issued.setdefault((weight, axis), channels)
