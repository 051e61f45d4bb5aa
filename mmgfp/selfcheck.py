"""Self-check: prove that removing channels equals masking them.

A part of every group is removed from a copy of the network; the copy's
outputs must equal those of another copy whose consumers' input slices are
zeroed instead. What differs or fails to run is located by bisection and
frozen with the reason. A group that passed may be pruned; nothing else may.

Each group loses another share, so that what only works as long as two groups
lose equally many channels does not pass; and all of it is done twice. The
first turn takes the first unit of every group and the second turn the last,
so that channels picked by a number in the code always move.

The copies get random parameters and statistics, so that zero-initialised
branches and untouched batch norms cannot hide a difference. Rounding errors
grow with depth, and must not be taken for differences: where single precision
does not agree, double precision decides, with weights that do not amplify
rounding errors themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import type_and_line
from .groups import ChannelGroup
from .precision import Run, in_double
from .removal import axis_sizes, consumed_positions, kept_positions
from .surgery import compute_again, named_tensors, slice_model
from .trees import tree_leaves

TOLERANCE = 1e-5

_NOT_RUNNING = 'the slim network does not run'

# relative change of weights that has to change next to nothing
_NUDGE = 1e-12


class UnsteadyError(RuntimeError):
    """Rounding errors decide what a network puts out on the demo input."""


def check_groups(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    run: Run,
    also: Run | None = None,
    seed: int = 0,
) -> list[ChannelGroup]:
    """Freeze the groups whose removal is not the same as masking.

    Args:
        model (nn.Module): The network; not changed.
        groups (Sequence[ChannelGroup]): As found; frozen ones pass through.
        run (Callable): ``run(model)`` runs a network on demo input and
            returns its outputs.
        also (Callable, optional): What a slim network has to run besides.
            Not compared: which boxes losses compare with which may hang on
            rounding errors.
        seed (int): For the random parameters and what is removed. Defaults
            to 0.

    Raises:
        UnsteadyError: If nothing can be told from this input, with any
            weights.
        ValueError: If the run does not repeat itself.

    Returns:
        list[ChannelGroup]: The same groups in the same order.
    """
    check = _Check(model, run, also, seed)
    candidates = {g.name: g for g in groups if not g.frozen and g.size > 1}
    failed: dict[str, str] = {}

    def difference(names: Sequence[str]) -> str:
        chosen = [candidates[name] for name in names]
        return check.difference(chosen, [removal[name] for name in names])

    def bisect(names: Sequence[str], trouble: str) -> None:
        if len(names) == 1:
            failed[names[0]] = trouble
            return
        half = len(names) // 2
        parts = [names[:half], names[half:]]
        found = [(p, d) for p in parts if (d := difference(p))]
        for part, why in found:
            bisect(part, why)
        if not found:  # only together do they fail: give up the later half
            bisect_together(parts, trouble)

    def bisect_together(parts: list[Sequence[str]], trouble: str) -> None:
        base = list(parts[0])
        for name in parts[1]:
            if difference([*base, name]):
                failed[name] = trouble
            else:
                base.append(name)

    for turn in range(2):
        removal = random_shares(list(candidates.values()), seed + turn)
        for name, units in removal.items():
            end = -turn  # they are in order: the first, then the last
            units[end] = range(candidates[name].size)[end]
        names = list(candidates)
        while (names := [n for n in names if n not in failed]) and (
            trouble := difference(names)
        ):
            bisect(names, trouble)
    return [
        g.freeze(f'fails the self-check: {failed[g.name]}')
        if g.name in failed
        else g
        for g in groups
    ]


class _Check:
    """Compares masked and slim copies, in double precision if need be.

    Some networks amplify rounding errors without bound with some weights:
    exponentials that overflow, equal scores that a maximum picks from. Where
    double precision finds a difference, the weights have to stand a test, or
    others are taken.

    Args:
        model (nn.Module): The network; not changed.
        run (Callable): Runs a network on demo input.
        also (Callable, optional): See :func:`check_groups`.
        seed (int): For the random parameters.
    """

    def __init__(
        self, model: nn.Module, run: Run, also: Run | None, seed: int
    ) -> None:
        self.run, self.also = run, also
        self._model, self._seed = model, seed
        self._draws = iter(_DRAWS)
        self._steady = False  # whether the weights stood the test
        self._single: nn.Module = model
        self._double: nn.Module | None = None
        if not self._draw():
            self._take(jitter_)

    def _draw(self) -> bool:
        """Take the next weights with which the network gives numbers."""
        for draw in self._draws:
            self._take(draw)
            if self._outputs(self._single, self.run, self.also) is not None:
                return True
        return False

    def _take(self, draw: Callable[[nn.Module, int], None]) -> None:
        copied = copy.deepcopy(self._model)
        copied.eval()  # a statement: some return nothing
        for parameter in copied.parameters():
            parameter.grad = None
        draw(copied, self._seed)
        self._single, self._double = copied, None

    def _outputs(
        self, model: nn.Module, run: Run, also: Run | None = None
    ) -> list[Tensor] | None:
        """What comes out; None for an error or numbers that are not finite."""
        try:
            with torch.no_grad():
                outputs = _tensors(run(model))
                if also is not None:
                    also(model)
        except Exception:  # boxes, for one, cannot be any numbers
            return None
        finite = all(bool(t.isfinite().all()) for t in outputs)
        return outputs if finite else None

    def difference(
        self, groups: Sequence[ChannelGroup], removal: Sequence[np.ndarray]
    ) -> str:
        """As :func:`removal_difference`."""
        found = removal_difference(
            self._single, groups, removal, self.run, self.also
        )
        if not found or _NOT_RUNNING in found:
            return found
        if self._double is None:
            self._double = copy.deepcopy(self._single).double()
        run = in_double(self.run)
        try:
            found = removal_difference(self._double, groups, removal, run)
        except Exception:  # something may insist on single precision
            return found
        if not found or self._steady:
            return found
        self._steady = self._is_steady(self._double, run)
        if self._steady:
            return found
        if not self._draw():
            raise self._unsteady()
        return self.difference(groups, removal)

    def _unsteady(self) -> Exception:
        name = type(self._model).__name__
        once, again = (
            self._outputs(self._single, self.run) or [] for _ in range(2)
        )
        if compare_outputs(once, again):
            return ValueError(
                f'{name} puts out something else each time that it is run on '
                'the demo input; expected a run(model) that repeats itself: '
                'make the input once, and draw nothing without a seed'
            )
        return UnsteadyError(
            f'rounding errors decide what {name} puts out on the demo input, '
            'so that no channel group can be proven; expected an input '
            'without ties: larger images, as a rule'
        )

    def _is_steady(self, double: nn.Module, run: Run) -> bool:
        """Whether hardly different weights give hardly different outputs."""
        near = shared_copy(double)
        for parameter in near.parameters():
            parameter.data = parameter.data * (1 + _NUDGE)
        before, after = self._outputs(double, run), self._outputs(near, run)
        if before is None or after is None:
            return False
        return not compare_outputs(before, after)


def random_removal(
    groups: Sequence[ChannelGroup], share: float, seed: int
) -> dict[str, np.ndarray]:
    """Random units to remove per group, at least one, never all."""
    rng = np.random.default_rng(seed)
    removal = {}
    for group in groups:
        count = min(max(1, round(group.size * share)), group.size - 1)
        units = rng.permutation(group.size)[:count]
        removal[group.name] = np.sort(units)
    return removal


def random_shares(
    groups: Sequence[ChannelGroup], seed: int
) -> dict[str, np.ndarray]:
    """As :func:`random_removal`, with another share for each group."""
    rng = np.random.default_rng(seed)
    return {
        group.name: random_removal([group], share, seed + i)[group.name]
        for i, (group, share) in enumerate(
            zip(groups, rng.uniform(0.2, 0.5, len(groups)))
        )
    }


def removal_difference(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
    run: Run,
    also: Run | None = None,
) -> str:
    """Compare masking and slicing; '' if they agree.

    Args:
        model (nn.Module): In eval mode; not changed.
        groups (Sequence[ChannelGroup]): Groups that lose units.
        removal (Sequence[np.ndarray]): Their units to remove.
        run (Callable): See :func:`check_groups`.
        also (Callable, optional): See :func:`check_groups`.
    """
    masked, slim = shared_copy(model), shared_copy(model)
    mask_consumers(masked, groups, removal)
    slice_model(
        slim, kept_positions(groups, removal, axis_sizes(slim, groups))
    )
    with torch.no_grad():
        expected = _tensors(run(masked))
        try:
            outputs = _tensors(run(slim))
            if also is not None:
                also(slim)
        except Exception as error:  # the user's forward may raise anything
            return f'{_NOT_RUNNING} ({type_and_line(error)})'
    return compare_outputs(expected, outputs)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules whose tensors share the memory of the model's.

    Tensors that are replaced in the copy, as slicing does, stay as they are
    in the model; nothing must be written into them.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(tensor.data, tensor.requires_grad)
        else:
            memo[id(tensor)] = tensor.detach()
    return copy.deepcopy(model, memo)


def compare_outputs(
    expected: Sequence[Tensor], outputs: Sequence[Tensor]
) -> str:
    """Describe the first difference beyond tolerance; '' if there is none."""
    if len(expected) != len(outputs):
        return f'{len(outputs)} outputs instead of {len(expected)}'
    for i, (a, b) in enumerate(zip(expected, outputs)):
        if a.shape != b.shape:
            return (
                f'output {i} has the shape {tuple(b.shape)} instead of '
                f'{tuple(a.shape)}'
            )
        error = relative_error(a, b)
        if not error < TOLERANCE:
            return f'output {i} differs by {error:.1e} from masking'
    return ''


def relative_error(expected: Tensor, output: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    if expected.numel() == 0:
        return 0.0
    expected, output = expected.double(), output.double()
    scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((expected - output).abs().max() / scale)


def mask_consumers(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
) -> None:
    """Zero the consumers' slices that belong to the removed units.

    The tensors get new memory, see :func:`shared_copy`.
    """
    tensors = named_tensors(model)
    for (name, axis), at in consumed_positions(groups, removal).items():
        tensor = tensors[name]
        index = torch.from_numpy(at).to(tensor.device)
        tensor.data = tensor.data.index_fill(axis, index, 0)


def randomize_(model: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Random parameters and statistics that keep signals at a useful scale.

    Matrices and kernels are scaled by their fan-in; vectors become scales
    around one or small offsets.

    Args:
        model (nn.Module): Changed in place.
        seed (int): For the random numbers.
        gain (float): Of matrices and kernels. Defaults to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in named_tensors(model).items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(
            tensor.shape, generator=generator, dtype=torch.float32
        )
        if tensor.dim() > 1:
            noise *= gain * (2 / max(1, tensor[0].numel())) ** 0.5
        elif name.rpartition('.')[2] in ('bias', 'running_mean'):
            noise *= 0.1
        else:  # norm weights, variances, learnable scales: positive
            noise = 0.75 + 0.5 * torch.rand(tensor.shape, generator=generator)
        with torch.no_grad():
            tensor.copy_(noise)
    if not model.training:
        compute_again(model)


def jitter_(model: nn.Module, seed: int) -> None:
    """Multiply the parameters and statistics there are by 0.75 to 1.25."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in named_tensors(model).values():
        if tensor.is_floating_point():
            factor = torch.rand(tensor.shape, generator=generator)
            with torch.no_grad():
                tensor.mul_(0.75 + 0.5 * factor.to(tensor.device))
    if not model.training:
        compute_again(model)


_DRAWS = (randomize_, partial(randomize_, gain=0.5), jitter_)


def _tensors(outputs: Any) -> list[Tensor]:
    return [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
