"""Small networks whose forward reads widths from attributes.

As in ``nets``; ``widths`` are the attributes that shrink with some prunable
group.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from nets import OUTPUT, Net, conv, group
from torch import Tensor, nn


class WidthNet(Net):
    widths: ClassVar[set[str]] = set()


class Hierarchical(WidthNet):
    """Res2Net: parts of one width, each added to the one before."""

    prunable: ClassVar = {
        group('stem convs.0', 'convs.0 convs.1 head', 4, 3),
        group('convs.1', 'head', 4),
    }
    frozen: ClassVar = {'head': OUTPUT}
    widths: ClassVar = {'width'}

    def __init__(self):
        super().__init__()
        self.width = 4
        self.stem = conv(3, 12)
        self.convs = nn.ModuleList(conv(4, 4) for _ in range(2))
        self.head = conv(12, 5)

    def forward(self, x):
        parts = torch.split(self.stem(x), self.width, 1)
        results = [parts[0]]
        for layer, part in zip(self.convs, parts[1:]):
            results.append(F.relu(layer(part + results[-1])))
        return self.head(torch.cat(results, 1))


class CrossStage(WidthNet):
    """C2f: halves of a stored width; a part of the concatenation is new."""

    prunable: ClassVar = {
        group('stem block', 'block head', 4, 2),
    }
    frozen: ClassVar = {'head': OUTPUT}
    widths: ClassVar = {'mid'}

    def __init__(self):
        super().__init__()
        self.mid = 4
        self.stem = conv(3, 8)
        self.block = conv(4, 4)
        self.head = conv(12, 5)

    def forward(self, x):
        y = list(self.stem(x).split((self.mid, self.mid), 1))
        y.append(F.relu(self.block(y[-1])) + y[-1])
        return self.head(torch.cat(y, 1))


class Gated(WidthNet):
    """HorNet's recursive gates: widths in a list, and their sum."""

    prunable: ClassVar = {
        group('project depthwise', 'depthwise grow', 2, 2),
        group('project depthwise grow', 'depthwise head', 4),
    }
    frozen: ClassVar = {'head': OUTPUT}
    widths: ClassVar = {'dims[0]', 'dims[1]'}

    def __init__(self):
        super().__init__()
        self.dims = [2, 4]
        self.project = conv(3, 8, 1)
        self.depthwise = conv(6, 6, groups=6)
        self.grow = conv(2, 4, 1)
        self.head = conv(4, 5)

    def forward(self, x):
        x = self.project(x)
        gate, rest = torch.split(x, (self.dims[0], sum(self.dims)), dim=1)
        parts = torch.split(self.depthwise(rest), self.dims, dim=1)
        return self.head(self.grow(gate * parts[0]) * parts[1])


class Ghost(WidthNet):
    """What is concatenated is cut to a stored width.

    Two channels of ``primary`` leave with a channel behind ``cheap``, the two
    others without.
    """

    prunable: ClassVar = {group('primary cheap', 'cheap head', 2)}
    frozen: ClassVar = {'head': OUTPUT}
    widths: ClassVar = {'outputs'}

    def __init__(self):
        super().__init__()
        self.outputs = 6
        self.primary = conv(3, 4)
        self.cheap = conv(4, 4, groups=4)
        self.head = conv(6, 5)

    def forward(self, x):
        x = F.relu(self.primary(x))
        x = torch.cat([x, self.cheap(x)], 1)
        return self.head(x[:, : self.outputs])


