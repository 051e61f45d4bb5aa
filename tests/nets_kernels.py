"""Nets whose layers compute their kernels, as :mod:`nets` has others."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from nets import OUTPUT, Net, WeightNorm, conv, group
from torch import nn
from torch.nn.utils import spectral_norm
from torch.nn.utils import weight_norm as deprecated_weight_norm
from torch.nn.utils.parametrizations import spectral_norm as spectral
from torch.nn.utils.parametrize import register_parametrization
from torch.nn.utils.prune import random_unstructured

KERNEL = 'computes its kernel'


def by_hook(layer: nn.Module, **kwargs) -> nn.Module:
    """Weight norm as a hook, which newer torch advises against."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return deprecated_weight_norm(layer, **kwargs)


def by_parametrization(layer: nn.Module) -> nn.Module:
    register_parametrization(layer, 'weight', WeightNorm())
    return layer


class Standardised(nn.Conv2d):
    """Each filter has mean 0 and deviation 1."""

    def kernel(self):
        weight = self.weight
        flat = weight.flatten(1)
        mean = flat.mean(1).view(-1, 1, 1, 1)
        std = flat.var(1, unbiased=False).add(1e-5).sqrt().view(-1, 1, 1, 1)
        return (weight - mean) / std

    def forward(self, x):
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(x, self.kernel(), self.bias, *settings)


class Adaptive(Standardised):
    """As above, with a scale and an offset for each filter in buffers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        ones = torch.ones(self.out_channels, 1, 1, 1)
        self.register_buffer('weight_gamma', ones)
        self.register_buffer('weight_beta', torch.zeros_like(ones))

    def kernel(self):
        return self.weight_gamma * super().kernel() + self.weight_beta


class ByBatchNorm(Standardised):
    """A batch norm of the weight does it, with a gain."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def kernel(self):
        weight = self.weight
        return F.batch_norm(
            weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * 0.5).view(-1),
            training=True,
            momentum=0.0,
        ).reshape_as(weight)


class ByLayerNorm(Standardised):
    def kernel(self):
        return F.layer_norm(self.weight, self.weight.shape[1:])


