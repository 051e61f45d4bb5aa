"""Label rules of compiled operations, most of them from mmcv.

They are autograd functions around compiled code, whose inner operations do
not reach the dispatcher. :func:`watch_compiled` applies the rules around
their forward. It finds the rule by class name, so no library is imported.
A function without a rule that returns a new tensor freezes its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..utils.extension_ops import around_compiled, by_name
from ..utils.trees import tree_leaves
from .label_layers import along, spread
from .labels import LabelTracer
from .rules_common import rows_of, without
from .rules_mixing import convolve
from .rules_structure import in_step

CompiledRule = Callable[[LabelTracer, dict[str, Any], Any], None]


@contextmanager
def watch_compiled(tracer: LabelTracer) -> Iterator[None]:
    """Apply rules to autograd functions that torch does not define.

    Args:
        tracer (LabelTracer): Receives the labels of the results.
    """

    def around(cls: type, call: Callable, args: Sequence[Any]) -> Any:
        if tracer.suspended:
            return call(*args)
        rule = COMPILED.get(cls.__name__)
        if rule is None:
            out = call(*args)
            given = [a for a in args if isinstance(a, Tensor)]
            with tracer.aside():
                if any(_is_new(tracer, t, given) for t in _tensors(out)):
                    _freeze_all(tracer, cls, given, out)
            return out
        with tracer.aside():
            out = call(*args)
            rule(tracer, by_name(call, args), out)
        return out

    with around_compiled(around):
        yield


def _tensors(out: Any) -> list[Tensor]:
    return [t for t in tree_leaves(out) if isinstance(t, Tensor)]


def _is_new(
    tracer: LabelTracer, result: Tensor, given: Sequence[Tensor]
) -> bool:
    """Returns whether compiled code made or filled a result.

    Such a result has no labels of the operands.
    """
    if not result.is_floating_point() or any(t is result for t in given):
        return False
    labels = _opaque_labels(tracer, result)
    known = [_opaque_labels(tracer, t) or set() for t in given]
    return labels is not None and labels.isdisjoint(set().union(*known))


def _opaque_labels(tracer: LabelTracer, tensor: Tensor) -> set[int] | None:
    """Returns the labels of unknown origin; None if others exist, too."""
    layers = tracer.layers(tensor)
    if not all(tracer.is_opaque(layer) for layer in layers):
        return None
    return {int(layer.flatten()[0]) for layer in layers}


def _freeze_all(
    tracer: LabelTracer, cls: type, given: list[Tensor], out: Any
) -> None:
    what = f'the compiled operation {cls.__name__} in {tracer.where()}'
    touched = False
    for operand in given:
        for layer in tracer.layers(operand):
            tracer.freeze(layer, f'goes through {what}, which has no rule')
            touched = True
    for result in _tensors(out):
        fresh = [tracer.opaque(result, f'comes out of {what}')]
        tracer.set(result, fresh if touched and result.dim() else [])


def _channels_pass(
    source: str, positions: str, parts: str = ''
) -> CompiledRule:
    """Returns a rule whose result has the channels of one argument.

    Args:
        source (str): Name of that argument, of shape (N, C, *).
        positions (str): Name of the argument with positions or masks.
        parts (str): Name of the argument with the number of equal parts of
            the channels, of which each has its own masks. Defaults to ''.
    """

    def rule(tr: LabelTracer, given: dict[str, Any], out: Any) -> None:
        _keep(tr, given.get(positions))
        _parts_in_step(tr, given[source], given.get(parts, 1))
        for result in _tensors(out):
            _pass_channels(tr, given[source], result)

    return rule


def _keep(tr: LabelTracer, positions: Any) -> None:
    """Freeze the channels of positions and masks: their meaning is fixed."""
    for layer in tr.layers(positions) if isinstance(positions, Tensor) else ():
        tr.freeze(
            layer, f'offsets, positions or masks that {tr.where()} reads'
        )


def _parts_in_step(tr: LabelTracer, source: Tensor, parts: int) -> None:
    """Couple the channels (N, C, *) at the same place of equal parts."""
    for layer in tr.layers(source) if parts > 1 else ():
        if not tr.is_opaque(layer) and 1 in tr.varying(layer):
            in_step(tr, rows_of(tr, layer, 1), parts)


def _pass_channels(tr: LabelTracer, source: Tensor, out: Tensor) -> None:
    spatial = [0, *range(2, source.dim())]
    layers = []
    for layer in without(tr, source, spatial, 'read at computed positions'):
        if tr.is_opaque(layer):
            layers.append(layer.reshape(-1)[:1].expand(out.shape))
        elif 1 in tr.varying(layer):
            layers.append(spread(along(layer, 1), 1, out.shape))
    tr.set(out, layers)


def roi_pool(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """RoI operations of torchvision: (N, C, H, W), boxes to (R, C, h, w)."""
    _keep(tr, args[1])
    _pass_channels(tr, args[0], out)


def sample(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``grid_sample``: reads channels at computed positions."""
    _keep(tr, args[1])
    _pass_channels(tr, args[0], out)


