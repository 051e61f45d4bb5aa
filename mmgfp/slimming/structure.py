"""The structure file: the kept positions of every tensor of a pruned network.

JSON, or the same mapping of plain types under :data:`KEY` in a checkpoint.
Pruning writes it; fine-tuning, testing and deployment read it: the original
config plus a structure builds the slim network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..groups import ATTRIBUTE
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
from ..version import __version__
from .checkpoint import load_plain_checkpoint
from .element_masks import Density
from .history import Scores
from .surgery import Keep, cut_model, named_tensors, read_width

FORMAT = 'mmgfp-structure'
# Version 2 adds attributes, version 3 the density of single weights;
# structures without them have version 1 or 2.
VERSIONS = (1, 2, 3)
KEY = 'mmgfp_structure'
# Sum of the sizes of all axes; networks of some gigabytes have three million.
MAX_POSITIONS = 2**24


@dataclass(frozen=True, eq=False)
class Axis:
    """One cut axis: its original size and the kept positions."""

    size: int
    keep: np.ndarray


@dataclass(frozen=True, eq=False)
class Structure:
    """Kept positions of every cut tensor, with costs and scores.

    Attributes:
        axes (dict): ``(tensor name, axis)`` -> :class:`Axis`, relative to the
            network that the config builds. For an attribute that counts
            channels :data:`~mmgfp.groups.ATTRIBUTE` stands for the axis.
        architecture (str): Class name of the network.
        source (str): Name of the config that it was pruned with.
        input_shape (tuple[int, ...]): (H, W) that the cost was counted at.
        cost_before (dict): ``flops``, ``params``, ``acts`` of the original.
        cost_after (dict): The same costs of the slim network.
        scores (Scores, optional): Scores that decided which units were
            chosen.
        density (dict): By name of a slim parameter with pruned single
            weights, the numbers of all and of unpruned weights.
    """

    axes: Mapping[tuple[str, int], Axis]
    architecture: str = ''
    source: str = ''
    input_shape: tuple[int, ...] = ()
    cost_before: Mapping[str, float] = field(default_factory=dict)
    cost_after: Mapping[str, float] = field(default_factory=dict)
    scores: Scores | None = None
    density: Mapping[str, Density] = field(default_factory=dict)

    @property
    def keep(self) -> Keep:
        """Returns the kept positions for :mod:`mmgfp.slimming.surgery`."""
        return {key: axis.keep for key, axis in self.axes.items()}

    def ratio(self, metric: str) -> float:
        """Returns the remaining ratio of ``flops``, ``params`` or ``acts``."""
        return self.cost_after[metric] / self.cost_before[metric]

    # -- plain types ------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Returns plain types, for JSON or a checkpoint."""
        tensors: dict[str, dict[str, Any]] = {}
        attributes = {}
        for (name, axis), entry in sorted(self.axes.items()):
            plain = {'size': entry.size, 'keep': _to_runs(entry.keep)}
            if axis == ATTRIBUTE:
                attributes[name] = plain
            else:
                tensors.setdefault(name, {})[str(axis)] = plain
        density = {n: part._asdict() for n, part in self.density.items()}
        return {
            'format': FORMAT,
            'version': 3 if self.density else 2 if attributes else 1,
            'mmgfp': __version__,
            'architecture': self.architecture,
            'source': self.source,
            'input_shape': list(self.input_shape),
            'cost': {
                'before': _plain(self.cost_before),
                'after': _plain(self.cost_after),
            },
            'tensors': tensors,
            **({'attributes': attributes} if attributes else {}),
            **({'scores': self.scores.to_dict()} if self.scores else {}),
            **({'density': density} if density else {}),
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = 'structure') -> Structure:
        """Check and read plain types.

        Args:
            data (Any): Result of :meth:`to_dict`.
            where (str): Name of the origin in messages.

        Raises:
            ValueError: If it is no structure, is damaged or has another
                version.
        """
        found = data.get('format') if isinstance(data, dict) else data
        if type(found) is not str or found != FORMAT:
            raise ValueError(
                f'{where} is not a structure of mmgfp: expected '
                f'"format": "{FORMAT}", got {shown(found)}'
            )
        version = data.get('version')
        if type(version) is not int or version not in VERSIONS:
            raise ValueError(
                f'{where} has version {shown(version)}; this mmgfp '
                f'{__version__} reads versions 1 to {VERSIONS[-1]}. It was '
                f'written by mmgfp {shown(data.get("mmgfp"))}: install that '
                'release.'
            )
        try:
            axes = _read_axes(data)
            before, after = (
                _numbers(plain_dict(data['cost'])[k])
                for k in ('before', 'after')
            )
            # an earlier latency stays even if its table no longer exists
            counted = before.keys() - {'latency'}
            if not counted <= after.keys() <= before.keys():
                raise ValueError('cost and cost before have different metrics')
            scores = data.get('scores')
            return cls(
                axes,
                text(data['architecture']),
                text(data['source']),
                tuple(natural(n) for n in plain_list(data['input_shape'])),
                before,
                after,
                None if scores is None else Scores.from_dict(scores),
                _read_density(data.get('density', {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{where} is damaged '
                f'({type_and_line(error)}). Use the '
                'checkpoint beside it instead.'
            ) from error

    # -- files ------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON; the final name appears only when it is complete."""
        text = _to_json(self.to_dict(), lines=3)
        with (
            complete(path) as partial,
            open(partial, 'w', encoding='utf-8') as file,
        ):
            file.write(text)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Structure:
        """Read a JSON file, or the structure inside a ``.pth`` checkpoint.

        Nothing in either file is executed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, has another version or no structure.
        """
        path = os.fspath(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f'structure={path!r} does not exist; expected the .json or '
                '.pth that pruning wrote into its work dir'
            )
        if path.endswith('.json'):
            content = read_json(path, 'use the checkpoint beside it instead')
            return cls.from_dict(content, path)
        checkpoint = load_plain_checkpoint(path)
        if KEY not in checkpoint:
            raise ValueError(
                f'the checkpoint {path} holds no structure; use '
                'one that pruning saved, or its .json file'
            )
        return cls.from_dict(checkpoint[KEY], path)

    # -- use --------------------------------------------------------------

    def check(self, model: nn.Module) -> None:
        """Raise if the structure does not fit a full-size model.

        Raises:
            ValueError: If it does not fit, with the first such layer.
        """
        tensors = named_tensors(model)
        place = {name: i for i, name in enumerate(tensors)}
        label = f'the structure (of {self.architecture}, {self.source})'
        for (name, axis), entry in sorted(
            self.axes.items(), key=lambda item: place.get(item[0][0], -1)
        ):
            layer = name.rpartition('.')[0]
            if axis == ATTRIBUTE:
                self._check_attribute(model, name, entry, label)
                continue
            if name not in tensors:
                raise ValueError(
                    f'{label} does not fit {type(model).__name__}: the model '
                    f'has no {name} (layer {layer}). Use the config that was '
                    'pruned.'
                )
            shape = tuple(tensors[name].shape)
            if axis >= len(shape) or shape[axis] != entry.size:
                slim = axis < len(shape) and shape[axis] == len(entry.keep)
                hint = (
                    'The model seems to be pruned already.'
                    if slim
                    else 'Use the config that was pruned.'
                )
                raise ValueError(
                    f'{label} does not fit {type(model).__name__}: layer '
                    f'{layer} has {name} of shape {shape}, expected '
                    f'{entry.size} along axis {axis}. {hint}'
                )
        for name, known in self.density.items():
            self._check_density(tensors.get(name), name, known, label)

    def _check_density(
        self, tensor: Tensor | None, name: str, known: Density, label: str
    ) -> None:
        shape = [] if tensor is None else list(tensor.shape)
        for axis in range(len(shape)):
            if (name, axis) in self.axes:
                shape[axis] = len(self.axes[name, axis].keep)
        if tensor is None or prod(shape) != known.weights:
            raise ValueError(
                f'{label} does not fit the model: it has the density of '
                f'{known.weights} weights of {name}, expected '
                f'{"none" if tensor is None else prod(shape)}. Use the config '
                'that was pruned; for other classes prune with `ignore` for '
                'the layers of the head.'
            )

    def _check_attribute(
        self, model: nn.Module, name: str, entry: Axis, label: str
    ) -> None:
        found = read_width(model, name)
        if found != entry.size:
            layer, _, attribute = name.rpartition('.')
            state = (
                f'does not store {attribute} as a whole number'
                if found is None
                else f'has {attribute} = {found}'
            )
            hint = (
                'The model seems to be pruned already.'
                if found == len(entry.keep)
                else 'Use the config that was pruned.'
            )
            raise ValueError(
                f'{label} does not fit {type(model).__name__}: module '
                f'{layer or "the network itself"} {state}, expected '
                f'{attribute} = {entry.size}. {hint}'
            )

    def fits_slim(self, model: nn.Module) -> bool:
        """Returns whether a model has the shapes of this slim network."""
        tensors = named_tensors(model)
        return all(
            read_width(model, name) == len(entry.keep)
            if axis == ATTRIBUTE
            else name in tensors
            and tensors[name].shape[axis : axis + 1] == (len(entry.keep),)
            for (name, axis), entry in self.axes.items()
        )

    def apply(self, model: nn.Module) -> None:
        """Make a full-size model slim, in place.

        Raises:
            ValueError: If it does not fit, see :meth:`check`.
        """
        self.check(model)
        cut_model(model, self.keep)

    def compose(
        self, keep: Keep, sizes: Mapping[tuple[str, int], int]
    ) -> dict[tuple[str, int], Axis]:
        """Returns the structure after a further cut of the slim network.

        Args:
            keep (Keep): Kept positions of each axis that is cut further.
            sizes (Mapping): Current sizes of those axes.
        """
        axes = dict(self.axes)
        for key, kept in keep.items():
            known = axes.get(key)
            if known is None:
                axes[key] = Axis(sizes[key], np.asarray(kept))
            else:
                axes[key] = Axis(known.size, known.keep[kept])
        return axes


def full_shapes(
    model: nn.Module, structure: Structure | None
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of parameters and buffers before any cut.

    Args:
        model (nn.Module): The network, slim if there is a structure.
        structure (Structure, optional): Structure of the slim network.
    """
    shapes = {n: list(t.shape) for n, t in named_tensors(model).items()}
    for (name, axis), entry in structure.axes.items() if structure else ():
        if name in shapes and axis != ATTRIBUTE:
            shapes[name][axis] = entry.size
    return {name: tuple(shape) for name, shape in shapes.items()}


def _to_json(data: Any, lines: int) -> str:
    """Returns JSON with a line for each entry of the upper levels."""
    if not lines or not isinstance(data, dict):
        return json.dumps(data)
    entries = (
        f'{json.dumps(key)}: {_to_json(value, lines - 1)}'
        for key, value in data.items()
    )
    return '{\n' + ',\n'.join(entries) + '\n}'


def _plain(cost: Mapping[str, float]) -> dict[str, float]:
    """Returns the cost without NumPy's numbers, which are no plain types."""
    return {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in cost.items()
    }


def _numbers(cost: Any) -> dict[str, float]:
    return {text(k): number(v) for k, v in plain_dict(cost).items()}


def _read_density(data: Any) -> dict[str, Density]:
    density = {}
    for name, entry in plain_dict(data).items():
        entry = plain_dict(entry)
        if entry.keys() != set(Density._fields):
            raise ValueError(f'the density of {shown(name)} is not known')
        weights, left = natural(entry['weights']), natural(entry['left'])
        if not left < weights:
            raise ValueError(
                f'{left} of {weights} weights are left of {shown(name)}'
            )
        density[text(name)] = Density(weights, left)
    return density


def _to_runs(kept: np.ndarray) -> list[list[int]]:
    """Returns ascending positions as half-open runs [[first, end], ...]."""
    kept = np.asarray(kept)
    breaks = np.flatnonzero(np.diff(kept) != 1) + 1
    return [
        [int(run[0]), int(run[-1]) + 1]
        for run in np.split(kept, breaks)
        if run.size
    ]


def _read_axes(data: Mapping[str, Any]) -> dict[tuple[str, int], Axis]:
    entries = {
        (text(name), natural(int(text(axis)))): entry
        for name, by_axis in plain_dict(data['tensors']).items()
        for axis, entry in plain_dict(by_axis).items()
    }
    for name, entry in plain_dict(data.get('attributes', {})).items():
        entries[text(name), ATTRIBUTE] = entry
    axes, positions = {}, 0
    for key, entry in entries.items():
        size, runs = _read_runs(plain_dict(entry))
        positions += size
        if positions > MAX_POSITIONS:
            raise ValueError(f'the axes are longer than {MAX_POSITIONS}')
        kept = [np.arange(first, after) for first, after in runs]
        axes[key] = Axis(size, np.concatenate(kept))
    return axes


def _read_runs(entry: Mapping[str, Any]) -> tuple[int, list[list[int]]]:
    """Returns the size of an axis and its half-open runs, checked."""
    size, runs = natural(entry['size']), plain_list(entry['keep'])
    end = 0
    for run in runs:
        first, after = plain_list(run)
        if not end <= natural(first) < natural(after) <= size:
            raise ValueError(
                f'[{first}, {after}] does not continue an ascending list '
                f'of positions below {size}'
            )
        end = after
    if not end:
        raise ValueError('nothing is kept of an axis')
    return size, runs