class Halves(WidthNet):
    """Cut before and behind the same number."""

    prunable: ClassVar = {
        group('stem', 'left', 4),
        group('stem', 'right', 6),
    }
    frozen: ClassVar = {'left': OUTPUT, 'right': OUTPUT}
    widths: ClassVar = {'part'}

    def __init__(self):
        super().__init__()
        self.part = 4
        self.stem = conv(3, 10)
        self.left = conv(4, 5)
        self.right = conv(6, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.left(x[:, : self.part]), self.right(x[:, self.part :])


class FromTheEnd(Halves):
    """The same, counted from behind."""

    widths: ClassVar = {'other'}

    def __init__(self):
        super().__init__()
        self.other = 6

    def forward(self, x):
        x = self.stem(x)
        return self.left(x[:, : -self.other]), self.right(x[:, -self.other :])


class Narrowed(Halves):
    widths: ClassVar = {'part', 'other'}

    def __init__(self):
        super().__init__()
        self.other = 6

    def forward(self, x):
        x = self.stem(x)
        left = x.narrow(1, 0, self.part)
        right = torch.narrow(x, 1, self.part, self.other)
        return self.left(left), self.right(right)


class _Halver(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x):
        return x[:, : self.width], x[:, self.width :]


class CalledTwice(WidthNet):
    """One module cuts two tensors: both lose channels in step."""

    prunable: ClassVar = {
        group('a b', 'c d', 4),
        group('a', 'c', 4),
        group('b', 'd', 2),
    }
    frozen: ClassVar = {'c': OUTPUT, 'd': OUTPUT}
    widths: ClassVar = {'halver.width'}

    def __init__(self):
        super().__init__()
        self.halver = _Halver(4)
        self.a = conv(3, 8)
        self.b = conv(3, 6)
        self.c = conv(8, 5)
        self.d = conv(6, 5)

    def forward(self, x):
        (a, b), (c, d) = self.halver(self.a(x)), self.halver(self.b(x))
        c = self.c(torch.cat([b, a], 1)) + self.d(torch.cat([d, c], 1))
        return c


class EqualValues(WidthNet):
    """Two attributes of one value, of which only one is a width."""

    prunable: ClassVar = {group('stem', 'head', 4), group('rest', 'head', 4)}
    frozen: ClassVar = {'head': OUTPUT}
    widths: ClassVar = {'width'}

    def __init__(self):
        super().__init__()
        self.before, self.width, self.behind = 4, 4, 4
        self.stem = conv(3, 4)
        self.rest = conv(3, 4)
        self.head = conv(8, 5)

    def forward(self, x):
        y = torch.cat([self.stem(x), self.rest(x)], 1)
        left, right = y[:, : self.width], y[:, self.width :]
        x = torch.cat([left * self.before, right / self.behind], 1)
        return self.head(F.max_pool2d(x, self.behind))


class Compared(WidthNet):
    """Checks of the number of channels, for a user's sake."""

    prunable: ClassVar = {group('stem', 'head', 8)}
    frozen: ClassVar = {'head': OUTPUT}
    widths: ClassVar = {'in_channels', 'embed_dims'}

    def __init__(self):
        super().__init__()
        self.in_channels = self.embed_dims = self.other = 8
        self.stem = conv(3, 8)
        self.head = conv(8, 5)

    def forward(self, x):
        x = self.stem(x)
        assert x.shape[1] == self.in_channels
        if x.size(1) != self.embed_dims:
            raise ValueError('wrong width')
        return self.head(x)


class Viewed(WidthNet):
    """Flattened and back, with the width from an attribute."""

    prunable: ClassVar = {group('stem mix', 'mix head', 8)}
    frozen: ClassVar = {'head': OUTPUT}
    widths: ClassVar = {'embed_dims'}

    def __init__(self):
        super().__init__()
        self.embed_dims = 8
        self.stem = conv(3, 8)
        self.mix = nn.Linear(8, 8)
        self.head = conv(8, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = (x + self.mix(x)).transpose(1, 2)
        return self.head(x.view(len(x), self.embed_dims, 16, 16))


class TwoMeanings(WidthNet):
    """A number that counts channels and, by chance, lines."""

    prunable: ClassVar = set()
    frozen: ClassVar = {'stem': 'number = 8 also counts what stays'}

    def __init__(self):
        super().__init__()
        self.number = 8
        self.stem = conv(3, 8)
        self.head = conv(8, 8)

    def forward(self, x):
        x = self.stem(x).flatten(2).view(len(x), self.number, -1)
        x = x.view(len(x), x.shape[1], self.number, -1)
        return self.head(x)


class FunctionalGroups(WidthNet):
    """Group counts that are handed to functional calls."""

    prunable: ClassVar = {group('stem', 'head', 4, 2)}
    frozen: ClassVar = {'head': OUTPUT}
    widths: ClassVar = {'norm_groups', 'width'}

    def __init__(self):
        super().__init__()
        self.norm_groups, self.width = 4, 8
        self.stem = conv(3, 8)
        self.head = conv(8, 5)

    def forward(self, x):
        x = F.group_norm(self.stem(x), self.norm_groups)
        kernel = torch.ones(1, 1, 3, 3, dtype=x.dtype) / 9
        parts = x.split(self.width, 1)
        return self.head(parts[0].view(len(x), self.width, 16, 16)), kernel


class SelfAttention(nn.Module):
    """With all widths in attributes, as in MMPretrain."""

    def __init__(self, width, heads, head_dims):
        super().__init__()
        self.num_heads, self.head_dims = heads, head_dims
        self.embed_dims = heads * head_dims
        self.scale = self.head_dims**-0.5
        self.qkv = nn.Linear(width, 3 * self.embed_dims)
        self.proj = nn.Linear(self.embed_dims, width)

    def attend(self, query, key, value):
        weights = (query * self.scale) @ key.transpose(-2, -1)
        return weights.softmax(-1) @ value

    def forward(self, x):
        images, tokens, _ = x.shape
        qkv = self.qkv(x)
        qkv = qkv.reshape(images, tokens, 3, self.num_heads, self.head_dims)
        x = self.attend(*qkv.permute(2, 0, 3, 1, 4))
        x = x.transpose(1, 2).reshape(images, tokens, self.embed_dims)
        return self.proj(x)


class Heads(WidthNet):
    """Whole heads go; the width of a head and its scale stay."""

    prunable: ClassVar = {
        group('attention.qkv', 'attention.proj', 4, 9),
        group('hidden', 'out', 12),
    }
    frozen: ClassVar = {'patch': 'LayerNorm', 'head': OUTPUT}
    widths: ClassVar = {'attention.num_heads', 'attention.embed_dims'}
    kind: ClassVar[type[nn.Module]] = SelfAttention

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(torch.rand(1, 16, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = self.kind(8, 4, 3)
        self.hidden = nn.Linear(8, 12)
        self.out = nn.Linear(12, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        x = x + self.attention(self.norm(x))
        x = x + self.out(F.gelu(self.hidden(self.norm(x))))
        return self.head(x.mean(1))


class _FusedAttention(SelfAttention):
    def attend(self, query, key, value):
        return F.scaled_dot_product_attention(query, key, value)


class FusedHeads(Heads):
    """The same as one operation."""

    kind: ClassVar = _FusedAttention


class _BiasedAttention(SelfAttention):
    """A table of positions per head, and separate projections."""

    def __init__(self, width, heads, head_dims):
        super().__init__(width, heads, head_dims)
        self.table = nn.Parameter(torch.randn(31, heads))
        index = torch.arange(16)[:, None] - torch.arange(16) + 15
        self.register_buffer('index', index)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.norm = nn.LayerNorm(head_dims)

    def attend(self, query, key, value):
        bias = self.table[self.index.view(-1)].view(16, 16, -1)
        weights = self.norm(query) @ key.transpose(-2, -1) * self.temperature
        return (weights + bias.permute(2, 0, 1)).softmax(-1) @ value


class BiasedHeads(Heads):
    kind: ClassVar = _BiasedAttention


class _StoredAttention(SelfAttention):
    """Keeps in evaluation what training computes again, as LeViT does."""

    def __init__(self, width, heads, head_dims):
        super().__init__(width, heads, head_dims)
        self.biases = nn.Parameter(torch.randn(heads, 16))
        self.register_buffer('index', torch.arange(256).view(16, 16) % 16)

    @torch.no_grad()
    def train(self, mode=True):
        super().train(mode)
        if mode and hasattr(self, 'stored'):
            del self.stored
        elif not mode:
            self.stored = self.biases[:, self.index]

    def attend(self, query, key, value):
        bias = self.biases[:, self.index] if self.training else self.stored
        weights = query @ key.transpose(-2, -1) + bias.to(query)
        return weights.softmax(-1) @ value


class StoredHeads(Heads):
    kind: ClassVar = _StoredAttention


class _MemorisingAttention(_StoredAttention):
    """By device, in a dict that training empties, as timm's LeViT does."""

    def __init__(self, width, heads, head_dims):
        super().__init__(width, heads, head_dims)
        self.by_device = {}

    def train(self, mode=True):
        super(_StoredAttention, self).train(mode)
        if mode:
            self.by_device = {}
        return self

    def attend(self, query, key, value):
        bias = self.biases[:, self.index]
        if not self.training:
            bias = self.by_device.setdefault(str(query.device), bias)
        weights = query @ key.transpose(-2, -1) + bias.to(query)
        return weights.softmax(-1) @ value


class MemorisingHeads(Heads):
    kind: ClassVar = _MemorisingAttention


class _InputWidth(SelfAttention):
    def forward(self, x):
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(
            images, tokens, 3, self.num_heads, width // self.num_heads
        )
        x = self.attend(*qkv.permute(2, 0, 3, 1, 4))
        return self.proj(x.transpose(1, 2).reshape(images, tokens, width))


class InputWidth(Heads):
    """The width of a head is that of the input over the number of heads."""

    prunable: ClassVar = {group('hidden', 'out', 12)}
    frozen: ClassVar = {
        'patch': 'LayerNorm',
        'attention.qkv': 'attention computes a size as 8 // num_heads from '
        'the width of a tensor',
        'head': OUTPUT,
    }
    widths: ClassVar = set()

    def __init__(self):
        super().__init__()
        self.attention = _InputWidth(8, 4, 2)


class _TorchAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class TorchHeads(InputWidth):
    frozen: ClassVar = {
        'patch': 'LayerNorm',
        'attention.layer': 'nn.MultiheadAttention',
        'head': OUTPUT,
    }

    def __init__(self):
        super().__init__()
        self.attention = _TorchAttention()


class _Columns(nn.Module):
    """No sum over a whole head: the columns of all heads go."""

    def __init__(self):
        super().__init__()
        self.rows, self.columns = 2, 4

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, _ = x.shape
        x = x.reshape(images, tokens, self.rows, self.columns)
        x = x.transpose(2, 3)
        return x.reshape(images, tokens, self.rows * self.columns)


class Columns(WidthNet):
    prunable: ClassVar = {group('stem', 'head', 4, 2)}
    frozen: ClassVar = {'head': OUTPUT}
    widths: ClassVar = {'shuffle.columns'}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.shuffle = _Columns()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.shuffle(x))


class Generator(WidthNet):
    """A linear layer makes a picture; how many channels is read elsewhere."""

    prunable: ClassVar = {
        group('fc', 'up', 6, 4),
        group('up', 'head', 5),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 24)
        self.up = nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1)
        self.head = conv(5, 4)

    def picture(self, x):
        return x.view(-1, self.up.in_channels, 2, 2)

    def forward(self, x):
        x = self.picture(F.relu(self.fc(x.mean((2, 3)))))
        return self.head(F.relu(self.up(x)))


class GeneratorOfSize(Generator):
    """The number of channels is what is left."""

    def picture(self, x):
        return x.view(len(x), -1, 2, 2)


class GeneratorUnflattened(Generator):
    widths: ClassVar = {'shaped.unflattened_size[0]'}

    def __init__(self):
        super().__init__()
        self.shaped = nn.Unflatten(1, (6, 2, 2))

    def picture(self, x):
        return self.shaped(x)


class Modulated(WidthNet):
    """FiLM: a linear layer behind an embedding scales the channels."""

    prunable: ClassVar = {group('conv film', 'head', 6)}
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.conv, self.head = conv(3, 6), conv(6, 4)
        self.classes, self.film = nn.Embedding(4, 5), nn.Linear(5, 6)

    def forward(self, x):
        scale = self.film(self.classes(torch.arange(len(x))))
        return self.head((self.conv(x) * scale[..., None, None]).relu())


WIDTH_NETS: dict[str, type[WidthNet]] = {
    net.__name__: net
    for net in (
        Hierarchical,
        CrossStage,
        Gated,
        Ghost,
        Halves,
        FromTheEnd,
        Narrowed,
        CalledTwice,
        EqualValues,
        Compared,
        Viewed,
        TwoMeanings,
        FunctionalGroups,
        Heads,
        FusedHeads,
        BiasedHeads,
        StoredHeads,
        MemorisingHeads,
        InputWidth,
        TorchHeads,
        Columns,
        Generator,
        GeneratorOfSize,
        GeneratorUnflattened,
        Modulated,
    )
}