def deformable(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Deformable convolution of torchvision."""
    names = [a.name for a in func._schema.arguments]
    given = dict(zip(names, args))
    _deformable(
        tr,
        {
            'input': given['input'],
            'weight': given['weight'],
            'bias': given['bias'],
            'offset': given['offset'],
            'mask': given['mask'],
            'groups': given['groups'],
            'deform_groups': given['offset_groups'],
        },
        out,
    )


def _deformable(tr: LabelTracer, given: dict[str, Any], out: Any) -> None:
    """A convolution at sampling positions computed by another layer.

    Offset groups divide the input channels into equal parts.
    """
    source = given['input']
    _keep(tr, given['offset'])
    _keep(tr, given.get('mask'))
    _parts_in_step(tr, source, given['deform_groups'])
    bias = given.get('bias')
    convolve(
        tr,
        source,
        given['weight'],
        bias if isinstance(bias, Tensor) else None,
        given['groups'],
        out,
    )


def _masked(tr: LabelTracer, given: dict[str, Any], out: Any) -> None:
    """A convolution evaluated at some positions only."""
    convolve(tr, given['features'], given['weight'], given['bias'], 1, out)


def _attention(tr: LabelTracer, given: dict[str, Any], out: Tensor) -> None:
    """Multi-scale deformable attention: (N, L, heads, C) to (N, Q, heads C).

    Positions and weights are computed per head.
    """
    for name in ('sampling_locations', 'attention_weights'):
        for layer in tr.layers(given[name]):
            tr.freeze(layer, f'positions or weights of {tr.where()}')
    value = given['value']
    layers = []
    for layer in without(tr, value, [0, 1], 'read at computed positions'):
        if tr.is_opaque(layer):
            layers.append(layer.reshape(-1)[:1].expand(out.shape))
        else:
            heads = layer[:1, :1].flatten(2)
            layers.append(heads.expand(out.shape))
    tr.set(out, layers)


COMPILED: dict[str, CompiledRule] = {
    'RoIAlignFunction': _channels_pass('input', 'rois'),
    'RoIAlignRotatedFunction': _channels_pass('input', 'rois'),
    'RoIPoolFunction': _channels_pass('input', 'rois'),
    'PrRoIPoolFunction': _channels_pass('features', 'rois'),
    'DeformRoIPoolFunction': _channels_pass('input', 'offset'),
    'CARAFEFunction': _channels_pass('features', 'masks', 'group_size'),
    'CARAFENaiveFunction': _channels_pass('features', 'masks', 'group_size'),
    'DeformConv2dFunction': _deformable,
    'ModulatedDeformConv2dFunction': _deformable,
    'MaskedConv2dFunction': _masked,
    'MultiScaleDeformableAttnFunction': _attention,
}
