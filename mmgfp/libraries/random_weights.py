"""Random weights with which a network behaves like a trained one.

They are for checks of untrained networks: initial zeros hide whole branches,
initial batch norms let signals grow with depth, and a badly conditioned
network amplifies rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Training would increase a scale below this value (1e-6 in ConvNeXt).
_SMALL = 0.05


def vary_weights_(
    model: nn.Module, run: Callable[[nn.Module], Any], seed: int = 0
) -> None:
    """Change initial weights in place to be like trained ones.

    Scales are varied, small scales are increased; offsets are varied;
    constant matrices become small random ones; the statistics of batch norms
    are those of the demo input, varied. The model is in eval mode afterwards.

    Args:
        model (nn.Module): A model with its own initialisation.
        run (Callable): ``run(model)`` runs it on demo input.
        seed (int): Seed of all random numbers. Defaults to 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.is_floating_point() and parameter.numel():
                _vary(name, parameter, generator)
    # Some layers derive tensors of their own from weights that are loaded.
    model.load_state_dict(dict(model.named_parameters()), strict=False)
    _calibrate(model, run)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None
            spread = module.running_var.sqrt()
            module.running_mean += 0.1 * spread * _noise(spread, generator)
            module.running_var *= _around_one(spread, generator)


def _vary(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if sum(n > 1 for n in parameter.shape) > 1:  # a matrix, kernel or table
        if parameter.min() == parameter.max():
            fan_in = parameter[0].numel()
            noise = _noise(parameter, generator)
            parameter += noise * min(0.1, fan_in**-0.5)
    elif name.rpartition('.')[2].endswith('bias'):
        parameter += 0.05 * _noise(parameter, generator)
    else:
        factor = _around_one(parameter, generator)
        if parameter.abs().max() < _SMALL:
            parameter.copy_(0.5 * factor)
        else:
            parameter *= factor


def _calibrate(model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    """Set the statistics of batch norms from one forward on demo input."""
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    norms = [m for m in norms if m.track_running_stats]
    momenta = [m.momentum for m in norms]
    before = [_statistics(m) for m in norms]
    handles = [
        m.register_forward_pre_hook(_only_with_statistics) for m in norms
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over all calls
    try:
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
        model.eval()
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
    for norm, (mean, variance) in zip(norms, before):
        assert norm.running_mean is not None and norm.running_var is not None
        if norm.num_batches_tracked == 0:  # not in this forward
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
        else:
            # limits the factor of a nearly constant channel
            least = 0.1 * norm.running_var.mean()
            norm.running_var.clamp_(min=float(least.clamp(min=norm.eps)))


def _only_with_statistics(module: nn.Module, args: tuple) -> None:
    """Learn statistics of this input if it has any."""
    values = args[0].numel() // max(1, args[0].shape[1])
    # synchronised ones learn on GPUs only
    module.train(values > 2 and not isinstance(module, nn.SyncBatchNorm))


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(like.shape, generator=generator)
    return noise.to(like)


def _around_one(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = 0.75 + 0.5 * torch.rand(like.shape, generator=generator)
    return noise.to(like)
