"""Small networks, each with the channel groups it must have.

The groups are written down by hand. ``prunable`` is a set of
``(producers, consumers, units, width)``, where ``width`` counts the channels
that one unit removes from the first producer. ``frozen`` maps a layer that
loses outputs to a part of the reason why its channels must stay.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

Group = tuple[frozenset[str], frozenset[str], int, int]

OUTPUT = 'reaches an output'


def group(producers: str, consumers: str, units: int, width: int = 1) -> Group:
    """``group('a b', 'c', 8)``: a and b lose outputs, c loses inputs."""
    return (
        frozenset(producers.split()),
        frozenset(consumers.split()),
        units,
        width,
    )


def conv(inputs: int, outputs: int, kernel: int = 3, **kwargs) -> nn.Conv2d:
    kwargs.setdefault('padding', kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, **kwargs)


class Net(nn.Module):
    """A network on images of :attr:`shape` with known channel groups."""

    shape: ClassVar[tuple[int, ...]] = (3, 16, 16)
    prunable: ClassVar[set[Group]]
    frozen: ClassVar[dict[str, str]]

    @classmethod
    def batch(cls, images: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(images, *cls.shape, generator=generator)


class Chain(Net):
    prunable: ClassVar = {
        group('conv1', 'conv2', 8),
        group('conv2', 'conv3', 6),
    }
    frozen: ClassVar = {'conv3': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = conv(8, 6)
        self.act = nn.PReLU(6)
        self.conv3 = conv(6, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.conv1(x)))
        return self.conv3(self.act(self.conv2(x)))


class Residual(Net):
    prunable: ClassVar = {
        group('stem b.conv2 a.conv2', 'a.conv1 b.conv1 head', 8),
        group('a.conv1', 'a.conv2', 4),
        group('b.conv1', 'b.conv2', 6),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.a = nn.Sequential()
        self.b = nn.Sequential()
        for block, width in ((self.a, 4), (self.b, 6)):
            block.conv1 = conv(8, width, bias=False)
            block.bn = nn.BatchNorm2d(width)
            block.conv2 = conv(width, 8)
        self.head = conv(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in (self.a, self.b):
            x = F.relu(x + block(x))
        return self.head(x)


class Concat(Net):
    """Each part has its own slice of the layer behind."""

    prunable: ClassVar = {
        group('a', 'both only', 4),
        group('b', 'both', 6),
        group('only', 'end', 3),
    }
    frozen: ClassVar = {'both': OUTPUT, 'end': OUTPUT}

    def __init__(self):
        super().__init__()
        self.a = conv(3, 4)
        self.b = conv(3, 6)
        self.bn = nn.BatchNorm2d(10)
        self.both = conv(10, 5)
        self.only = conv(4, 3)
        self.end = conv(3, 2)

    def forward(self, x):
        a = self.a(x)
        both = self.both(self.bn(torch.cat([self.b(x), a], 1)))
        return both, self.end(self.only(a))


class Split(Net):
    """The halves of a layer lose channels in step."""

    prunable: ClassVar = {
        group('stem', 'left right', 4, 2),
        group('left', 'head', 5),
        group('right', 'head', 7),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.left = conv(4, 5)
        self.right = conv(4, 7)
        self.head = conv(12, 2)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, dim=1)
        return self.head(torch.cat([self.left(left), self.right(right)], 1))


def shuffle(x: Tensor, groups: int) -> Tensor:
    images, channels, height, width = x.shape
    x = x.view(images, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(images, channels, height, width)


class _ShuffleBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = conv(4, 4, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.depthwise = conv(4, 4, groups=4)
        self.conv3 = conv(4, 4, 1)

    def forward(self, x):
        half = x.shape[1] // 2
        left, right = x[:, :half], x[:, half:]
        right = self.depthwise(F.relu(self.bn1(self.conv1(right))))
        return shuffle(torch.cat([left, self.conv3(right)], 1), 2)


class ShuffleV2(Net):
    """Two blocks of ShuffleNetV2.

    The stem's channels are x0..x3 (kept) and s0..s3 (into the first branch,
    which gives y0..y3). Cutting couples xi with si, shuffling xi with yi. The
    second block cuts x0 y0 x1 y1 | x2 y2 x3 y3, so x0 ~ x2, y0 ~ y2, ..., and
    shuffling its branch's z0..z3 couples x0 ~ z0, y0 ~ z1, ...: two units are
    left, each with two of x, s, y and z.
    """

    prunable: ClassVar = {
        group(
            'stem first.conv3 second.conv3',
            'first.conv1 second.conv1 head',
            2,
            4,
        ),
        group('first.conv1 first.depthwise', 'first.depthwise first.conv3', 4),
        group(
            'second.conv1 second.depthwise',
            'second.depthwise second.conv3',
            4,
        ),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.first = _ShuffleBlock()
        self.second = _ShuffleBlock()
        self.head = conv(8, 3)

    def forward(self, x):
        return self.head(self.second(self.first(self.stem(x))))


class ShuffleV1(Net):
    """Grouped convolutions of groups {01} {23} {45} {67} around a shuffle.

    Shuffling in two rows couples channel i with i + 4.
    """

    prunable: ClassVar = {
        group('stem first second', 'first second head', 2, 4)
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.first = conv(8, 8, groups=4)
        self.second = conv(8, 8, groups=4)
        self.head = conv(8, 3)

    def forward(self, x):
        x = shuffle(F.relu(self.first(self.stem(x))), 2)
        return self.head(self.second(x))


class ShuffleOperation(ShuffleV1):
    """The same with torch's own operation."""

    def forward(self, x):
        x = F.channel_shuffle(F.relu(self.first(self.stem(x))), 2)
        return self.head(self.second(x))


