"""Checks of arguments of the hooks and commands.

They are functions, not dataclasses with ``__post_init__``: the commands check
single arguments, and the hooks take different ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, cast

from mmengine.registry import Registry

from ..cost.latency import LatencyTable
from ..cost.model import METRICS, Metric
from ..criteria.base import Compensating, Criterion
from ..registry import CRITERIA, HOOKS, SEARCHES
from ..search.limits import Floor
from ..search.schedule import Schedule
from ..search.search import Search
from ..utils.errors import did_you_mean, in_one_line

SAVE_AT = (0.75, 0.5, 0.25)
PRUNE_SHARE = 0.6


def named_arguments(cls: type, last: type = object) -> list[str]:
    """Returns the names of a class's arguments, its own first.

    Args:
        cls (type): A class that passes ``**kwargs`` to its bases.
        last (type): The base that passes nothing on. Defaults to any.
    """
    names: dict[str, None] = {}
    for base in cls.__mro__[: cls.__mro__.index(last) + 1]:
        if '__init__' not in vars(base):
            continue
        _, *arguments = inspect.signature(
            vars(base)['__init__']
        ).parameters.values()
        names |= dict.fromkeys(
            argument.name
            for argument in arguments
            if argument.kind
            not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        )
    return list(names)


def refuse_unknown(
    owner: str,
    unknown: Mapping[str, Any],
    known: Collection[str],
    **parts: Any,
) -> None:
    """Raise if an argument is not one of the hook's, or criterion's.

    Args:
        owner (str): Name of the hook or criterion.
        unknown (Mapping): Other arguments, with their values.
        known (Collection[str]): Names of its arguments.
        **parts: The hook's settings that are dicts with 'type': its criterion
            or search.

    Raises:
        ValueError: With the first such argument, and where it belongs or its
            nearest match.
    """
    for name, value in unknown.items():
        place = _place(name, owner, parts)
        raise ValueError(
            f'{owner} has no argument {name}={value!r}'
            f'{place or did_you_mean(name, known)} '
            + (
                f'Expected some of {", ".join(known)}.'
                if known
                else 'It takes none.'
            )
        )


def _place(name: str, owner: str, parts: Mapping[str, Any]) -> str:
    """Returns where an argument belongs that was given elsewhere, or ''."""
    for part, setting in parts.items():
        kind = setting.get('type') if isinstance(setting, Mapping) else None
        registry = CRITERIA if part == 'criterion' else SEARCHES
        found = registry.get(kind) if isinstance(kind, str) else kind
        if isinstance(found, type) and name in named_arguments(found):
            return (
                f'; it is an argument of {found.__name__}: move it into '
                f'{part}=dict(...), or use ...{part}.{name} on a command line.'
            )
    hooks = [
        hook.__name__
        for alias, hook in HOOKS.module_dict.items()
        if alias == hook.__name__ != owner and name in named_arguments(hook)
    ]
    return f'; it is an argument of {" and ".join(hooks)}.' if hooks else ''


def read_schedule(
    target: Any,
    interval: Any,
    channels_per_step: Any,
    prune_share: Any,
) -> Schedule:
    """Check the arguments that set the pace of pruning.

    Raises:
        ValueError: Naming the argument, its value and what was expected.
    """
    metric, share = read_target(target)
    whole('interval', interval)
    auto = channels_per_step == 'auto'
    if not auto:
        whole('channels_per_step', channels_per_step, " or 'auto'")
    if prune_share is None:
        prune_share = PRUNE_SHARE
    elif auto:
        check_ratio('prune_share', prune_share, top=1.0)
    else:
        raise ValueError(
            f'prune_share={prune_share!r} contradicts channels_per_step='
            f'{channels_per_step!r}: the ratio of training that pruning takes '
            "can only be chosen with channels_per_step='auto'. Remove one."
        )
    return Schedule(metric, share, interval, channels_per_step, prune_share)


def read_target(target: Any) -> tuple[Metric, float]:
    """Check a metric and its remaining ratio.

    Raises:
        ValueError: Naming what was expected.
    """
    if not isinstance(target, Mapping) or len(target) != 1:
        raise ValueError(
            f'target={target!r}: expected one metric and its '
            'remaining ratio, such as dict(flops=0.5)'
        )
    ((metric, share),) = target.items()
    one_of('the metric of target', metric, (*METRICS, 'latency'))
    check_ratio(f'target[{metric!r}]', share)
    return metric, float(share)


def read_floor(min_channels: Any, min_ratio: Any, round_to: Any) -> Floor:
    """Check the floors of every group.

    Raises:
        ValueError: Naming the argument, its value and what was expected.
    """
    whole('min_channels', min_channels)
    if round_to != 'auto':
        whole('round_to', round_to, " or 'auto'")
    if min_ratio != 0:
        check_ratio('min_ratio', min_ratio)
    return Floor(min_channels, float(min_ratio), round_to)


def read_save_at(save_at: Any, target: float) -> list[float]:
    """Returns the ratios to save at, descending; the target is the last.

    Args:
        save_at (Any): Value of the config; None for :data:`SAVE_AT`, as far as
            it is above the target.
        target (float): Remaining ratio that pruning stops at.

    Raises:
        ValueError: If a ratio is impossible or below the target.
    """
    if save_at is None:
        save_at = [share for share in SAVE_AT if share > target]
    if not isinstance(save_at, Collection) or isinstance(save_at, str):
        raise ValueError(
            f'save_at={save_at!r}: expected a list of remaining '
            'ratios, such as (0.75, 0.5)'
        )
    for share in save_at:
        check_ratio('save_at', share)
        if share < target:
            raise ValueError(
                f'save_at={save_at!r} contradicts the target of {target}: '
                f'pruning stops before {share} is left. Remove it, or lower '
                'the target.'
            )
    return sorted({float(share) for share in save_at} | {target})[::-1]


def read_criterion(
    criterion: Any, default: str = 'Fisher', compensate: bool = False
) -> Criterion:
    """Build the criterion that a config names.

    Args:
        criterion (Any): Value of the config; None for the default.
        default (str): Its name. Defaults to 'Fisher'.
        compensate (bool): Whether kept weights compensate for pruned ones.
            Defaults to False.

    Raises:
        ValueError: If there is no such criterion, it does not take these
            arguments, or it cannot compensate.
    """
    settings = dict(type=default) if criterion is None else criterion
    found = _build('criterion', settings, CRITERIA, default)
    if compensate and not hasattr(found, 'compensated'):
        raise ValueError(
            f'criterion={settings!r} has no curvature, which compensate=True '
            "needs; expected dict(type='KFAC'), or compensate=False"
        )
    if compensate:
        cast(Compensating, found).compensates = True
    return found


def read_search(search: Any) -> Search:
    """Build the search that a config names, with its criterion.

    Args:
        search (Any): Value of the config.

    Raises:
        ValueError: If there is no such search, or it does not take these
            arguments.
    """
    if not isinstance(search, Mapping):
        return _build('search', search, SEARCHES, 'DCSS')
    settings = dict(search)
    for name in ('criterion', 'order'):
        if settings.get(name) is not None:
            settings[name] = read_criterion(settings[name])
    return _build('search', settings, SEARCHES, 'DCSS')


def _build(what: str, settings: Any, registry: Registry, example: str) -> Any:
    """Build what a dict with 'type' names."""
    found = named_class(what, settings, registry, example)
    arguments = {k: v for k, v in settings.items() if k != 'type'}
    try:
        return found(**arguments)
    except TypeError as error:
        if isinstance(found, type):
            known = named_arguments(found)
            _explain(str(settings['type']), arguments, known)
        raise ValueError(
            f'{what}={settings!r}: {in_one_line(error)}'
        ) from error


def named_class(
    what: str, settings: Any, registry: Registry, example: str
) -> Callable[..., Any]:
    """Returns what a dict with 'type' names.

    Args:
        what (str): Name of the setting.
        settings (Any): Its value.
        registry (Registry): Has the possible values of 'type'.
        example (str): One of them.

    Raises:
        ValueError: If it is no such dict, or there is no such name.
    """
    if not isinstance(settings, Mapping) or 'type' not in settings:
        known = registry.module_dict
        name = settings if str(settings) in known else example
        raise ValueError(
            f'{what}={settings!r}: expected a dict such as '
            f'dict(type={name!r}), or ...{what}.type={name} on a command line'
        )
    kind = settings['type']
    found = registry.get(kind) if isinstance(kind, str) else kind
    if not callable(found):
        known = sorted(registry.module_dict)
        raise ValueError(
            f'there is no {what} {kind!r}{did_you_mean(str(kind), known)} '
            f'Expected one of '
            f'{", ".join(known)}, or one that a module in custom_imports '
            f'registers in mmgfp.registry.'
            f'{"CRITERIA" if registry is CRITERIA else "SEARCHES"}'
        )
    return found


def _explain(
    kind: str, arguments: Mapping[str, Any], known: list[str]
) -> None:
    """Raise if an argument is not known, with the name that it may have."""
    # searches differ in the name of their criterion
    pair = {'order': 'criterion', 'criterion': 'order'}
    for name in arguments:
        if name not in known and pair.get(name) in known:
            raise ValueError(
                f'{kind} has no argument {name!r}; its criterion is named '
                f'{pair[name]!r}'
            )
    unknown = {k: v for k, v in arguments.items() if k not in known}
    refuse_unknown(kind, unknown, known)


def read_split(split: Any) -> float | Literal['val']:
    """Check which data a search learns from.

    Raises:
        ValueError: If it is neither a ratio below 1 nor 'val'.
    """
    if split == 'val' or (
        isinstance(split, (int, float))
        and not isinstance(split, bool)
        and 0 <= split < 1
    ):
        return split
    raise ValueError(
        f'split={split!r}: expected the ratio of the training images that the '
        'search learns from, at least 0 (all images, like the weights) and '
        "less than 1, or 'val' for the validation set"
    )


def read_cut_to(cut_to: Any) -> int | None:
    """Check the multiple of channels that the network is cut to.

    Raises:
        ValueError: If it is neither None nor a whole number, at least 0.
    """
    if cut_to is None or (type(cut_to) is int and cut_to >= 0):
        return cut_to
    raise ValueError(
        f'cut_to={cut_to!r}: expected a whole number of channels, 0 to cut as '
        'late as possible, or None'
    )


def check_unchanged(now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raise if a resumed run has other arguments than the interrupted one.

    Args:
        now (Mapping[str, Any]): Arguments by name.
        before (Mapping[str, Any]): Those of the checkpoint; absent ones are
            not compared.
    """
    for name, value in now.items():
        if name in before and before[name] != value:
            raise ValueError(
                f'{name}={value!r}, but the interrupted run had '
                f'{name}={before[name]!r}: resume with the same config, or '
                'continue with load_from and without resuming'
            )


