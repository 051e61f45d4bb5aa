"""One forward under the label tracer, and its result as a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from ..slimming.surgery import compute_again, own_numbers
from ..utils.trees import tree_leaves, values_in
from .attributes import couple_unread, settle_sizes
from .label_layers import axis_labels, squeezed
from .labels import Frame, LabelTracer, Record, Rule
from .size_watch import watch_sizes
from .sizes import attributes_in
from .slots import Trace
from .unread import Passing, own_labels, unread


def trace_labels(
    model: nn.Module,
    run: Callable[[], Any],
    find_rule: Callable[[Any], Rule],
    watch: Callable[[LabelTracer], AbstractContextManager] = nullcontext,
    train: Callable[[], Any] | None = None,
) -> Trace:
    """Propagate labels through one forward, and a second one if necessary.

    Args:
        model (nn.Module): The model in eval mode.
        run (Callable): Runs the model on demo input, without arguments, and
            returns its outputs. Floating-point inputs that are not
            parameters count as the image.
        find_rule (Callable): Returns the rule of an operation.
        watch (Callable): Context manager, called with the tracer, that
            applies the rules of operations that the dispatcher does not see.
            Defaults to none.
        train (Callable, optional): Computes the losses. Called if the first
            forward leaves parameters unused, which training may use.
            Operations before an error count.

    Raises:
        RuntimeError: If the forward itself fails.

    Returns:
        Trace: Couplings, frozen slots, consumers and producers.
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
        kept, tracer.record = tracer.record, Record()
        _end(tracer, run())
        tracer.record.follow(kept)
        if train is not None and _unused(tracer):
            try:
                _end(tracer, train())
                tracer.trained = True
            except Exception:  # the demo input may lack data for the losses
                tracer.stack.clear()
    slots = len(tracer.table)
    trace = settle_sizes(
        learned(tracer),
        tracer.sizes,
        lambda extent: axis_labels(extent.layers, extent.axis, slots),
        _own_numbers(tracer),
    )
    counted = passing.counted(trace.table, slots)
    return couple_unread(
        trace, counted, lambda widths: unread(model, run, widths)
    )


@contextmanager
def _module_stack(tracer: LabelTracer, passing: Passing) -> Iterator[None]:
    """Track the stack of modules that are being executed."""

    def layers(tensor: Tensor) -> tuple[Tensor, ...]:
        return tracer.tag(tensor).layers

    def enter(module: nn.Module, args: tuple) -> None:
        tracer.entered.add(module)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        tracer.stack.append(Frame(module, first))
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
    """Mark the inputs of the network as activations.

    Buffers that normalise images would otherwise count as their source.
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


def _end(tracer: LabelTracer, outputs: Any) -> None:
    """Freeze channels that reach an output."""
    with tracer.aside():
        for out in values_in(outputs):
            for layer in tracer.layers(out):
                tracer.freeze(layer, 'reaches an output of the network')


def _unused(tracer: LabelTracer) -> list[str]:
    """Returns the names of parameters and attributes that were not used.

    An attribute is included if its module did not run and modules of the
    same class count channels with it.
    """
    terms = [
        *(fact.term for fact in tracer.sizes.facts),
        *(size for size, *_ in tracer.sizes.made),
    ]
    counted = set()
    for attribute in {a for term in terms for a in attributes_in(term)}:
        owner, _, key = attribute.name.rpartition('.')
        module = tracer.modules[owner]
        if key not in own_numbers(module):
            counted.add((type(module), key))
    return [
        *(
            name
            for name, tensor in tracer.table.tensors.items()
            if isinstance(tensor, nn.Parameter)
            and name not in tracer.record.order
        ),
        *(
            f'{name}.{key}'
            for name, module in tracer.modules.items()
            if module not in tracer.entered
            for kind, key in sorted(counted, key=str)
            if type(module) is kind
        ),
    ]


def _own_numbers(tracer: LabelTracer) -> dict[str, np.ndarray]:
    """Returns the slots that the numbers of layers count, by name."""
    names = {id(t): name for name, t in tracer.table.tensors.items()}
    return {
        f'{name}.{key}' if name else key: slots
        for name, module in tracer.modules.items()
        for key, slots in own_labels(module, tracer.table, names).items()
    }


def learned(tracer: LabelTracer) -> Trace:
    """Returns the trace; edges to opaque slots become reasons."""
    record, size = tracer.record, len(tracer.table)
    edges = np.zeros((2, 0), dtype=np.int64)
    if record.edges:
        edges = np.concatenate(
            [np.stack(pair) for pair in record.edges], axis=1
        )
    hard = (edges >= size).any(0)
    frozen = [*record.causes, *record.frozen]
    for i, reason in enumerate(tracer.reasons):
        touched = edges[:, (edges == size + i).any(0)]
        slots = np.unique(touched[touched < size])
        if slots.size:
            frozen.append((slots, reason))
    issued = [(w, a, n) for (w, a), n in record.issued.items()]
    trace = Trace(
        tracer.table,
        edges[:, ~hard],
        frozen,
        list(record.uses.values()),
        issued,
        record.order,
        _unused(tracer),
        tracer.trained,
    )
    if record.absent:
        trace.frozen.extend(_half_known(tracer, trace.components()))
    return trace


def _half_known(tracer: LabelTracer, component: np.ndarray) -> list:
    """Returns reasons for sums with terms that the forward left out.

    Example: the pyramid level from which RoI features are read depends on
    the RoIs. If no other operation couples the channels of the levels, they
    are frozen.
    """
    frozen = []
    for absent, present, where in tracer.record.absent:
        slots, units = [], []
        for layers in (absent, present):
            labels = [np.unique(squeezed(x).numpy()) for x in layers]
            found = np.unique(np.concatenate([[-1], *labels]))
            found = found[(found >= 0) & (found < len(tracer.table))]
            slots.append(found)
            units.append(set(component[found].tolist()))
        if all(units) and units[0] != units[1]:
            reason = f'{where} may be given other channels than it was'
            frozen.append((np.concatenate(slots), reason))
    return frozen