class FlatShuffle(Net):
    """A shuffle that also flattens space, as compact code does."""

    prunable: ClassVar = {group('stem', 'head', 4, 2)}
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.head = conv(8, 3)

    def forward(self, x):
        x = self.stem(x)
        n, _, h, w = x.shape
        x = x.reshape(n, 2, -1, h * w).transpose(1, 2)
        return self.head(x.reshape(n, -1, h, w))


class ZeroPadded(Net):
    """Shortcut A of CIFAR ResNets: subsample, pad channels with zeros."""

    prunable: ClassVar = {
        group('conv1', 'conv2', 16),
        group('stem conv2', 'conv1 head', 8),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.conv1 = conv(8, 16, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.conv2 = conv(16, 16)
        self.head = conv(16, 3)

    def forward(self, x):
        x = self.stem(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(shortcut + self.conv2(F.relu(self.bn(self.conv1(x)))))


class SqueezeExcite(Net):
    prunable: ClassVar = {
        group('stem fc2', 'fc1 head', 8),
        group('fc1', 'fc2', 3),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = conv(8, 3, 1)
        self.fc2 = conv(3, 8, 1)
        self.head = conv(8, 5)

    def forward(self, x):
        x = self.stem(x)
        scale = self.fc2(F.relu(self.fc1(self.pool(x))))
        return self.head(x * torch.sigmoid(scale))


class InvertedResidual(Net):
    prunable: ClassVar = {
        group('stem project', 'expand head', 8),
        group('expand depthwise', 'depthwise project', 16),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.expand = conv(8, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.depthwise = conv(16, 16, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.project = conv(16, 8, 1)
        self.head = conv(8, 5)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu6(self.bn1(self.expand(x)))
        y = F.relu6(self.bn2(self.depthwise(y)))
        return self.head(x + self.project(y))


class GroupedConv(Net):
    """Whole convolution groups go: two inputs and three outputs each."""

    prunable: ClassVar = {group('conv1 grouped', 'grouped head', 4, 2)}
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.grouped = conv(8, 12, groups=4)
        self.bn = nn.BatchNorm2d(12)
        self.head = conv(12, 5)

    def forward(self, x):
        return self.head(self.bn(self.grouped(F.relu(self.conv1(x)))))


class GroupNorm(Net):
    """Whole norm groups go; InstanceNorm keeps channels apart."""

    prunable: ClassVar = {
        group('conv1', 'conv2', 4, 2),
        group('conv2', 'conv3', 6),
    }
    frozen: ClassVar = {'conv3': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.norm1 = nn.GroupNorm(4, 8)
        self.conv2 = conv(8, 6)
        self.norm2 = nn.InstanceNorm2d(6, affine=True)
        self.conv3 = conv(6, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return self.conv3(self.norm2(self.conv2(x)))


class ConvNeXt(Net):
    """LayerNorm over channels: statistics would change with each removal."""

    prunable: ClassVar = {group('pw1', 'pw2', 32)}
    frozen: ClassVar = {'stem': 'LayerNorm', 'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.depthwise = conv(8, 8, 7, groups=8)
        self.norm = nn.LayerNorm(8)
        self.pw1 = nn.Linear(8, 32)
        self.pw2 = nn.Linear(32, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.5))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pw2(F.gelu(self.pw1(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class FlattenedLinear(Net):
    prunable: ClassVar = {
        group('conv', 'fc1', 6),
        group('fc1', 'fc2', 10),
    }
    frozen: ClassVar = {'fc2': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv = conv(3, 6)
        self.fc1 = nn.Linear(6 * 7 * 7, 10)
        self.bn = nn.BatchNorm1d(10)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.conv(x), 7).flatten(1)
        return self.fc2(F.relu(self.bn(self.fc1(x))))


class _Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return x * self.scale


class Pyramid(Net):
    """FPN with two extra levels from the input, and one shared head."""

    shape: ClassVar = (3, 32, 32)
    prunable: ClassVar = {
        group('c3', 'c4 lateral.0', 6),
        group('c4', 'c5 lateral.1', 8),
        group('c5', 'lateral.2 p6', 10),
        group('lateral.0 lateral.1 lateral.2', 'out.0 out.1 out.2', 12),
        group('out.0 out.1 out.2 p6 p7', 'p7 cls_tower reg_tower', 12),
        group('cls_tower', 'cls', 12),
        group('reg_tower', 'reg', 14),
    }
    frozen: ClassVar = {'cls': OUTPUT, 'reg': OUTPUT}
    extra_input: ClassVar = 10

    def __init__(self):
        super().__init__()
        self.c3 = conv(3, 6, stride=2)
        self.c4 = conv(6, 8, stride=2)
        self.c5 = conv(8, 10, stride=2)
        self.lateral = nn.ModuleList(conv(n, 12, 1) for n in (6, 8, 10))
        self.out = nn.ModuleList(conv(12, 12) for _ in range(3))
        self.p6 = conv(self.extra_input, 12, stride=2)
        self.p7 = conv(12, 12, stride=2)
        self.cls_tower = conv(12, 12)
        self.cls = conv(12, 5)
        self.reg_tower = conv(12, 14)
        self.reg = conv(14, 4)
        self.scales = nn.ModuleList(_Scale() for _ in range(5))

    def extra(self, c5, p5):
        return c5

    def forward(self, x):
        c3 = F.relu(self.c3(x))
        c4 = F.relu(self.c4(c3))
        c5 = F.relu(self.c5(c4))
        sums = [layer(c) for layer, c in zip(self.lateral, (c3, c4, c5))]
        for i in (1, 0):
            sums[i] = sums[i] + F.interpolate(
                sums[i + 1], size=sums[i].shape[2:], mode='nearest'
            )
        levels = [layer(s) for layer, s in zip(self.out, sums)]
        levels.append(self.p6(self.extra(c5, levels[-1])))
        levels.append(self.p7(F.relu(levels[-1])))
        cls = [self.cls(F.relu(self.cls_tower(p))) for p in levels]
        reg = [
            scale(self.reg(F.relu(self.reg_tower(p)))).exp()
            for scale, p in zip(self.scales, levels)
        ]
        return cls, reg


class PyramidOnOutput(Pyramid):
    """The first extra level comes from P5 in place of C5."""

    prunable: ClassVar = {
        group('c3', 'c4 lateral.0', 6),
        group('c4', 'c5 lateral.1', 8),
        group('c5', 'lateral.2', 10),
        group('lateral.0 lateral.1 lateral.2', 'out.0 out.1 out.2', 12),
        group('out.0 out.1 out.2 p6 p7', 'p6 p7 cls_tower reg_tower', 12),
        group('cls_tower', 'cls', 12),
        group('reg_tower', 'reg', 14),
    }
    extra_input: ClassVar = 12

    def extra(self, c5, p5):
        return p5


class Scales(Net):
    """Learnable scales: per channel, per network, and a table of positions."""

    prunable: ClassVar = {group('stem mix', 'mix head', 8)}
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.mix = conv(8, 8)
        self.gamma = nn.Parameter(torch.rand(8, 1, 1))
        self.positions = nn.Parameter(torch.rand(1, 1, 16, 16))
        self.table = nn.Parameter(torch.rand(1, 8, 16, 16))
        self.scale = _Scale()
        self.head = conv(8, 5)

    def forward(self, x):
        x = self.stem(x) + self.positions
        x = x + self.scale(self.gamma * self.mix(x)) + self.table
        return self.head(x)


class SyncedNorm(Net):
    prunable: ClassVar = {group('conv1', 'conv2', 8)}
    frozen: ClassVar = {'conv2': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.norm = nn.SyncBatchNorm(8)
        self.conv2 = conv(8, 5)

    def forward(self, x):
        return self.conv2(self.norm(self.conv1(x)))


class _Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.rfft2(x).real


class UnknownOperation(Net):
    prunable: ClassVar = {group('conv1', 'conv2', 8)}
    frozen: ClassVar = {'conv2': 'fft', 'conv3': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.conv2 = conv(8, 6)
        self.mixer = _Fourier()
        self.conv3 = conv(6, 5)

    def forward(self, x):
        return self.conv3(self.mixer(self.conv2(F.relu(self.conv1(x)))))


class Distances(Net):
    """Two branches into one unknown operation: both stay."""

    prunable: ClassVar = {group('stem', 'a b', 8)}
    frozen: ClassVar = {'a': 'cdist', 'b': 'cdist'}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.a = conv(8, 6)
        self.b = conv(8, 6)

    def forward(self, x):
        x = F.relu(self.stem(x))
        a, b = self.a(x).mean((2, 3)), self.b(x).mean((2, 3))
        return torch.cdist(a, b)


class FunctionalWeight(Net):
    """The weight of ``conv2`` is used behind its module's back."""

    prunable: ClassVar = {group('conv2', 'conv3', 6)}
    frozen: ClassVar = {'conv1': 'outside the layer', 'conv3': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.conv2 = conv(8, 6)
        self.conv3 = conv(6, 5)

    def forward(self, x):
        x = F.conv2d(self.conv1(x), self.conv2.weight, padding=1)
        return self.conv3(F.relu(x))


class Repeated(Net):
    """One module called three times, once on another resolution."""

    prunable: ClassVar = {group('stem shared', 'shared head', 8)}
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.shared = conv(8, 8)
        self.head = conv(8, 5)

    def forward(self, x):
        x = self.shared(self.shared(self.stem(x)))
        return self.head(self.shared(F.max_pool2d(x, 2)))


class NeverCalled(Net):
    prunable: ClassVar = {group('conv1', 'conv2', 8)}
    frozen: ClassVar = {'conv2': OUTPUT}

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8))
        self.conv1 = conv(3, 8)
        self.conv2 = conv(8, 5)

    def forward(self, x):
        return self.conv2(F.relu(self.conv1(x)))


class TiedProducers(Net):
    """Two layers with one weight but a bias each: one producer, ``a``."""

    prunable: ClassVar = {group('a', 'head', 8)}
    frozen: ClassVar = {'stem': 'outside the layer', 'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 4)
        self.a = conv(4, 8)
        self.b = conv(4, 8)
        self.b.weight = self.a.weight
        self.head = conv(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(self.a(x)) + self.b(x))


class Transposed(Net):
    prunable: ClassVar = {
        group('conv1', 'up', 8),
        group('up grouped', 'grouped head', 3, 2),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.bn = nn.BatchNorm2d(6)
        self.grouped = nn.ConvTranspose2d(6, 9, 2, 2, groups=3)
        self.head = conv(9, 5)

    def forward(self, x):
        return self.head(self.grouped(self.bn(self.up(self.conv1(x)))))


class Kernels(Net):
    """Asymmetric, dilated and strided kernels."""

    prunable: ClassVar = {
        group('row', 'column', 8),
        group('column', 'dilated', 6),
        group('dilated', 'head', 4),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.row = nn.Conv2d(3, 8, (1, 3), (1, 2))
        self.column = nn.Conv2d(8, 6, (5, 1), padding=(2, 0))
        self.dilated = conv(6, 4, dilation=(3, 2))
        self.head = conv(4, 5, padding_mode='reflect')

    def forward(self, x):
        return self.head(self.dilated(F.relu(self.column(self.row(x)))))


class InPlace(Net):
    prunable: ClassVar = {
        group('stem conv2', 'conv1 head', 8),
        group('conv1', 'conv2', 6),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = conv(8, 6)
        self.conv2 = conv(6, 8)
        self.head = conv(8, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        x += self.conv2(self.relu(self.conv1(x)))
        return self.head(self.relu(x))


class Buffer(Net):
    """Results are written into parts of a fresh tensor."""

    prunable: ClassVar = {group('a', 'head', 4), group('b', 'head', 6)}
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.a = conv(3, 4)
        self.b = conv(3, 6)
        self.head = conv(10, 5)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        n, c, h, w = a.shape
        out = x.new_zeros(n, c + b.shape[1], h, w)
        out[:, :c] = a
        out[:, c:] = b
        return self.head(F.relu(out))


class BufferOfSums(Net):
    """A sum of a channel and a position label goes into a fresh tensor."""

    prunable: ClassVar = {group('stem', 'a b', 8), group('b', 'head', 6)}
    frozen: ClassVar = {'a': 'into a new tensor', 'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.a = conv(8, 4)
        self.b = conv(8, 6)
        self.positions = nn.Parameter(torch.rand(16, 16))
        self.head = conv(10, 5)

    def forward(self, x):
        x = self.stem(x)
        a, b = self.a(x) + self.positions, self.b(x)
        n, c, h, w = a.shape
        out = x.new_zeros(n, c + b.shape[1], h, w)
        out[:, :c] = a
        out[:, c:] = b
        return self.head(out)


class Precisions(Net):
    """Types change on the way; labels do not."""

    prunable: ClassVar = {
        group('conv1', 'conv2', 8),
        group('conv2', 'conv3', 6),
    }
    frozen: ClassVar = {'conv3': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.conv2 = conv(8, 6)
        self.conv3 = conv(6, 5)

    def forward(self, x):
        x = self.conv2(self.conv1(x).double().relu().float())
        return self.conv3(x.to(torch.float64).to(x))


class Attention(Net):
    """Heads of a fixed number lose channels in step; tokens stay.

    Query and key are summed over, so they stay.
    """

    prunable: ClassVar = {
        group('value', 'project', 4, 2),
        group('hidden', 'out', 12),
    }
    frozen: ClassVar = {
        'patch': 'LayerNorm',
        'query': '',
        'key': '',
        'head': OUTPUT,
    }

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(torch.rand(1, 16, 8))
        self.norm = nn.LayerNorm(8)
        self.query = nn.Linear(8, 8)
        self.key = nn.Linear(8, 8)
        self.value = nn.Linear(8, 8)
        self.project = nn.Linear(8, 8)
        self.hidden = nn.Linear(8, 12)
        self.out = nn.Linear(12, 8)
        self.head = nn.Linear(8, 4)

    def heads(self, x):
        n, tokens, _ = x.shape
        return x.reshape(n, tokens, 2, -1).transpose(1, 2)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        y = self.norm(x)
        query, key = self.heads(self.query(y)), self.heads(self.key(y))
        weights = (query @ key.transpose(-2, -1)).softmax(-1)
        y = weights @ self.heads(self.value(y))
        n, _, tokens, _ = y.shape
        x = x + self.project(y.transpose(1, 2).reshape(n, tokens, -1))
        x = x + self.out(F.gelu(self.hidden(x)))
        return self.head(x.mean(1))


class PixelShuffle(Net):
    """Upsampling: four channels become four pixels of one."""

    prunable: ClassVar = {
        group('conv1', 'conv2', 8),
        group('conv2', 'conv3', 3, 4),
    }
    frozen: ClassVar = {'conv3': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.conv2 = conv(8, 12)
        self.conv3 = conv(3, 5)

    def forward(self, x):
        x = F.pixel_shuffle(self.conv2(F.relu(self.conv1(x))), 2)
        return self.conv3(x)


class KeywordCall(Net):
    """A consumer that is not handed its input as first argument."""

    prunable: ClassVar = {group('conv2', 'conv3', 6)}
    frozen: ClassVar = {'conv1': 'outside the layer', 'conv3': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.conv2 = conv(8, 6)
        self.conv3 = conv(6, 5)

    def forward(self, x):
        return self.conv3(self.conv2(input=self.conv1(x)))


class RepeatedLinear(nn.Linear):
    """As PyTorch runs a linear layer whose input is no matrix in memory."""

    def forward(self, x):
        return x @ self.weight.t().expand(len(x), -1, -1) + self.bias


class Batched(Net):
    """A matrix repeated for every image is the same matrix."""

    prunable: ClassVar = {
        group('stem', 'first', 8),
        group('first', 'second', 6),
    }
    frozen: ClassVar = {'second': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.first = RepeatedLinear(8, 6)
        self.second = RepeatedLinear(6, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.second(F.relu(self.first(x)))


class WeightNorm(nn.Module):
    """The parametrization of that name, which torch 2.0 lacks."""

    def forward(self, norm, direction):
        return torch._weight_norm(direction, norm, 0)

    def right_inverse(self, weight):
        return torch.norm_except_dim(weight, 2, 0), weight


class Normalised(Net):
    """A filter with a norm of its own can go, an input of it cannot."""

    prunable: ClassVar = {
        group('conv2', 'conv3', 6),
        group('conv3', 'conv4', 6),
    }
    frozen: ClassVar = {'conv1': 'kernel', 'conv4': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.conv2 = conv(8, 6)
        register_parametrization(self.conv2, 'weight', WeightNorm())
        self.conv3 = conv(6, 6)
        self.conv4 = conv(6, 5)

    def forward(self, x):
        return self.conv4(self.conv3(self.conv2(self.conv1(x))))


class Strided(Net):
    """Every other channel: neighbours lose channels in step."""

    prunable: ClassVar = {group('stem', 'even odd', 4, 2)}
    frozen: ClassVar = {'even': OUTPUT, 'odd': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.even = conv(4, 5)
        self.odd = conv(4, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.even(x[:, ::2]), self.odd(x[:, 1::2])


NETS: dict[str, type[Net]] = {
    net.__name__: net
    for net in (
        Chain,
        Residual,
        Concat,
        Split,
        ShuffleV2,
        ShuffleV1,
        ShuffleOperation,
        FlatShuffle,
        ZeroPadded,
        SqueezeExcite,
        InvertedResidual,
        GroupedConv,
        GroupNorm,
        ConvNeXt,
        FlattenedLinear,
        Pyramid,
        PyramidOnOutput,
        Scales,
        SyncedNorm,
        UnknownOperation,
        Distances,
        FunctionalWeight,
        Repeated,
        NeverCalled,
        TiedProducers,
        Transposed,
        Kernels,
        InPlace,
        Buffer,
        BufferOfSums,
        Precisions,
        Attention,
        PixelShuffle,
        KeywordCall,
        Batched,
        Normalised,
        Strided,
    )
}


def run(model: nn.Module):
    """Run a net of this file on its two demo images."""
    return model(type(model).batch())
