"""A convolution, an operation of PyTorch, a convolution: pruned or refused.

What is pruned is compared with masking; what is refused tells what the
operation does. No ordinary operation is without a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from nets import Net
from oracles import masked_is_slim
from torch import Tensor, nn

from mmgfp.slimming.surgery import cut_model
from mmgfp.tracing.finder import find_groups

CHANNELS, SIDE = 8, 6
Operation = Callable[[Tensor], Tensor]


class _Between(Net):
    """``dims`` spatial axes; the operation may be a module."""

    def __init__(self, operation: Operation, dims: int) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.first = kind(3, CHANNELS, 3, padding=1)
        self.operation = operation
        with torch.no_grad():
            sides = [SIDE] * dims
            out = operation(self.first(torch.randn(2, 3, *sides)))
        self.dims, self.last = dims, kind(out.shape[1], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x)).contiguous())


def run(model: _Between) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sides = [SIDE] * model.dims
    return model(torch.randn(2, 3, *sides, generator=generator))


class _Across(nn.Module):
    """As in ECA-Net: a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3))[:, None]).sigmoid()
        return x * gate[:, 0, :, None, None]


def _unpooled(x: Tensor) -> Tensor:
    dims = x.dim() - 2
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
    unpool = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[dims - 1]
    return unpool(*pool(x, 2, return_indices=True), 2)


def _fractional(x: Tensor) -> Tensor:
    dims = x.dim() - 2
    pool = {2: F.fractional_max_pool2d, 3: F.fractional_max_pool3d}[dims]
    samples = torch.full((len(x), x.shape[1], dims), 0.3)
    samples = samples.to(x)
    return pool(x, 2, output_size=3, _random_samples=samples)


def _sampled(x: Tensor, **how) -> Tensor:
    dims = x.dim() - 2
    steps = [torch.linspace(-0.8, 0.9, 5)] * dims
    grid = torch.stack(torch.meshgrid(*steps, indexing='ij'), -1)
    grid = grid.expand(len(x), *grid.shape).to(x)
    return F.grid_sample(x, grid, align_corners=False, **how)


