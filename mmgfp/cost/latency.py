"""Latency of a network as a function of its widths, from a measured table.

The paper counts activations instead, because the time of one channel is too
short to measure. A table holds the time of every convolution and linear layer
at a few widths, measured on the target device. It is interpolated in between,
which gives a time for one channel. The remaining time of the network (norms,
activation functions, additions) is taken as proportional to the activations.

Notation: T parameters, R calls of them, G groups, P measured widths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ..utils.atomic import complete
from ..utils.errors import type_and_line
from ..utils.plain import (
    natural,
    number,
    plain_dict,
    plain_list,
    read_json,
    shown,
    text,
)

FORMAT = 'mmgfp-latency'
VERSION = 1
MAX_WIDTHS = 100  # of an axis; the tool measures about ten


@dataclass(frozen=True)
class Measured:
    """Measured milliseconds of an operation at a few widths.

    Attributes:
        first (list[int]): P0 sizes of the weight's first axis, ascending.
        second (list[int]): P1 sizes of its second axis, ascending.
        ms (list[list[float]]): (P0, P1).
    """

    first: list[int]
    second: list[int]
    ms: list[list[float]]


@dataclass(frozen=True)
class LatencyTable:
    """Measured times of a network's operations on one device.

    Attributes:
        shapes (dict): Full shape of every weight, by its name.
        calls (dict): By name of the weight, indices of its operations; a head
            that runs on five levels has five.
        operations (list[Measured]): The different operations.
        whole (float): Milliseconds of the full network.
        about (dict): Batch size, device, versions, date, and how well the
            table predicts whole networks, for users.
    """

    shapes: Mapping[str, tuple[int, ...]]
    calls: Mapping[str, Sequence[int]]
    operations: Sequence[Measured]
    whole: float
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> float:
        """Milliseconds of the full network's operations."""
        return sum(
            np.max(self.operations[operation].ms)
            for operations in self.calls.values()
            for operation in operations
        )

    @property
    def full(self) -> float:
        """Milliseconds of the full network.

        Consecutive operations may be faster together than alone.
        """
        return max(self.whole, self.layers)

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON; the final name appears only when it is complete."""
        data = {'format': FORMAT, 'version': VERSION, **asdict(self)}
        with complete(path) as partial:
            Path(partial).write_text(json.dumps(data, indent=1) + '\n')

    @classmethod
    def load(cls, path: str | os.PathLike) -> LatencyTable:
        """Read a file of :meth:`save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no table, is damaged or has another version.
        """
        name = os.fspath(path)
        if not os.path.isfile(name):
            raise FileNotFoundError(
                f'latency_table={name!r} does not exist; expected a file that '
                '`mmgfp latency-table` wrote'
            )
        try:
            return cls._from_dict(plain_dict(read_json(name, 'make it again')))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f'latency_table={name!r} is not a table of this mmgfp '
                f'({type_and_line(error)}); expected a file that '
                '`mmgfp latency-table` wrote'
            ) from error

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> LatencyTable:
        if (data['format'], data['version']) != (FORMAT, VERSION):
            raise ValueError(
                f'format {shown(data["format"])}, '
                f'version {shown(data["version"])}'
            )
        shapes = {
            text(name): tuple(map(natural, plain_list(shape)))
            for name, shape in plain_dict(data['shapes']).items()
        }
        operations = [
            _read_measured(plain_dict(entry))
            for entry in plain_list(data['operations'])
        ]
        calls = {
            text(name): [natural(n) for n in plain_list(numbers)]
            for name, numbers in plain_dict(data['calls']).items()
        }
        for name, numbers in calls.items():
            if name not in shapes or max(numbers, default=0) >= len(
                operations
            ):
                raise ValueError(f'{name} was not measured')
        return cls(
            shapes,
            calls,
            operations,
            number(data['whole']),
            plain_dict(data['about']),
        )

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise if the table was measured for another network.

        Args:
            shapes (Mapping): Full shapes of the network's parameters.

        Raises:
            ValueError: If a layer differs, with the first such layer.
        """
        for name, shape in self.shapes.items():
            if shapes.get(name) != shape:
                there = shapes.get(name, 'no such layer')
                raise ValueError(
                    f'the latency table is for another network: it has {name} '
                    f'of shape {shape}, the network {there}. Make it with '
                    '`mmgfp latency-table` and the config to prune.'
                )


def _read_measured(entry: Mapping[str, Any]) -> Measured:
    first, second = (
        [natural(n) for n in plain_list(entry[axis])]
        for axis in ('first', 'second')
    )
    ms = [
        [number(n) for n in plain_list(row)] for row in plain_list(entry['ms'])
    ]
    for widths in (first, second):
        if not 1 <= len(widths) <= MAX_WIDTHS or widths != sorted({*widths}):
            raise ValueError(f'the {len(widths)} widths are not ascending')
    if [len(row) for row in ms] != [len(second)] * len(first):
        raise ValueError('the times and the widths differ in number')
    return Measured(first, second, ms)


# Distance, in channels, over which slopes are taken.
_NEAR = 1e-3


class LatencyModel:
    """Milliseconds of a network as a function of its channel groups' units.

    Args:
        table (LatencyTable): The measured table.
        names (Sequence[str]): T names of the network's parameters.
        units (Sequence[csr_matrix]): For the first two axes, (G, T) slices
            that a unit of each group takes of each parameter.
        acts (float): Activations of the full network.
    """

    def __init__(
        self,
        table: LatencyTable,
        names: Sequence[str],
        units: Sequence[csr_matrix],
        acts: float,
    ) -> None:
        place = {name: i for i, name in enumerate(names)}
        calls = [
            (place[name], operation)
            for name, operations in table.calls.items()
            for operation in operations
        ]
        # (R,): the weight of each call, and its operation
        self._parameter = np.array([p for p, _ in calls], dtype=int)
        used = [table.operations[operation] for _, operation in calls]
        self._set_grids(used)
        self._rest = (table.full - table.layers) / acts
        # the calls that a unit of each group narrows, and by how much
        either = (units[0] + units[1]).tocsc()[:, self._parameter].tocoo()
        self._group, self._call = either.row, either.col
        parameter = self._parameter[self._call]
        self._less = np.stack(
            [np.asarray(u[self._group, parameter]).ravel() for u in units]
        )

    def _set_grids(self, used: Sequence[Measured]) -> None:
        """Set all grids as one array, (R, P, P), with widths (R, 2, P).

        Smaller grids are padded beyond their full width. Times are made
        monotonic, because fewer channels never take longer but for noise.

        One array is much faster than a SciPy RegularGridInterpolator per
        operation: 3000 points of 60 operations take 0.9 ms instead of 22 ms
        (SciPy 1.17.1, one core), and every choice computes the savings.
        """
        most = 1 + max(
            (max(len(m.first), len(m.second)) for m in used), default=1
        )
        self._nodes = np.zeros((len(used), 2, most))
        self._ms = np.zeros((len(used), most, most))
        for r, entry in enumerate(used):
            for axis, widths in enumerate((entry.first, entry.second)):
                extra = most - len(widths)
                self._nodes[r, axis] = [
                    *widths,
                    *(widths[-1] + 1 + np.arange(extra)),
                ]
            ms = np.asarray(entry.ms, float)
            for axis in (0, 1):
                ms = np.maximum.accumulate(ms, axis)
            pad = [(0, most - n) for n in ms.shape]
            self._ms[r] = np.pad(ms, pad, mode='edge')

    def _milliseconds(
        self, calls: np.ndarray, first: np.ndarray, second: np.ndarray
    ) -> np.ndarray:
        """Returns times interpolated between the four measured widths around.

        Args:
            calls (np.ndarray): (K,) indices of the calls.
            first (np.ndarray): (K,) sizes of the weights' first axes.
            second (np.ndarray): (K,) sizes of their second axes.
        """
        corners, fractions = [], []
        for axis, sizes in enumerate((first, second)):
            nodes = self._nodes[calls, axis]
            below = (nodes <= sizes[:, None]).sum(1) - 1
            below = below.clip(0, nodes.shape[1] - 2)
            rows = np.arange(len(calls))
            low, high = nodes[rows, below], nodes[rows, below + 1]
            corners.append(below)
            # below the smallest measured width the time is constant
            fractions.append(((sizes - low) / (high - low)).clip(0, 1))
        (i, j), (u, v) = corners, fractions
        ms = self._ms
        return (
            ms[calls, i, j] * (1 - u) * (1 - v)
            + ms[calls, i + 1, j] * u * (1 - v)
            + ms[calls, i, j + 1] * (1 - u) * v
            + ms[calls, i + 1, j + 1] * u * v
        )

    def _of_calls(self, widths: np.ndarray) -> np.ndarray:
        calls = np.arange(len(self._parameter))
        return self._milliseconds(calls, *widths[:, self._parameter])

    def total(self, widths: np.ndarray, acts: float) -> float:
        """Returns the milliseconds of the network.

        Args:
            widths (np.ndarray): (2, T) sizes of the first two axes of every
                parameter.
            acts (float): Activations of the network.
        """
        return float(self._of_calls(widths).sum() + self._rest * acts)

    def slopes(self, widths: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the derivatives of :meth:`total`.

        At a measured width it is the mean of the slopes on both sides.

        Args:
            widths (np.ndarray): See :meth:`total`.

        Returns:
            tuple: By the sizes of the axes, (2, T), and by the activations.
        """
        found = np.zeros_like(widths, dtype=float)
        for axis in (0, 1):
            near = [np.array(widths, float) for _ in range(2)]
            near[0][axis] -= _NEAR
            near[1][axis] += _NEAR
            less, more = map(self._of_calls, near)
            # the weights of several calls add up
            np.add.at(
                found[axis], self._parameter, (more - less) / (2 * _NEAR)
            )
        return found, self._rest

    def marginal(self, widths: np.ndarray, acts: np.ndarray) -> np.ndarray:
        """Returns the milliseconds saved by a unit of each group, (G,).

        Args:
            widths (np.ndarray): See :meth:`total`.
            acts (np.ndarray): (G,) activations that a unit saves.
        """
        before = self._of_calls(widths)[self._call]
        narrower = widths[:, self._parameter[self._call]] - self._less
        after = self._milliseconds(self._call, *narrower)
        saved = np.bincount(self._group, before - after, minlength=len(acts))
        return saved + self._rest * acts