class Padded(Standardised):
    """A smaller kernel is added in the middle."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.point = nn.Parameter(torch.rand_like(self.weight[..., :1, :1]))

    def kernel(self):
        return super().kernel() + F.pad(self.point, (1, 1, 1, 1))


class Filters(Net):
    """Layers that treat each filter by itself, and plain ones, in turn."""

    prunable: ClassVar = {
        group('first', 'second', 8),
        group('third', 'fourth', 5),
    }
    frozen: ClassVar = {'second': KERNEL, 'fourth': OUTPUT}

    @staticmethod
    def make(*args, **kwargs) -> nn.Module:
        return by_hook(nn.Conv2d(*args, **kwargs))

    def __init__(self):
        super().__init__()
        self.first = self.make(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.second = conv(8, 6)
        self.third = self.make(6, 5, 3, padding=1)
        self.fourth = conv(5, 4)

    def forward(self, x):
        x = self.second(F.relu(self.bn(self.first(x))))
        return self.fourth(F.relu(self.third(x)))


class FiltersByParametrization(Filters):
    @staticmethod
    def make(*args, **kwargs):
        return by_parametrization(nn.Conv2d(*args, **kwargs))


class FiltersStandardised(Filters):
    make = Standardised


class FiltersAdaptive(Filters):
    make = Adaptive


class FiltersByBatchNorm(Filters):
    make = ByBatchNorm


class FiltersByLayerNorm(Filters):
    make = ByLayerNorm
    frozen: ClassVar = {'second': 'LayerNorm', 'fourth': OUTPUT}


class FiltersPadded(Filters):
    make = Padded


class Depthwise(Net):
    """A filter of its own for each channel: both sides go."""

    prunable: ClassVar = {group('first depthwise', 'depthwise last', 8)}
    frozen: ClassVar = {'last': OUTPUT}

    @staticmethod
    def make(*args, **kwargs) -> nn.Module:
        return Standardised(*args, **kwargs)

    def __init__(self):
        super().__init__()
        self.first = self.make(3, 8, 3, padding=1)
        self.depthwise = self.make(8, 8, 3, padding=1, groups=8)
        self.last = conv(8, 4)

    def forward(self, x):
        return self.last(F.relu(self.depthwise(F.relu(self.first(x)))))


class DepthwiseByHook(Depthwise):
    make = staticmethod(Filters.make)


class DepthwiseByParametrization(Depthwise):
    make = staticmethod(FiltersByParametrization.make)


class NormPerInput(Net):
    """The first axis of a transposed convolution is that of its inputs."""

    prunable: ClassVar = {group('first', 'up', 8)}
    frozen: ClassVar = {'up': KERNEL, 'last': OUTPUT}

    def __init__(self):
        super().__init__()
        self.first = conv(3, 8)
        self.up = by_hook(nn.ConvTranspose2d(8, 6, 2, stride=2))
        self.last = conv(6, 4)

    def forward(self, x):
        return self.last(F.relu(self.up(F.relu(self.first(x)))))


class NormalisedLinear(Net):
    prunable: ClassVar = {
        group('conv', 'first', 8),
        group('second', 'last', 7),
    }
    frozen: ClassVar = {'first': KERNEL, 'last': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv = conv(3, 8)
        self.first = nn.Linear(8, 6)
        self.second = by_hook(nn.Linear(6, 7))
        self.last = nn.Linear(7, 4)

    def forward(self, x):
        x = F.relu(self.conv(x)).mean((2, 3))
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


class Tanh(nn.Module):
    def forward(self, weight):
        return weight.tanh()


class Elementwise(Net):
    """Every element of a kernel is computed from the same one: both sides."""

    prunable: ClassVar = {
        group('first', 'second', 8),
        group('second', 'last', 6),
    }
    frozen: ClassVar = {'last': OUTPUT}

    def __init__(self):
        super().__init__()
        self.first = conv(3, 8)
        self.second = conv(8, 6)
        register_parametrization(self.second, 'weight', Tanh())
        self.last = conv(6, 4)

    def forward(self, x):
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


class Gated(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate = nn.Parameter(torch.rand_like(self.weight))

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.gate, self.bias)


class ElementwiseOfTwo(Elementwise):
    """Computed from two weights of the same size."""

    def __init__(self):
        super().__init__()
        self.second = Gated(8, 6, 3, padding=1)


class ElementwiseByMask(Elementwise):
    """Some elements are zero: torch's own pruning."""

    def __init__(self):
        super().__init__()
        self.second = conv(8, 6)
        random_unstructured(self.second, 'weight', 0.3)


class DepthwiseByMask(Depthwise):
    @staticmethod
    def make(*args, **kwargs):
        return random_unstructured(nn.Conv2d(*args, **kwargs), 'weight', 0.3)


class BufferedLinear(Net):
    """A weight that is never trained is a buffer."""

    prunable: ClassVar = {
        group('conv', 'middle', 8),
        group('middle', 'last', 6),
    }
    frozen: ClassVar = {'last': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv = conv(3, 8)
        self.middle = nn.Linear(8, 6)
        weight = self.middle.weight.detach()
        del self.middle.weight
        self.middle.register_buffer('weight', weight)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.conv(x)).mean((2, 3))
        return self.last(F.relu(self.middle(x)))


class OneNorm(Net):
    """A norm of all of a weight ties everything in it together."""

    prunable: ClassVar = set()
    frozen: ClassVar = {
        'first': 'a norm of the whole weight in first',
        'second': 'a norm of the whole weight in second',
        'third': OUTPUT,
    }

    def __init__(self):
        super().__init__()
        self.first = spectral_norm(conv(3, 8))
        self.second = spectral(conv(8, 6))
        self.third = conv(6, 4)

    def forward(self, x):
        return self.third(F.relu(self.second(F.relu(self.first(x)))))