def _earlier(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Of each position those that it attends to."""
    places = torch.arange(x.shape[2:].numel())
    return (places[:, None] >= places).to(dtype)


def _attended(x: Tensor, **how) -> Tensor:
    tokens = x.flatten(2).mT
    places = torch.linspace(-1, 1, 4 * tokens.shape[1]).to(x)
    places = places.view(1, -1, 4).expand(len(x), -1, -1).contiguous()
    tokens = F.scaled_dot_product_attention(
        places, places.flip(1).contiguous(), tokens.contiguous(), **how
    )
    return tokens.mT.unflatten(2, x.shape[2:])


def _embedded(x: Tensor, **how) -> Tensor:
    table = torch.linspace(0, 1, 12).view(4, 3)
    rows = torch.arange(x.shape[2]).remainder(4)
    row = F.embedding(rows, table.to(x)).sum(1)
    return x * row.view(1, 1, -1, *[1] * (x.dim() - 3))


def _bagged(x: Tensor) -> Tensor:
    table = torch.linspace(0, 1, 12).view(4, 3).to(x)
    bags = torch.arange(12).remainder(4).view(x.shape[2], 2)
    row = F.embedding_bag(bags, table, mode='sum').sum(1)
    return x * row.view(1, 1, -1, *[1] * (x.dim() - 3))


def _every_dimension(dims: int) -> dict[str, Operation]:
    d = f'{dims}d'
    of = lambda name: getattr(F, name + d)  # noqa: E731
    smooth = {1: 'linear', 2: 'bilinear', 3: 'trilinear'}[dims]
    shape = [SIDE] * dims
    found: dict[str, Operation] = {
        'max_pool': lambda x: of('max_pool')(x, 2),
        'max_pool_ceil': lambda x: of('max_pool')(x, 4, ceil_mode=True),
        'avg_pool': lambda x: of('avg_pool')(x, 2),
        'lp_pool': lambda x: of('lp_pool')(x.abs() + 0.1, 2, 2),
        'adaptive_avg_pool': lambda x: of('adaptive_avg_pool')(x, 4),
        'adaptive_avg_pool_one': lambda x: of('adaptive_avg_pool')(x, 1),
        'adaptive_max_pool': lambda x: of('adaptive_max_pool')(x, 4),
        'max_unpool': _unpooled,
        'nearest': lambda x: F.interpolate(x, scale_factor=2),
        'nearest_exact': lambda x: F.interpolate(
            x, scale_factor=2, mode='nearest-exact'
        ),
        smooth: lambda x: F.interpolate(x, scale_factor=2, mode=smooth),
        f'{smooth}_aligned': lambda x: F.interpolate(
            x, size=9, mode=smooth, align_corners=True
        ),
        'area': lambda x: F.interpolate(x, size=3, mode='area'),
        'pad': lambda x: F.pad(x, [1, 2] * dims),
        'pad_value': lambda x: F.pad(x, [1, 0] * dims, value=0.5),
        'pad_cut': lambda x: F.pad(x, [-1, 1] * dims),
        'reflect': lambda x: F.pad(x, [1, 2] * dims, 'reflect'),
        'replicate': lambda x: F.pad(x, [1, 2] * dims, 'replicate'),
        'circular': lambda x: F.pad(x, [1, 2] * dims, 'circular'),
        'batch_norm': getattr(nn, f'BatchNorm{d}')(CHANNELS),
        'batch_norm_plain': getattr(nn, f'BatchNorm{d}')(
            CHANNELS, affine=False
        ),
        'instance_norm': getattr(nn, f'InstanceNorm{d}')(CHANNELS),
        'instance_norm_affine': getattr(nn, f'InstanceNorm{d}')(
            CHANNELS, affine=True
        ),
        'instance_norm_tracking': getattr(nn, f'InstanceNorm{d}')(
            CHANNELS, affine=True, track_running_stats=True
        ),
        'functional_instance_norm': F.instance_norm,
        'group_norm': nn.GroupNorm(4, CHANNELS),
        'group_norm_plain': nn.GroupNorm(4, CHANNELS, affine=False),
        'layer_norm_of_positions': lambda x: F.layer_norm(x, shape),
        'dropout': getattr(nn, f'Dropout{d}')(),
    }
    return found


def _planes() -> dict[str, Operation]:
    return {
        'prelu': nn.PReLU(CHANNELS),
        'prelu_one': nn.PReLU(),
        'softmax_of_positions': lambda x: F.softmax(x, -1),
        'log_softmax_of_positions': lambda x: F.log_softmax(x, -1),
        'softmin_of_positions': lambda x: F.softmin(x, -1),
        'glu_of_positions': lambda x: F.glu(x, -1),
        'cumsum_of_positions': lambda x: x.cumsum(-1),
        'cumprod_of_positions': lambda x: x.cumprod(-1),
        'logcumsumexp_of_positions': lambda x: x.logcumsumexp(-1),
        'cummax_of_positions': lambda x: x.cummax(-1)[0],
        'sort_of_positions': lambda x: x.sort(-1)[0],
        'topk_of_positions': lambda x: x.topk(3, -1)[0],
        'diff_of_positions': lambda x: x.diff(dim=-1),
        'roll': lambda x: x.roll(2, -1),
        'flip': lambda x: x.flip(-1),
        'repeat_interleave': lambda x: x.repeat_interleave(2, -1),
        'repeat': lambda x: x.repeat(1, 1, *[2, 2]),
        'tile': lambda x: x.tile([2, 2]),
        'unfold_of_tensor': lambda x: x.unfold(-1, 3, 3).amax(-1),
        'masked_fill': lambda x: x.masked_fill(x > 1, 0.25),
        'where': lambda x: torch.where(x > 0, x, 0.1 * x),
        'clamp': lambda x: x.clamp(-0.5, 1),
        'normalize_of_positions': lambda x: F.normalize(x, dim=-1),
        'attention_of_tokens': _attended,
        'attention_causal': partial(_attended, is_causal=True),
        'attention_masked': lambda x: _attended(
            x, attn_mask=_earlier(x, torch.bool)
        ),
        'attention_biased': lambda x: _attended(
            x, attn_mask=_earlier(x, x.dtype)
        ),
        'rms_norm_by_hand_of_positions': lambda x: (
            x * (x.square().mean((2, 3), True) + 0.1).rsqrt()
        ),
        'embedding': _embedded,
        'embedding_bag': _bagged,
        'sum_of_others': lambda x: x * x.mean(2, True),
        'std_of_positions': lambda x: x / (x.std(-1, keepdim=True) + 1),
        'glu': lambda x: F.glu(x, 1),
        'pad_channels': lambda x: F.pad(x, [0] * 4 + [1, 1]),
        'median_of_positions': lambda x: x - x.median(-1, True)[0],
        'quantile_of_positions': lambda x: x - x.quantile(0.5, -1, True),
        'cat_of_itself': lambda x: torch.cat([x, x.relu()], 1),
        'einsum_gate': lambda x: torch.einsum(
            'bc,bc...->bc...', x.flatten(2).mean(2).sigmoid(), x
        ),
    }


_ONLY: dict[int, dict[str, Operation]] = {
    1: {},
    2: {
        **_planes(),
        'fractional_max_pool': _fractional,
        'bicubic': lambda x: F.interpolate(x, size=9, mode='bicubic'),
        'bilinear_antialias': lambda x: F.interpolate(
            x, size=4, mode='bilinear', antialias=True
        ),
        'bicubic_antialias': lambda x: F.interpolate(
            x, size=4, mode='bicubic', antialias=True
        ),
        'rot90': lambda x: x.rot90(1, (2, 3)),
        'pixel_shuffle': nn.PixelShuffle(2),
        'pixel_unshuffle': nn.PixelUnshuffle(2),
        'channel_shuffle': nn.ChannelShuffle(2),
        'unfold': lambda x: F.unfold(x, 3, padding=1).unflatten(
            2, (SIDE, SIDE)
        ),
        'fold': lambda x: F.fold(
            F.unfold(x, 2, stride=2), (SIDE, SIDE), 2, stride=2
        ),
        'grid_sample': _sampled,
        'grid_sample_nearest': partial(_sampled, mode='nearest'),
        'grid_sample_bicubic': partial(_sampled, mode='bicubic'),
        'grid_sample_border': partial(_sampled, padding_mode='border'),
    },
    3: {
        'fractional_max_pool': _fractional,
        'grid_sample': _sampled,
        'grid_sample_nearest': partial(_sampled, mode='nearest'),
    },
}

_ACTIVATIONS = """
    relu relu6 elu selu celu gelu silu mish leaky_relu hardtanh hardswish
    hardsigmoid hardshrink softshrink tanhshrink softsign softplus logsigmoid
    sigmoid tanh threshold rrelu dropout feature_alpha_dropout alpha_dropout
"""
_POINTWISE = """
    abs exp expm1 log1p sin cos tan atan asinh sinh cosh erf erfc
    square rsqrt sigmoid neg sign floor ceil round trunc frac reciprocal
    i0 sinc nan_to_num deg2rad positive logit digamma lgamma erfinv exp2 log2
"""


def _elementwise() -> dict[str, Operation]:
    found = {}
    for name in _ACTIVATIONS.split():
        more = (0.1, 0.0) if name == 'threshold' else ()
        function = getattr(F, name)
        if 'dropout' in name or name == 'rrelu':
            function = partial(function, training=False)
        found[name] = lambda x, f=function, m=more: f(x, *m)
    for name in _POINTWISE.split():
        most = 0.5 if name in ('erfinv', 'logit') else 3
        function = getattr(torch, name)
        found[f'torch_{name}'] = lambda x, f=function, m=most: f(
            x.sigmoid() * m + 0.25
        )
    return found


# what keeps the channels; the reason names the operation
FROZEN: dict[str, tuple[Operation, str]] = {
    'layer_norm': (lambda x: F.layer_norm(x, x.shape[1:]), 'LayerNorm'),
    'local_response_norm': (
        lambda x: F.local_response_norm(x, 3),
        'over these channels',
    ),
    'rms_norm_by_hand': (
        lambda x: x * (x.square().mean(1, True) + 0.1).rsqrt(),
        'mean over these channels',
    ),
    'group_norm_of_one': (nn.GroupNorm(1, CHANNELS), 'GroupNorm of one'),
    'softmax': (lambda x: F.softmax(x, 1), 'softmax over these channels'),
    'cumsum': (lambda x: x.cumsum(1), 'cumsum over these channels'),
    'cumprod': (lambda x: x.cumprod(1), 'cumprod over these channels'),
    'logcumsumexp': (lambda x: x.logcumsumexp(1), 'over these channels'),
    'sort': (lambda x: x.sort(1)[0], 'sort over these channels'),
    'median': (lambda x: x - x.median(1, True)[0], 'median over these'),
    'normalize': (lambda x: F.normalize(x, dim=1), 'over these channels'),
    'convolved': (_Across(), 'operation.conv runs over these channels'),
    'pooled': (
        lambda x: F.avg_pool1d(x.flatten(2).mT, 2).mT.unflatten(
            2, x.shape[2:]
        ),
        'over these channels',
    ),
    'fft': (
        lambda x: torch.fft.fft(x, dim=1).real,
        'has no rule',
    ),
}

KEPT = {
    **{
        (f'{name}{dims}d' if dims else name): (dims, operation)
        for dims in (1, 2, 3)
        for name, operation in (
            *_every_dimension(dims).items(),
            *_ONLY[dims].items(),
        )
    },
    **{name: (2, operation) for name, operation in _elementwise().items()},
}
# As torch has it on GPUs; elsewhere it takes an RMSNorm apart.
LIBRARY = torch.library.Library('mmgfp_tests', 'DEF')
LIBRARY.define(
    '_fused_rms_norm(Tensor input, int[] normalized_shape, Tensor? weight, '
    'float? eps) -> (Tensor, Tensor)'
)


def _fused_rms_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    scale = x.square().mean(list(range(-len(shape), 0)), True)
    scale = (scale + (eps or 1e-6)).rsqrt()
    return x * scale * (1 if weight is None else weight), scale


LIBRARY.impl('_fused_rms_norm', _fused_rms_norm, 'CPU')


class _FusedNorm(nn.Module):
    """Over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        x, _ = torch.ops.mmgfp_tests._fused_rms_norm(
            x, [CHANNELS], self.weight, None
        )
        return x.movedim(-1, 1)


KEPT['fused_rms_norm_of_positions'] = (
    2,
    lambda x: torch.ops.mmgfp_tests._fused_rms_norm(x, x.shape[2:], None, 0.1)[
        0
    ],
)
FROZEN['fused_rms_norm'] = _FusedNorm(), 'RMSNorm over these channels'

if not hasattr(F, 'lp_pool3d'):  # older torch
    del KEPT['lp_pool3d']
if hasattr(F, 'rms_norm'):  # not in older torch
    KEPT['rms_norm_of_positions'] = 2, lambda x: F.rms_norm(x, x.shape[2:])
    FROZEN['rms_norm'] = (
        lambda x: F.rms_norm(x.movedim(1, -1), (CHANNELS,)).movedim(-1, 1),
        'RMSNorm over these channels',
    )


@pytest.mark.parametrize('name', KEPT)
def test_channels_pass(name, recwarn):
    dims, operation = KEPT[name]
    torch.manual_seed(0)
    model = _Between(operation, dims).eval()
    groups = find_groups(model, run, images=2)
    assert [g.frozen for g in groups if 'first' in g.producers] == ['']
    masked_is_slim(model, groups, run, cut_model)
    assert not [w for w in recwarn if 'num_features' in str(w.message)]


@pytest.mark.parametrize('name', FROZEN)
def test_channels_that_meet_stay(name):
    operation, reason = FROZEN[name]
    torch.manual_seed(0)
    model = _Between(operation, 2).eval()
    groups = find_groups(model, run, images=2)
    (group,) = (g for g in groups if 'first' in g.producers)
    assert reason in group.frozen
    assert 'self-check' not in group.frozen


class _Heads(nn.Module):
    """Heads of an attention; of key and value there may be fewer."""

    def __init__(self, shared: int, mask: str, **how) -> None:
        super().__init__()
        self.heads, self.shared = 4, 4 // shared
        self.mask, self.how, self.norm = mask, how, nn.Identity()
        self.query = nn.Linear(CHANNELS, 4 * self.heads)
        self.key = nn.Linear(CHANNELS, 4 * self.shared)
        self.value = nn.Linear(CHANNELS, 4 * self.shared)
        self.out = nn.Linear(4 * self.heads, CHANNELS)
        shape = 1, 4 if mask == 'of heads' else 1, SIDE**2, SIDE**2
        self.bias = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        images, length, _ = tokens.shape
        mask = {
            '': lambda: None,
            'bool': lambda: _earlier(x, torch.bool),
            'float': lambda: _earlier(x, x.dtype),
        }.get(self.mask, lambda: self.bias)()
        parts = (
            (self.query, self.heads),
            (self.key, self.shared),
            (self.value, self.shared),
        )
        query, key, value = (
            layer(tokens).view(images, length, heads, 4).transpose(1, 2)
            for layer, heads in parts
        )
        query, key = self.norm(query), self.norm(key)
        found = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, **self.how
        )
        tokens = self.out(found.transpose(1, 2).flatten(2))
        return x + tokens.mT.unflatten(2, x.shape[2:])