def read_latency(
    latency_table: Any, normalize_by: str, metric: Metric
) -> LatencyTable | None:
    """Load the latency table, if pruning needs one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is missing, not used or damaged.
    """
    needed = 'latency' in (normalize_by, metric)
    if latency_table is None and needed:
        user = f'a target of {metric!r} needs'
        if normalize_by == 'latency':
            user = f'normalize_by={normalize_by!r} needs'
        raise ValueError(
            f'{user} latency_table: expected a file of `mmgfp '
            'latency-table CONFIG --out FILE`, written on the target '
            'device'
        )
    if latency_table is not None and not needed:
        raise ValueError(
            f'latency_table={latency_table!r} is not used: expected '
            "normalize_by='latency' or target=dict(latency=...) with it"
        )
    return None if latency_table is None else LatencyTable.load(latency_table)


def read_ignore(ignore: Any) -> tuple[str, ...]:
    """Check the patterns of layers whose outputs are not pruned.

    Raises:
        ValueError: If it is not a list of strings.
    """
    if (
        not isinstance(ignore, Collection)
        or isinstance(ignore, str)
        or not all(isinstance(pattern, str) for pattern in ignore)
    ):
        raise ValueError(
            f'ignore={ignore!r}: expected a list of layer name '
            "patterns, such as ['backbone.layer1.*']"
        )
    return tuple(ignore)