class Smoothed(Standardised):
    """The kernel comes back from an operation that no rule knows."""

    def kernel(self):
        return torch.fft.irfft(torch.fft.rfft(self.weight, 5), 3)


class Distances(Standardised):
    """The kernel is of another shape than the weight, without its labels."""

    def __init__(self, inputs, outputs, size, **kwargs):
        super().__init__(inputs, outputs, size, **kwargs)
        self.weight = nn.Parameter(torch.rand(2, outputs, 5))
        self.other = nn.Parameter(torch.rand(2, inputs, 5))

    def kernel(self):
        distances = torch.cdist(self.weight, self.other).mean(0)
        return distances[..., None, None].expand(-1, -1, *self.kernel_size)


class Weighed(Standardised):
    """Softmax over the filters."""

    def kernel(self):
        return self.weight.softmax(0)


class Transformed(nn.Linear):
    def forward(self, x):
        return F.linear(x, torch.fft.fft(self.weight).real, self.bias)


class Bank(nn.Conv2d):
    """Sums a few kernels, weighed by the input."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight = nn.Parameter(torch.rand(2, *self.weight.shape))

    def forward(self, x):
        shares = x.mean((2, 3))[0, :2].softmax(0).view(2, 1, 1, 1, 1)
        kernel = (self.weight * shares).sum(0)
        return self._conv_forward(x, kernel, self.bias)


class Lost(Net):
    """Kernels that lost their labels; the layers have rows all the same."""

    prunable: ClassVar = set()
    frozen: ClassVar = {
        'first': 'in second',
        'second': 'fft_r2c, which has no rule, in second',
        'last': 'fft_r2c, which has no rule, in last',
    }

    @staticmethod
    def make(*args, **kwargs) -> nn.Module:
        return Smoothed(*args, **kwargs)

    def __init__(self):
        super().__init__()
        self.first = conv(3, 8)
        self.second = self.make(8, 6, 3, padding=1)
        self.last = Transformed(6, 4)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.last(x.mean((2, 3)))


class LostShape(Lost):
    make = Distances
    frozen: ClassVar = {
        **Lost.frozen,
        'second': '_cdist_forward, which has no rule, in second',
    }


class LostBySoftmax(Lost):
    make = Weighed
    frozen: ClassVar = {
        **Lost.frozen,
        'second': 'softmax over these channels in second',
    }


class LostInBank(Lost):
    make = Bank
    frozen: ClassVar = {
        **Lost.frozen,
        'second': 'a product of activations in last',
    }


class NormsInABlock(Net):
    """A hook computes a kernel before its layer runs, inside a block."""

    prunable: ClassVar = set()
    frozen: ClassVar = {
        'block.0': 'one norm over these channels in block.2, which',
        'block.2': 'a norm of the whole weight in last',
        'last': 'a norm of the whole weight in last',
    }

    def __init__(self):
        super().__init__()
        first, second = by_hook(conv(3, 8)), by_hook(conv(8, 6))
        self.block = nn.Sequential(first, nn.ReLU(), second)
        self.last = spectral_norm(conv(6, 4))

    def forward(self, x):
        return self.last(F.relu(self.block(x)))


KERNEL_NETS: dict[str, type[Net]] = {
    net.__name__: net
    for net in (
        Filters,
        FiltersByParametrization,
        FiltersStandardised,
        FiltersAdaptive,
        FiltersByBatchNorm,
        FiltersByLayerNorm,
        FiltersPadded,
        Depthwise,
        DepthwiseByHook,
        DepthwiseByParametrization,
        NormPerInput,
        NormalisedLinear,
        Elementwise,
        ElementwiseOfTwo,
        ElementwiseByMask,
        DepthwiseByMask,
        BufferedLinear,
        OneNorm,
        NormsInABlock,
        Lost,
        LostShape,
        LostBySoftmax,
        LostInBank,
    )
}
