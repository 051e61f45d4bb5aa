"""Tensors in objects of any kind, read and replaced."""

from __future__ import annotations

from collections import OrderedDict, UserDict, UserList, deque, namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn

from mmgfp.utils.trees import look_into, map_tensors, values_in


@dataclass
class Plain:
    a: object
    b: object = None


@dataclass(frozen=True)
class Frozen:
    a: object


class Slots:
    __slots__ = ('__hidden', 'unset')

    def __init__(self, value):
        self.__hidden = value


class SlotsBelow(Slots):
    __slots__ = 'more'

    def __init__(self, value):
        super().__init__(None)
        self.more = value


class Lazy(Mapping):
    """Computes what it is asked for."""

    def __init__(self, value):
        self._make = lambda: value

    def __getitem__(self, key):
        return self._make()

    def __iter__(self):
        return iter(['a'])

    def __len__(self):
        return 1


class LazySequence(Sequence):
    def __init__(self, value):
        self._make = lambda: value

    def __getitem__(self, index):
        return [self._make()][index]

    def __len__(self):
        return 1


class Property:
    def __init__(self, value):
        self._value = value

    @property
    def value(self):
        return self._value


class Element(BaseDataElement):
    """As the data samples of the libraries."""


Named = namedtuple('Named', 'a')

REPLACEABLE = {
    'dict': lambda x: dict(a=x),
    'OrderedDict': lambda x: OrderedDict(a=x),
    'list': lambda x: [x],
    'tuple': lambda x: (x,),
    'namedtuple': Named,
    'deque': lambda x: deque([x]),
    'dataclass': Plain,
    'frozen dataclass': Frozen,
    'namespace': lambda x: SimpleNamespace(a=x),
    'slots': Slots,
    'slots of a subclass': SlotsBelow,
    'UserDict': lambda x: UserDict(a=x),
    'UserList': lambda x: UserList([x]),
    'property': Property,
    'instance data': lambda x: InstanceData(a=x),
    'data sample': lambda x: Element(a=InstanceData(b=x)),
    'nested': lambda x: [dict(a=Plain(1, (SimpleNamespace(b=[x]),)))],
}

READABLE = {
    **REPLACEABLE,
    'lazy mapping': Lazy,
    'lazy sequence': LazySequence,
    'read-only mapping': lambda x: MappingProxyType(dict(a=x)),
    'generator': lambda x: (y for y in [x]),
    'iterator': lambda x: iter([x]),
    'values': lambda x: dict(a=x).values(),
    'set': lambda x: {x},
    'array of objects': lambda x: np.array([x, None], dtype=object),
}


@pytest.mark.parametrize('kind', READABLE)
def test_tensors_are_seen(kind):
    x = torch.arange(6.0).view(3, 2)
    found, numbers = look_into(READABLE[kind](x))
    assert found and all(t is x for t in found)
    assert len(numbers) == (kind == 'nested')


@pytest.mark.parametrize('kind', REPLACEABLE)
def test_tensors_are_replaced_in_a_copy(kind):
    x = torch.arange(6.0).view(3, 2)
    before = REPLACEABLE[kind](x)
    after = map_tensors(torch.Tensor.double, before)
    assert type(after) is type(before)
    assert all(t is x for t in look_into(before)[0])
    found = look_into(after)[0]
    assert found and all(torch.equal(t, x) for t in found)
    assert {t.dtype for t in found} == {torch.float64}


def test_what_holds_no_tensor_is_not_copied():
    held = Plain(SimpleNamespace(a=1), [2])
    assert map_tensors(torch.Tensor.double, held) is held


def test_arrays_and_numbers_are_values():
    values = values_in(
        [
            *(1.5, np.float32(2.5), np.array([3, 4]), 'a', None, b'b'),
            *([5, 6.0], True, float('nan'), torch.tensor([7])),
            np.arange(4, dtype='>u2')[::-2],
        ]
    )
    assert [v.tolist() for v in values] == [
        *(2.5, [3, 4], [7], [3, 1]),  # tensors and arrays first
        *([1.5], [5, 6], [1]),
    ]


def test_attributes_of_tensors():
    x, y = torch.ones(2), torch.zeros(3)
    x.features = y
    y.above = x
    assert [len(t) for t in values_in(x)] == [2, 3, 2]


def test_what_goes_round_in_circles():
    held = SimpleNamespace(a=torch.ones(1))
    held.me = [held, dict(b=held)]
    assert len(values_in(held)) == 1
    assert values_in(map_tensors(torch.neg, held))[0] == -1


def test_deep_nesting():
    held = SimpleNamespace(a=torch.ones(1))
    for _ in range(5000):
        held = SimpleNamespace(next=held)
    assert len(values_in(held)) == 1


def test_modules_are_no_outputs():
    held = Plain(nn.Linear(2, 2), [nn.Parameter, torch.relu, held_by_method])
    assert values_in(held) == []


def held_by_method(x):
    return x