def read_ratios(ratios: Any) -> dict[str, float]:
    """Check the ratios that layers keep, by pattern.

    Raises:
        ValueError: If it is not a mapping of strings to ratios.
    """
    if ratios is None:
        return {}
    if not isinstance(ratios, Mapping) or not all(
        isinstance(pattern, str) for pattern in ratios
    ):
        raise ValueError(
            f'ratios={ratios!r}: expected ratios to keep by pattern of layer '
            "names, such as {'backbone.layer4.*': 0.7}"
        )
    for pattern, share in ratios.items():
        check_ratio(f'ratios[{pattern!r}]', share)
    return {pattern: float(share) for pattern, share in ratios.items()}


def read_shape(shape: Any) -> tuple[int, int] | None:
    """Check the (H, W) for counting cost.

    Raises:
        ValueError: If it is not a pair of positive whole numbers.
    """
    if shape is None:
        return None
    if not is_pair(shape):
        raise ValueError(
            f'input_shape={shape!r}: expected (height, width) '
            'in pixels, such as (800, 1280)'
        )
    return shape[0], shape[1]


def read_overrides(overrides: Any) -> dict[str, Any]:
    """Check the overrides for the fine-tuning config.

    Raises:
        ValueError: If it is not a mapping.
    """
    if overrides is None:
        return {}
    if not isinstance(overrides, Mapping):
        raise ValueError(
            f'finetune={overrides!r}: expected settings of the fine-tuning '
            'config, such as dict(train_cfg=dict(max_epochs=12))'
        )
    return dict(overrides)


def flag(name: str, value: Any) -> None:
    """Raise ValueError if a value is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(
            f'{name}={value!r} ({type(value).__name__}): '
            'expected True or False'
        )


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError if a value is not among the choices."""
    if value not in choices:
        raise ValueError(
            f'{name}={value!r}: expected one of '
            f'{", ".join(map(repr, choices))}'
        )


def whole(name: str, value: Any, otherwise: str = '') -> None:
    """Raise ValueError if a value is not a positive whole number."""
    if not _is_whole(value):
        raise ValueError(
            f'{name}={value!r} ({type(value).__name__}): '
            f'expected a whole number from 1{otherwise}'
        )


def is_pair(value: Any) -> bool:
    """Returns whether a value is a pair of positive whole numbers."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and all(_is_whole(n) for n in value)
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_ratio(name: str, value: Any, top: float = 0.0) -> None:
    """Raise ValueError if a value is no number between 0 and 1.

    Args:
        name (str): Of the argument, for the error.
        value (Any): As in the config.
        top (float): Is allowed, too, if it is above 0. Defaults to 0.
    """
    good = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (0 < value < 1 or value == top > 0)
    )
    if not good:
        also = f', or {top:g}' if top else ''
        raise ValueError(
            f'{name}={value!r} ({type(value).__name__}): '
            f'expected a ratio strictly between 0 and 1{also}, such as 0.5'
        )