@pytest.mark.parametrize('shared', [1, 2])
@pytest.mark.parametrize(
    ('mask', 'causal'),
    [
        ('', False),
        ('', True),
        ('bool', False),
        ('float', False),
        ('learnt', False),
        ('of heads', False),
    ],
)
def test_heads_go_with_those_that_share_key_and_value(shared, mask, causal):
    torch.manual_seed(0)
    how = dict(enable_gqa=True) if shared > 1 else {}
    try:
        heads = _Heads(shared, mask, is_causal=causal, **how)
        model = _Between(heads, 2).eval()
    except TypeError:
        pytest.skip('the attention of this torch has no enable_gqa')
    groups = find_groups(model, run, images=2)
    (heads,) = (g for g in groups if 'operation.query' in g.producers)
    assert (heads.frozen, heads.size) == ('', 4 // shared)
    layers = {f'operation.{name}' for name in ('query', 'key', 'value')}
    assert (set(heads.producers), heads.width) == (layers, 4 * shared)
    masked_is_slim(model, groups, run, cut_model)


@pytest.mark.parametrize('kind', ['LayerNorm', 'RMSNorm'])
def test_heads_that_are_normalised_one_by_one(kind):
    if not hasattr(nn, kind):
        pytest.skip(f'this torch has no {kind}')
    torch.manual_seed(0)
    model = _Between(_Heads(1, ''), 2).eval()
    model.operation.norm = getattr(nn, kind)(4)
    groups = find_groups(model, run, images=2)
    (heads,) = (g for g in groups if 'operation.query' in g.producers)
    assert (heads.frozen, heads.size) == ('', 4)
    masked_is_slim(model, groups, run, cut_model)
