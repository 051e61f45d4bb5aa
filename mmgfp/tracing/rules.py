"""The table of label rules by name of operation.

An operation without a rule freezes the channels of its operands and results.
The reason of the freeze holds the operation's name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from .labels import Rule
from .rules_channelwise import (
    batch_norm,
    beside_buffer,
    constant,
    fold,
    group_norm,
    halves,
    layer_norm,
    overwrite,
    pointwise,
    reduction,
    softmax,
    spatial,
    unfold,
    weight_norm,
)
from .rules_common import fake_quantised, name_of, unknown
from .rules_extension import deformable, roi_pool, sample
from .rules_indexing import embedding, index, index_along, order, place
from .rules_mixing import addmm, attention, batched_add, convolution, mm, mv
from .rules_structure import (
    channel_shuffle,
    cut,
    join,
    pad,
    restride,
    split,
    structure,
)

RULES: dict[str, Rule] = {}


for _rule, _ops in {
    structure: """view _unsafe_view reshape _reshape_alias permute transpose t
        squeeze unsqueeze select unbind
        expand repeat flip roll clone contiguous detach alias _to_copy
        lift_fresh pixel_shuffle pixel_unshuffle diagonal view_as movedim tile
        unfold swapaxes rot90""",
    split: 'split split_with_sizes chunk',
    cut: 'slice narrow',
    join: 'cat stack concat',
    restride: 'as_strided_',
    channel_shuffle: 'channel_shuffle native_channel_shuffle',
    pad: 'constant_pad_nd',
    index: 'index',
    index_along: 'index_select gather',
    embedding: 'embedding',
    order: 'sort topk cummax cummin cumsum cumprod logcumsumexp kthvalue',
    place: 'index_put _unsafe_index_put',
    roi_pool: 'roi_align roi_pool',
    deformable: 'deform_conv2d',
    sample: 'grid_sampler_2d grid_sampler_3d grid_sampler cudnn_grid_sampler',
    spatial: """max_pool1d_with_indices max_pool2d_with_indices
        max_pool3d_with_indices max_pool1d max_pool2d max_pool3d
        mkldnn_max_pool2d mkldnn_max_pool3d avg_pool1d avg_pool2d avg_pool3d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d
        adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d
        fractional_max_pool3d max_unpool2d max_unpool3d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d
        _upsample_nearest_exact1d _upsample_nearest_exact2d
        _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
        upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa _upsample_lanczos2d_aa
        reflection_pad1d reflection_pad2d reflection_pad3d
        replication_pad1d replication_pad2d replication_pad3d""",
    reduction: 'mean sum amax amin max min var std var_mean std_mean prod any '
    'all argmax argmin linalg_vector_norm norm logsumexp median nanmedian '
    'mode nansum nanmean aminmax count_nonzero',
    halves: 'glu',
    beside_buffer: 'log_sigmoid_forward',
    softmax: '_softmax _log_softmax softmax log_softmax _safe_softmax',
    batch_norm: """native_batch_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training cudnn_batch_norm
        miopen_batch_norm batch_norm_with_update
        _batch_norm_with_update""",
    group_norm: 'native_group_norm',
    weight_norm: '_weight_norm_interface',
    layer_norm: 'native_layer_norm _fused_rms_norm',
    unfold: 'im2col',
    fold: 'col2im',
    convolution: 'convolution _convolution',
    addmm: 'addmm',
    mm: 'mm bmm',
    mv: 'mv dot',
    batched_add: 'baddbmm',
    attention: """_scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention
        _scaled_dot_product_efficient_attention
        _scaled_dot_product_cudnn_attention
        _scaled_dot_product_fused_attention_overrideable""",
    constant: """zeros ones full empty arange linspace eye rand randn
        new_zeros new_ones new_full new_empty zeros_like ones_like full_like
        empty_like rand_like randn_like empty_strided new_empty_strided
        scalar_tensor tril_indices triu_indices randint randperm
        lift_fresh_copy repeat_interleave""",
    fake_quantised: """fake_quantize_per_tensor_affine
        fake_quantize_per_channel_affine
        fake_quantize_per_tensor_affine_cachemask
        fake_quantize_per_channel_affine_cachemask
        _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        _fake_quantize_learnable_per_tensor_affine
        _fake_quantize_learnable_per_channel_affine
        fused_moving_avg_obs_fake_quant _fused_moving_avg_obs_fq_helper
        _fused_moving_avg_obs_fq_helper_functional
        quantize_per_tensor quantize_per_channel""",
    overwrite: 'copy_ fill_ zero_ masked_fill masked_fill_ where',
}.items():
    for _op in _ops.split():
        RULES[_op] = _rule


@cache
def find_rule(func: Any) -> Rule:
    """Returns the rule of an operation, by its name or its pointwise tag.

    Args:
        func (OpOverload): The operation given to ``__torch_dispatch__``.

    Returns:
        Callable: The rule; :func:`~.rules_common.unknown` if there is none.
    """
    name = name_of(func)
    rule = RULES.get(name) or RULES.get(name.rstrip('_'))
    if rule is reduction and _is_binary(func):
        return pointwise
    if rule is not None:
        return rule
    if torch.Tag.pointwise in func.tags or name.rstrip('_') in _POINTWISE:
        return pointwise
    return unknown


# Element-wise operations without the pointwise tag in older torch releases.
_POINTWISE_NAMES = """
    add sub mul div relu relu6 sigmoid tanh silu gelu hardswish
    hardsigmoid hardtanh leaky_relu elu clamp clamp_min clamp_max exp log sqrt
    rsqrt pow abs neg mish softplus threshold maximum minimum eq ne lt gt le ge
    logical_and logical_or logical_not bitwise_not _prelu_kernel sin cos floor
    ceil round erf reciprocal sign native_dropout bernoulli lerp addcmul
    addcdiv rsub remainder floor_divide isnan isinf celu selu prelu
    rrelu_with_noise hardshrink softshrink
"""


_POINTWISE = frozenset(_POINTWISE_NAMES.split())


def _is_binary(func: Any) -> bool:
    """Returns whether the overload has two operands, such as ``max(a, b)``.

    The reduction ``max(a)`` has the same name.
    """
    return func._overloadname == 'other'
