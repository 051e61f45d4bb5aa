"""What the experiments compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


def precision() -> str:
    """bfloat16 on CPUs that do not emulate it ten times as slowly.

    Else float32: on GPUs MMCV's focal loss knows no bfloat16.
    """
    # no public function tells it of any CPU
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported
    if get_device() == 'cpu' and supported():
        return 'bfloat16'
    return 'float32'


@OPTIM_WRAPPERS.register_module()
class FastestOptimWrapper(OptimWrapper):
    """Mixed precision on CPUs too, for which mmengine's own is not made."""

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        return torch.autocast(
            get_device(), torch.bfloat16, enabled=precision() == 'bfloat16'
        )
