"""Whole numbers with a record of their origin.

While labels are traced, the whole numbers that modules store as attributes
(``self.width``, ``self.dims[0]``) and the sizes of tensors (``x.shape[1]``)
have the type :class:`Size`. A size computes like any whole number and records
the computation. Two attributes of equal value remain distinguishable.

A size equals any number of its value, so a cache of results by size may return
the result of another size. A size of an earlier trace counts as a plain
number, and :mod:`mmgfp.tracing.caches` clears cached functions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Size as Shape
from torch import Tensor, nn

from ..slimming.surgery import own_numbers, own_positions

# Other numbers are no widths: a single unit is never cut, large numbers count
# paths or iterations.
_LEAST, _MOST = 2, 1 << 16
_LONGEST = 64  # longer lists hold data, not widths
# Attributes that torch's own modules read and that no tensor's shape holds.
_READ_BY_TORCH = ('num_features', 'num_groups', 'unflattened_size')


@dataclass(frozen=True)
class Attribute:
    """A number stored by a module, such as ``'layer1.0.dims[0]'``."""

    name: str
    value: int


@dataclass(frozen=True, eq=False)
class Extent:
    """The size of one axis of a tensor with these label layers."""

    layers: tuple[Tensor, ...]
    axis: int
    value: int


@dataclass(frozen=True, eq=False)
class Computed:
    """A number computed from two terms, or from a term and a constant."""

    symbol: str
    left: Term | int
    right: Term | int


Term = Attribute | Extent | Computed

_OPERATORS: dict[str, Callable] = {
    '+': operator.add,
    '-': operator.sub,
    '*': operator.mul,
    '//': operator.floordiv,
    '%': operator.mod,
}


@dataclass(frozen=True, eq=False)
class SizeFact:
    """A number that counts channels, with its origin.

    Attributes:
        term (Term): Origin of the number.
        labels (np.ndarray): (n, k) slots at each of the n counted positions;
            -1 for none.
        where (str): The module that was being executed.
    """

    term: Term
    labels: np.ndarray
    where: str


@dataclass(frozen=True, eq=False)
class Choice:
    """A channel axis viewed as rows and columns, both of which may shrink.

    Attributes:
        labels (np.ndarray): (rows, columns) slots.
    """

    labels: np.ndarray


@dataclass
class SizeRecord:
    """Recorded sizes.

    Attributes:
        given (dict): Output axis -> size given by the code, for the operation
            being executed.
        cuts (set): Positions from attributes at which that operation cuts.
        made (list): Sizes of fresh tensors: (size, label layers, axis,
            module). Their labels are set when values are written.
    """

    facts: list[SizeFact] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    given: dict[int, Any] = field(default_factory=dict)
    cuts: set[int] = field(default_factory=set)
    made: list[tuple[Any, Sequence[Tensor], int, str]] = field(
        default_factory=list
    )


class Size(int):
    """A whole number with its origin.

    Attributes:
        term (Term): Origin of the number.
        trace (object): The trace of the number; the class attribute is the
            current trace.
    """

    term: Term
    trace: object = None
    # called with both sides of each comparison that is true
    on_equal: Callable[[Any, Any], None] | None = None
    # called before each lookup by a size
    on_hash: Callable[[], None] | None = None

    def __new__(cls, value: int, term: Term | int) -> Any:
        """Returns a plain number if the term is one."""
        if isinstance(term, int):
            return int(value)
        size = super().__new__(cls, value)
        size.term, size.trace = term, cls.trace
        return size

    def __hash__(self) -> int:
        if Size.on_hash is not None:
            Size.on_hash()
        return int.__hash__(self)

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        if equal is True and Size.on_equal is not None:
            Size.on_equal(self, other)
        return equal

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __neg__(self) -> int:
        term = term_of(self)
        if isinstance(term, Computed) and (term.symbol, term.left) == ('-', 0):
            return Size(-int(self), term.right)
        if isinstance(term, int):
            return -term
        return Size(-int(self), Computed('-', 0, term))

    def __reduce__(self) -> tuple:
        return int, (int(self),)


def _computing(symbol: str, name: str, swapped: bool) -> Callable:
    compute = getattr(int, name)

    def method(self: Size, other: Any) -> Any:
        value = compute(self, other)
        if type(value) is not int or isinstance(other, bool):
            return value
        sides = (term_of(self), term_of(other))
        if swapped:
            sides = sides[::-1]
        if all(isinstance(side, int) for side in sides):
            return int(value)
        return Size(value, Computed(symbol, *sides))

    return method


for _symbol, _operator in _OPERATORS.items():
    _name = _operator.__name__.strip('_')
    for _method in (f'__{_name}__', f'__r{_name}__'):
        setattr(
            Size,
            _method,
            _computing(_symbol, _method, _method.startswith('__r')),
        )


def has_origin(value: Any) -> bool:
    """Returns whether a number is a size of the current trace."""
    return isinstance(value, Size) and value.trace is Size.trace


def term_of(value: Any) -> Term | int:
    """Returns the origin of a number; the number itself if it has none."""
    return value.term if has_origin(value) else int(value)


def attributes_in(value: Any) -> list[Attribute]:
    """Returns the attributes from which a number or term was computed."""
    return [t for t in _sources(value) if isinstance(t, Attribute)]


def extents_in(value: Any) -> list[Extent]:
    """Returns the tensor sizes from which a number or term was computed."""
    return [t for t in _sources(value) if isinstance(t, Extent)]


def _sources(value: Any) -> list[Term]:
    term = value.term if has_origin(value) else value
    if isinstance(term, Computed):
        return _sources(term.left) + _sources(term.right)
    return [term] if isinstance(term, (Attribute, Extent)) else []


def evaluate(
    term: Term | int, value: Callable[[Attribute | Extent], Any]
) -> Any:
    """Compute a term again from other values of its sources.

    Divisions are not rounded, so that each change has an effect.
    """
    if isinstance(term, Computed):
        left, right = evaluate(term.left, value), evaluate(term.right, value)
        with np.errstate(divide='ignore', invalid='ignore'):
            if term.symbol == '//':
                return operator.truediv(left, right)
            return _OPERATORS[term.symbol](left, right)
    return value(term) if isinstance(term, (Attribute, Extent)) else term


def describe(term: Term | int) -> str:
    """Returns a term as code, such as ``96 // num_heads``."""
    if isinstance(term, Attribute):
        return term.name.rpartition('.')[2]
    if isinstance(term, Extent):
        return f'{term.value}'
    if isinstance(term, Computed):
        sides = [
            f'({describe(t)})' if isinstance(t, Computed) else describe(t)
            for t in (term.left, term.right)
        ]
        return f' {term.symbol} '.join(sides)
    return str(term)


