"""Self-check: prove that cutting channels equals masking them.

Some units of every group are cut out of a copy of the network. The copy's
outputs must equal those of another copy whose consumers' input slices are
zeroed instead. Groups that cause a difference or an error are found near its
place (see :mod:`mmgfp.tracing.suspects`) or by bisection, and are frozen with
the reason. Only groups that passed can be pruned. If the outputs hold no
numbers, no group passes.

The losses are compared, too, if they can be computed: they may read channels
that reach no output, and compare them with a tensor of a fixed width.

Each group is cut by another ratio, so that code that needs two groups of equal
width does not pass. The check runs twice. The first turn cuts the first unit
of every group, the second turn the last unit, so that channels picked by an
index in the code always move.

The copies have random parameters and statistics, so that zero-initialised
branches and untrained batch norms cannot hide a difference. Rounding errors
grow with depth and must not count as differences: if the outputs differ in
single precision, double precision decides, with weights that do not amplify
rounding errors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import ChannelGroup
from ..rows import ImageChange
from ..slimming.positions import axis_sizes, kept_positions, masked_positions
from ..slimming.surgery import compute_again, cut_model, named_tensors
from ..utils.copies import shared_copy, whole_copy
from ..utils.draws import draws_numbers, same_draws
from ..utils.errors import type_and_line
from ..utils.precision import Run, in_double
from ..utils.trees import values_in
from .suspects import suspects

TOLERANCE = 1e-5

_NOT_RUNNING = 'the slim network does not run'
_NOTHING = 'there are no numbers to compare'
_UNMOVED = 'masking it changes no output'
_LOSSES = 'where the losses are computed'

# Number of groups up to which bisection takes no longer than suspects().
_FEW = 3

# relative change of weights after which steady outputs stay within TOLERANCE
_NUDGE = 1e-12


class UnsteadyError(RuntimeError):
    """Raised if rounding errors decide the outputs on the demo input."""


class DifferenceError(RuntimeError):
    """Raised if cutting differs from masking and no group may fail."""


def check_groups(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    run: Run,
    train: Run | None = None,
    seed: int = 0,
    strict: bool = False,
) -> list[ChannelGroup]:
    """Freeze the groups for which cutting differs from masking.

    Args:
        model (nn.Module): The network; not changed.
        groups (Sequence[ChannelGroup]): All groups; frozen groups do not
            change.
        run (Callable): ``run(model)`` runs a network on the demo input and
            returns its outputs.
        train (Callable, optional): ``train(model)`` returns the losses. The
            function warns if they cannot be computed.
        seed (int): Seed of the random parameters and the cut units. Defaults
            to 0.
        strict (bool): Whether a difference is an error. Defaults to False.

    Raises:
        DifferenceError: If cutting differs from masking and ``strict``.
        UnsteadyError: If rounding errors decide the outputs with all tried
            weights.
        ValueError: If ``run`` is not deterministic.

    Returns:
        list[ChannelGroup]: The same groups in the same order.
    """
    candidates = {g.name: g for g in groups if not g.frozen and g.size > 1}
    failed: dict[str, str] = {}
    outputs = _Check(model, run, seed)
    losses = train and _LossCheck(model, train, outputs.weights(), seed)

    def difference(names: Sequence[str]) -> str:
        chosen = [candidates[name] for name in names]
        cut = [removal[name] for name in names]
        found = outputs.difference(chosen, cut)
        if not found and losses and turn == 0:
            found = losses.difference(chosen, cut)
        return found

    def near(names: Sequence[str], problem: str) -> list[str]:
        """Returns the groups near the place of the problem that cause it."""
        if len(names) <= _FEW:
            return []
        chosen = [candidates[name] for name in names]
        cut = [removal[name] for name in names]
        check = losses if losses and _LOSSES in problem else outputs
        for place in check.suspects(chosen, cut, problem):
            for name in place:
                if name not in alone:
                    alone[name] = difference([name])
                if alone[name]:
                    break
        return [name for name in names if alone.get(name)]

    def moves(names: Sequence[str]) -> bool:
        chosen = [candidates[name] for name in names]
        cut = [removal[name] for name in names]
        return outputs.moved or bool(losses and losses.moves(chosen, cut))

    def bisect(names: Sequence[str], problem: str) -> None:
        if len(names) == 1:
            failed[names[0]] = problem
            return
        half = len(names) // 2
        parts = [names[:half], names[half:]]
        found = [(p, d) for p in parts if (d := difference(p))]
        for part, why in found:
            bisect(part, why)
        if not found:  # only both halves together fail: freeze in the later
            bisect_together(parts, problem)

    def bisect_together(parts: list[Sequence[str]], problem: str) -> None:
        base = list(parts[0])
        for name in parts[1]:
            if difference([*base, name]):
                failed[name] = problem
            else:
                base.append(name)

    for turn in range(2):
        removal = random_ratios(list(candidates.values()), seed + turn)
        for name, units in removal.items():
            # units are sorted; several units replace both ends
            for end in {-turn, turn - 1} if len(units) > 1 else {-turn}:
                units[end] = range(candidates[name].size)[end]
        names = list(candidates)
        alone: dict[str, str] = {}  # difference when one group is cut
        while (names := [n for n in names if n not in failed]) and (
            problem := difference(names)
        ):
            if strict:
                raise DifferenceError(problem)
            found = near(names, problem)
            failed |= {name: alone[name] for name in found}
            if not found:
                bisect(names, problem)
        if names and not moves(names):
            if strict:
                raise DifferenceError(_UNMOVED)
            failed |= dict.fromkeys(names, _UNMOVED)
    return [
        g.freeze(f'fails the self-check: {failed[g.name]}')
        if g.name in failed
        else g
        for g in groups
    ]


class _Check:
    """Compares masked and slim copies, in double precision if necessary.

    With some weights, networks amplify rounding errors without bound:
    exponentials overflow, a maximum picks among equal scores. If double
    precision finds a difference, the weights are tested (see
    :func:`_is_steady`) and replaced if they fail.

    Args:
        model (nn.Module): The network; not changed.
        run (Callable): Runs a network on demo input.
        seed (int): Seed of the random parameters.
    """

    def __init__(self, model: nn.Module, run: Run, seed: int) -> None:
        self.run = run
        self.moved = False  # whether masking has changed an output
        self._model, self._seed = model, seed
        self._draws = iter(_DRAWS)
        self._steady = False  # whether the weights passed _is_steady
        self._single: nn.Module = model
        self._double: nn.Module | None = None
        self._whole: list[Tensor] = []  # outputs of the unmasked copy
        if not self._draw():
            self._take(_DRAWS[-1])

    def _draw(self) -> bool:
        """Take the next weights with finite outputs; return if there are."""
        for draw in self._draws:
            self._take(draw)
            outputs = _numbers(self._single, self.run)
            if outputs is not None:
                self._whole = outputs
                return True
        return False

    def _take(self, draw: Callable[[nn.Module, int], None]) -> None:
        copied = whole_copy(self._model)
        copied.eval()  # not chained: some classes return None
        for parameter in copied.parameters():
            parameter.grad = None
        draw(copied, self._seed)
        self._single, self._double = copied, None

    def weights(self) -> nn.Module:
        """Returns a copy of the network with the weights in use."""
        return self._single

    def difference(
        self, groups: Sequence[ChannelGroup], removal: Sequence[np.ndarray]
    ) -> str:
        """Returns the difference or error without some units; '' for none.

        Args:
            groups (Sequence[ChannelGroup]): Groups that lose units.
            removal (Sequence[np.ndarray]): Cut units of each group, (k,).
        """
        expected, found = _compare(
            self._single, groups, removal, self.run, optional=self.moved
        )
        self.moved |= not _identical(expected, self._whole)
        if not found or found == _NOTHING or _NOT_RUNNING in found:
            return found
        if self._double is None:
            self._double = whole_copy(self._single).double()
        run = in_double(self.run)
        try:
            _, found = _compare(self._double, groups, removal, run)
        except Exception:  # an operation may require single precision
            return found
        if not found or self._steady:
            return found
        self._steady = _is_steady(self._double, run)
        if self._steady:
            return found
        if not self._draw():
            raise self._unsteady()
        return self.difference(groups, removal)

    def suspects(
        self,
        groups: Sequence[ChannelGroup],
        removal: Sequence[np.ndarray],
        problem: str,
    ) -> list[list[str]]:
        """Returns names of groups near each place with a difference.

        Args:
            groups (Sequence[ChannelGroup]): Groups that lose units.
            removal (Sequence[np.ndarray]): Cut units of each group, (k,).
            problem (str): Result of :meth:`difference`.
        """
        if self._double is not None and _NOT_RUNNING not in problem:
            run = in_double(self.run)
            # an operation may require single precision
            with suppress(Exception):
                return _suspects(self._double, groups, removal, run, problem)
        return _suspects(self._single, groups, removal, self.run, problem)

    def _unsteady(self) -> Exception:
        name = type(self._model).__name__
        once, again = (_numbers(self._single, self.run) for _ in range(2))
        if once and again and compare_outputs(once, again):
            return ValueError(
                f'{name} gives different outputs for the same demo input; '
                '`run(model)` must be deterministic: make the input once, and '
                'seed all random numbers'
            )
        return UnsteadyError(
            f'rounding errors decide the outputs of {name} on the demo input, '
            'so no channel group can be proven; expected an input without '
            'ties, such as larger images'
        )


class _LossCheck:
    """Compares the losses of slim and masked copies, in training mode.

    The losses of the slim copy only have to be computable if they require
    single precision, draw random numbers, or depend on rounding errors (such
    as a choice between boxes). Losses that depend on no image, such as
    penalties of weights, are not compared.

    Args:
        model (nn.Module): The network; not changed.
        train (Callable): Returns its losses on the demo input.
        copied (nn.Module): A copy with the weights to try first.
        seed (int): Seed of further weights.
    """

    def __init__(
        self, model: nn.Module, train: Run, copied: nn.Module, seed: int
    ) -> None:
        self._model, self._train, self._seed = model, train, seed
        self._single = copied
        self._others = iter((jitter_, _as_it_is))
        self._with_grad = False  # only penalties of gradients need it
        self._works = True

    def _run(self, model: nn.Module) -> list[Tensor]:
        with torch.set_grad_enabled(self._with_grad), same_draws():
            return [t.detach() for t in values_in(self._train(model))]

    def moves(
        self, groups: Sequence[ChannelGroup], removal: Sequence[np.ndarray]
    ) -> bool:
        """Returns whether masking changes a loss."""
        if not self._works:
            return False
        whole, masked = (whole_copy(self._single) for _ in range(2))
        mask_consumers(masked, groups, removal)
        return not _identical(self._run(masked), self._run(whole))

    def difference(
        self, groups: Sequence[ChannelGroup], removal: Sequence[np.ndarray]
    ) -> str:
        """As :meth:`_Check.difference`."""
        while self._works:
            try:
                # training may write into parameters
                expected, found = _compare(
                    self._single, groups, removal, self._run, whole_copy
                )
                if not _all_finite(expected):
                    raise ArithmeticError('a loss is not finite')
            except Exception as error:  # the masked copy fails
                self._go_on(error)
                continue
            if not found or (
                _NOT_RUNNING not in found
                and not self._is_sure(groups, removal)
            ):
                return ''
            return f'{_LOSSES}, {found}'
        return ''

    def suspects(
        self,
        groups: Sequence[ChannelGroup],
        removal: Sequence[np.ndarray],
        problem: str,
    ) -> list[list[str]]:
        """As :meth:`_Check.suspects`."""
        return _suspects(
            *(self._single, groups, removal, self._run, problem),
            copied=whole_copy,
        )

    def _go_on(self, error: Exception) -> None:
        """Try with gradients, then with other weights, else give up."""
        draw = next(self._others, None) if self._with_grad else None
        if draw is not None:
            self._single = whole_copy(self._model).eval()
            draw(self._single, self._seed)
        elif self._with_grad:
            self._works = False
            warnings.warn(
                'the losses cannot be computed on made-up ground truth '
                f'({type_and_line(error)}). If they compare features with '
                'tensors of a fixed width, put the layers that make these '
                'features into `ignore`.',
                stacklevel=6,
            )
        self._with_grad = True

    def _is_sure(
        self, groups: Sequence[ChannelGroup], removal: Sequence[np.ndarray]
    ) -> bool:
        """Returns whether the effect of an image on the losses differs."""
        double = whole_copy(self._single).double()
        run = in_double(self._effect)
        try:
            _, found = _compare(double, groups, removal, run, whole_copy)
            return (
                found not in ('', _NOTHING)
                and _is_steady(double, run)
                and not draws_numbers(lambda: run(double))
            )
        except Exception:  # an operation may require single precision
            return False

    def _effect(self, model: nn.Module) -> list[Tensor]:
        """Returns the change of the losses when an image changes."""
        before = self._run(model)
        change = model.register_forward_pre_hook(
            ImageChange(0), with_kwargs=True
        )
        try:
            after = self._run(model)
        finally:
            change.remove()
        pairs = zip(before, after)
        return [b - a for a, b in pairs if a.is_floating_point()]


def _compare(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
    run: Run,
    copied: Callable[[nn.Module], nn.Module] | None = None,
    optional: bool = False,
) -> tuple[list[Tensor], str]:
    """Compare masking and cutting.

    Args:
        model (nn.Module): In eval mode; not changed.
        groups (Sequence[ChannelGroup]): Groups that lose units.
        removal (Sequence[np.ndarray]): Cut units of each group, (k,).
        run (Callable): See :func:`check_groups`.
        copied (Callable, optional): Copies the model. Defaults to
            :func:`shared_copy`, valid if nothing writes into parameters.
        optional (bool): Whether to skip the masked copy if the slim copy
            does not run. Defaults to False.

    Returns:
        tuple: The outputs of the masked copy, empty if it did not run; the
        difference, or ''.
    """
    copied = copied or shared_copy
    expected: list[Tensor] = []
    with torch.no_grad():
        if not optional:
            masked = _masked(model, groups, removal, copied)
            expected = values_in(run(masked))
        slim = _slim(model, groups, removal, copied)
        try:
            outputs = values_in(run(slim))
        except Exception as error:  # the user's forward may raise anything
            return expected, f'{_NOT_RUNNING} ({type_and_line(error)})'
        if optional:
            masked = _masked(model, groups, removal, copied)
            expected = values_in(run(masked))
    return expected, compare_outputs(expected, outputs)


def _masked(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
    copied: Callable[[nn.Module], nn.Module],
) -> nn.Module:
    masked = copied(model)
    mask_consumers(masked, groups, removal)
    return masked


def _slim(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
    copied: Callable[[nn.Module], nn.Module],
) -> nn.Module:
    slim = copied(model)
    keep = kept_positions(groups, removal, axis_sizes(slim, groups))
    cut_model(slim, keep)
    return slim


def _suspects(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
    run: Run,
    problem: str,
    copied: Callable[[nn.Module], nn.Module] | None = None,
) -> list[list[str]]:
    """See :meth:`_Check.suspects` and :func:`_compare`."""
    copied = copied or shared_copy
    return suspects(
        _slim(model, groups, removal, copied),
        None
        if _NOT_RUNNING in problem
        else _masked(model, groups, removal, copied),
        groups,
        removal,
        run,
        compare_outputs,
    )


def _is_steady(double: nn.Module, run: Run) -> bool:
    """Returns whether the outputs stay when weights change by 1e-12."""
    near = shared_copy(double)
    for parameter in near.parameters():
        parameter.data = parameter.data * (1 + _NUDGE)
    before, after = _numbers(double, run), _numbers(near, run)
    if before is None or after is None:
        return False
    return not compare_outputs(before, after)


def _numbers(model: nn.Module, run: Run) -> list[Tensor] | None:
    """Returns the outputs; None for an error or if one is not finite."""
    try:
        with torch.no_grad():
            outputs = values_in(run(model))
    except Exception:  # a forward may reject values, such as those of boxes
        return None
    usable = _any_numbers(outputs) and _all_finite(outputs)
    return outputs if usable else None


def random_removal(
    groups: Sequence[ChannelGroup], share: float, seed: int
) -> dict[str, np.ndarray]:
    """Returns random units to cut per group, at least one, never all.

    Args:
        groups (Sequence[ChannelGroup]): Groups of at least two units.
        share (float): Ratio of the units to cut.
        seed (int): Seed of the choice.

    Returns:
        dict[str, np.ndarray]: Sorted units of each group, (k,).
    """
    rng = np.random.default_rng(seed)
    removal = {}
    for group in groups:
        count = min(max(1, round(group.size * share)), group.size - 1)
        units = rng.permutation(group.size)[:count]
        removal[group.name] = np.sort(units)
    return removal


def random_ratios(
    groups: Sequence[ChannelGroup], seed: int
) -> dict[str, np.ndarray]:
    """As :func:`random_removal`, with another ratio for each group."""
    rng = np.random.default_rng(seed)
    return {
        group.name: random_removal([group], share, seed + i)[group.name]
        for i, (group, share) in enumerate(
            zip(groups, rng.uniform(0.2, 0.5, len(groups)))
        )
    }


def compare_outputs(
    expected: Sequence[Tensor], outputs: Sequence[Tensor]
) -> str:
    """Returns the first difference beyond tolerance; '' for none.

    Outputs without numbers count as a difference.
    """
    if not _any_numbers(expected):
        return _NOTHING
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
    """Returns the largest difference divided by the largest magnitude."""
    if expected.numel() == 0:
        return 0.0
    if expected.is_complex() or output.is_complex():
        expected, output = (
            torch.view_as_real(t.to(torch.complex128))
            for t in (expected, output)
        )
    expected, output = expected.double(), output.double()
    scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((expected - output).abs().max() / scale)


def mask_consumers(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    removal: Sequence[np.ndarray],
) -> None:
    """Zero the consumers' slices that belong to the cut units.

    The tensors get new memory, see :func:`shared_copy`.
    """
    tensors = named_tensors(model)
    for (name, axis), at in masked_positions(groups, removal).items():
        tensor = tensors[name]
        index = torch.from_numpy(at).to(tensor.device)
        tensor.data = tensor.data.index_fill(axis, index, 0)


def randomize_(model: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Draw random parameters and statistics at the scale of trained ones.

    Matrices and kernels are scaled by their fan-in; vectors become scales
    around one or small offsets.

    Args:
        model (nn.Module): Changed in place.
        seed (int): Seed of the random numbers.
        gain (float): Factor of matrices and kernels. Defaults to 1.
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
    """Multiply parameters and statistics by factors from 0.75 to 1.25."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in named_tensors(model).values():
        if tensor.is_floating_point():
            factor = torch.rand(tensor.shape, generator=generator)
            with torch.no_grad():
                tensor.mul_(0.75 + 0.5 * factor.to(tensor.device))
    if not model.training:
        compute_again(model)


_DRAWS = (randomize_, partial(randomize_, gain=0.5), jitter_)


def _as_it_is(model: nn.Module, seed: int) -> None:
    """Keep the given weights: the losses may need trained ones."""


def _any_numbers(outputs: Sequence[Tensor]) -> bool:
    return any(t.numel() for t in outputs)


def _all_finite(outputs: Sequence[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in outputs)


def _identical(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))