@contextmanager
def traced_attributes(model: nn.Module) -> Iterator[None]:
    """Replace stored numbers of modules by sizes inside the context."""
    Size.trace = object()
    originals: list[tuple[dict, str, Any, Any]] = []
    for name, module in model.named_modules():
        of_torch = type(module).__module__.startswith('torch.')
        prefix = f'{name}.' if name else ''
        stored, own = vars(module), own_positions(module)
        derived = {*own_numbers(module)} - {*own}  # slicing sets them
        for key, value in list(stored.items()):
            if key.startswith('_') or key in derived:
                continue
            if of_torch and key not in (*_READ_BY_TORCH, *own):
                continue
            traced = _with_origin(value, prefix + key)
            if traced is not None:
                originals.append((stored, key, value, traced))
                stored[key] = traced
    try:
        yield
    finally:
        for stored, key, value, traced in originals:
            if stored.get(key) is traced:
                stored[key] = value
        for module in model.modules():  # numbers that the forward stored
            for key, value in list(vars(module).items()):
                plain = without_origin(value, set())
                if plain is not value:
                    vars(module)[key] = plain


def without_origin(value: Any, seen: set[int]) -> Any:
    """Returns a value with plain numbers in place of sizes.

    Lists, dicts and objects are changed in place.

    Args:
        value (Any): Any value.
        seen (set[int]): Ids of the values visited so far; extended.
    """
    if isinstance(value, Size):
        return int(value)
    if not isinstance(value, (dict, list, tuple, set)):
        return value
    if not isinstance(value, tuple):
        if id(value) in seen:  # a container may contain itself
            return value
        seen.add(id(value))
    if isinstance(value, dict):
        items = [x for item in value.items() for x in item]
    else:
        items = list(value)
    plain = [without_origin(x, seen) for x in items]
    if all(a is b for a, b in zip(plain, items)):
        return value
    if isinstance(value, dict):
        value.clear()
        value.update(zip(plain[::2], plain[1::2]))
    elif isinstance(value, list):
        value[:] = plain
    elif isinstance(value, set):
        value.clear()
        value.update(plain)
    else:
        named = hasattr(value, '_fields')
        return type(value)(*plain) if named else type(value)(plain)
    return value


def _with_origin(value: Any, name: str) -> Any:
    """Returns a number, list or tuple with origins; None for other types."""
    if type(value) in (list, tuple, Shape) and 0 < len(value) <= _LONGEST:
        if not any(_is_width(v) for v in value):
            return None
        return type(value)(
            Size(v, Attribute(f'{name}[{i}]', v)) if _is_width(v) else v
            for i, v in enumerate(value)
        )
    return Size(value, Attribute(name, value)) if _is_width(value) else None


def _is_width(value: Any) -> bool:
    return type(value) is int and _LEAST <= value <= _MOST
