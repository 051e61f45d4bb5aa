"""Small networks of what detectors do; as in ``nets``.

Features of regions, kernels at computed positions, compiled operations and
rows that are picked by what was computed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from mmcv.ops import DeformConv2d, ModulatedDeformConv2dPack, RoIAlign
from mmcv.ops.multi_scale_deform_attn import (
    multi_scale_deformable_attn_pytorch,
)
from nets import OUTPUT, Net, conv, group
from nets_widths import WidthNet
from torch import Tensor, nn
from torchvision.ops import DeformConv2d as TorchDeformConv2d
from torchvision.ops import MultiScaleRoIAlign, roi_align

POSITIONS = 'offsets, positions or masks that'

# (image, left, top, right, bottom) in pixels; an image has several
ROIS = torch.tensor(
    [
        [0.0, 0.0, 0.0, 15.0, 15.0],
        [0.0, 2.0, 3.0, 9.0, 12.0],
        [0.0, 1.0, 5.0, 4.0, 8.0],
        [1.0, 4.0, 4.0, 14.0, 14.0],
        [1.0, 6.0, 2.0, 10.0, 5.0],
    ]
)


# -- regions -----------------------------------------------------------------


class _Crops(nn.Module):
    def forward(self, x, rois):
        return roi_align(x, rois, 7)


class Regions(Net):
    """Torchvision's RoIAlign: 49 inputs of the linear layer per channel."""

    prunable: ClassVar = {
        group('stem', 'fc1', 8),
        group('fc1', 'fc2', 10),
    }
    frozen: ClassVar = {'fc2': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.extract = _Crops()
        self.fc1 = nn.Linear(8 * 49, 10)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x):
        x = self.extract(F.relu(self.stem(x)), ROIS)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class _Levels(nn.Module):
    """Features of every RoI from one level, as in MMDetection."""

    def __init__(self, strides, out_channels):
        super().__init__()
        self.out_channels = out_channels
        self.layers = nn.ModuleList(RoIAlign(7, 1 / s, 0) for s in strides)

    def forward(self, feats, rois):
        out = feats[0].new_zeros(len(rois), self.out_channels, 7, 7)
        sides = (rois[:, 3:] - rois[:, 1:3]).prod(1).sqrt()
        levels = torch.floor(torch.log2(sides / 3)).clamp(0, 2).long()
        levels[levels == 1] = 2
        for i, layer in enumerate(self.layers):
            inds = (levels == i).nonzero(as_tuple=False).squeeze(1)
            if inds.numel() > 0:
                out[inds] = layer(feats[i], rois[inds])
            else:  # this level has no boxes
                out += feats[i].sum() * 0.0
        return out


class RegionPyramid(WidthNet):
    """RoIs of three levels, written by level into a fresh tensor.

    The level without RoIs has the same channels, as a dense head tells.
    """

    prunable: ClassVar = {
        group('c1', 'c2 out.0', 6),
        group('c2', 'c3 out.1', 6),
        group('c3', 'out.2', 6),
        group('out.0 out.1 out.2', 'dense fc1', 8),
        group('fc1', 'cls reg', 10),
    }
    frozen: ClassVar = {'dense': OUTPUT, 'cls': OUTPUT, 'reg': OUTPUT}
    widths: ClassVar = {'extract.out_channels'}

    def __init__(self):
        super().__init__()
        self.c1 = conv(3, 6)
        self.c2 = conv(6, 6, stride=2)
        self.c3 = conv(6, 6, stride=2)
        self.out = nn.ModuleList(conv(6, 8, 1) for _ in range(3))
        self.dense = conv(8, 2, 1)
        self.extract = _Levels((1, 2, 4), 8)
        self.fc1 = nn.Linear(8 * 49, 10)
        self.cls = nn.Linear(10, 3)
        self.reg = nn.Linear(10, 8)

    def forward(self, x):
        c1 = F.relu(self.c1(x))
        c2 = F.relu(self.c2(c1))
        c3 = F.relu(self.c3(c2))
        feats = [layer(c) for layer, c in zip(self.out, (c1, c2, c3))]
        dense = self.everywhere(feats)
        x = F.relu(self.fc1(self.extract(feats, ROIS).flatten(1)))
        return dense, self.cls(x), self.reg(x)

    def everywhere(self, feats):
        return [self.dense(level) for level in feats]


class LevelWithoutRegions(RegionPyramid):
    """Nothing tells that the level without RoIs has the same channels."""

    prunable: ClassVar = {
        group('c1', 'c2 out.0', 6),
        group('c2', 'c3 out.1', 6),
        group('c3', 'out.2', 6),
        group('fc1', 'cls reg', 10),
    }
    frozen: ClassVar = {
        'out.0': 'extract may be given other channels than it was',
        'out.1': 'extract may be given other channels than it was',
    }
    widths: ClassVar = set()

    def everywhere(self, feats):
        return []


class RegionLists(Net):
    """Torchvision's way: a dict of levels and a list of boxes per image."""

    prunable: ClassVar = {
        group('c1', 'c2 out.0', 6),
        group('c2', 'out.1', 5),
        group('out.0 out.1', 'fc', 8),
    }
    frozen: ClassVar = {'fc': OUTPUT}

    def __init__(self):
        super().__init__()
        self.c1 = conv(3, 6)
        self.c2 = conv(6, 5, stride=2)
        self.out = nn.ModuleList([conv(6, 8, 1), conv(5, 8, 1)])
        self.extract = MultiScaleRoIAlign(
            ['0', '1'], 3, 2, canonical_scale=8, canonical_level=1
        )
        self.fc = nn.Linear(8 * 9, 4)

    def forward(self, x):
        c1 = F.relu(self.c1(x))
        feats = {
            '0': self.out[0](c1),
            '1': self.out[1](F.relu(self.c2(c1))),
        }
        boxes = [ROIS[ROIS[:, 0] == i, 1:] for i in range(len(x))]
        return self.fc(self.extract(feats, boxes, [(16, 16)] * 2).flatten(1))


# -- deformable convolution --------------------------------------------------


class Deformable(Net):
    """A branch computes where the kernel reads: its outputs must stay."""

    prunable: ClassVar = {
        group('stem', 'offset dcn', 8),
        group('dcn', 'head', 6),
    }
    frozen: ClassVar = {'offset': POSITIONS, 'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.offset = conv(8, 18)
        self.dcn = DeformConv2d(8, 6, 3, padding=1)
        self.head = conv(6, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.dcn(x, self.offset(x))))


class DeformableGroups(Deformable):
    """Convolution groups {01} {23} {45} {67}, positions {0123} {4567}.

    The two parts lose in step, so the first group goes with the third.
    """

    prunable: ClassVar = {group('stem dcn', 'offset dcn head', 2, 4)}

    def __init__(self):
        super().__init__()
        self.offset = conv(8, 36)
        self.dcn = DeformConv2d(8, 12, 3, padding=1, groups=4, deform_groups=2)
        self.head = conv(12, 5)


class Modulated(Net):
    """Version 2, with masks, as a layer that has its own branch."""

    prunable: ClassVar = {
        group('stem', 'dcn.conv_offset dcn', 4, 2),
        group('dcn', 'head', 6),
    }
    frozen: ClassVar = {'dcn.conv_offset': POSITIONS, 'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.dcn = ModulatedDeformConv2dPack(
            8, 6, 3, padding=1, deform_groups=2
        )
        self.head = conv(6, 5)

    def forward(self, x):
        return self.head(F.relu(self.dcn(F.relu(self.stem(x)))))


class TorchDeformable(Net):
    """Torchvision's, with a bias, masks and convolution groups."""

    prunable: ClassVar = {group('stem dcn', 'offset mask dcn head', 4, 2)}
    frozen: ClassVar = {
        'offset': POSITIONS,
        'mask': POSITIONS,
        'head': OUTPUT,
    }

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.offset = conv(8, 18)
        self.mask = conv(8, 9)
        self.dcn = TorchDeformConv2d(8, 12, 3, padding=1, groups=4)
        self.head = conv(12, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.dcn(x, self.offset(x), self.mask(x).sigmoid())
        return self.head(F.relu(x))


# -- compiled operations -----------------------------------------------------


class Compiled(torch.autograd.Function):
    """What the dispatcher does not see: negates, channel by channel."""

    @staticmethod
    def forward(context, x):
        return torch.from_numpy(-x.detach().numpy())

    @staticmethod
    def backward(context, gradient):
        return -gradient


class CompiledOperation(Net):
    """Without a rule: what goes in and what comes out must stay."""

    prunable: ClassVar = {group('conv1', 'conv2', 8)}
    frozen: ClassVar = {
        'conv2': 'goes through the compiled operation Compiled in',
        'conv3': OUTPUT,
    }
    operation: ClassVar = Compiled

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.conv2 = conv(8, 6)
        self.conv3 = conv(6, 5)

    def forward(self, x):
        x = self.conv2(F.relu(self.conv1(x)))
        return self.conv3(self.operation.apply(x))


class Swish(torch.autograd.Function):
    """Made of operations that the dispatcher sees, to save memory."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        y = x.sigmoid()
        return gradient * (y + x * y * (1 - y))


class VisibleOperation(CompiledOperation):
    prunable: ClassVar = {
        group('conv1', 'conv2', 8),
        group('conv2', 'conv3', 6),
    }
    frozen: ClassVar = {'conv3': OUTPUT}
    operation: ClassVar = Swish


class CARAFEFunction(torch.autograd.Function):
    """As mmcv's, which has no kernel for CPUs: here of visible operations."""

    @staticmethod
    def forward(
        context, features, masks, kernel_size, group_size, scale_factor
    ):
        context.settings = kernel_size, group_size, scale_factor
        context.save_for_backward(features, masks)
        return _reassemble(features, masks, *context.settings)

    @staticmethod
    def backward(context, gradient):
        tensors = [t.detach().requires_grad_() for t in context.saved_tensors]
        with torch.enable_grad():
            out = _reassemble(*tensors, *context.settings)
        gradients = torch.autograd.grad(out, tensors, gradient)
        return *gradients, None, None, None


def _reassemble(features: Tensor, masks: Tensor, k: int, g: int, s: int):
    """Each output pixel is a weighted mean of k x k input pixels."""
    n, c, h, w = features.shape
    pixels = F.unfold(features, k, padding=k // 2).view(n, c * k * k, h, w)
    pixels = F.interpolate(pixels, scale_factor=s, mode='nearest')
    pixels = pixels.view(n, g, c // g, k * k, h * s, w * s)
    masks = masks.view(n, g, 1, k * k, h * s, w * s)
    return (pixels * masks).sum(3).view(n, c, h * s, w * s)


class Reassembly(Net):
    """CARAFE: kernels that one branch computes, in two groups of channels."""

    prunable: ClassVar = {
        group('stem', 'kernels features', 8),
        group('features', 'head', 3, 2),
    }
    frozen: ClassVar = {'kernels': 'positions or', 'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.kernels = conv(8, 2 * 9 * 4)
        self.features = conv(8, 6)
        self.head = conv(6, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        kernels = F.pixel_shuffle(self.kernels(x), 2).sigmoid()
        x = CARAFEFunction.apply(self.features(x), kernels, 3, 2, 2)
        return self.head(x)


class MaskedConv2dFunction(torch.autograd.Function):
    """As mmcv's, which has no kernel for CPUs."""

    @staticmethod
    def forward(context, features, mask, weight, bias, padding=0, stride=1):
        context.save_for_backward(features, mask, weight)
        out = F.conv2d(features, weight, bias, stride, padding)
        return out * (mask > 0).to(out)

    @staticmethod
    def backward(context, gradient):
        features, mask, weight = context.saved_tensors
        gradient = gradient * (mask > 0).to(gradient)
        return (
            torch.nn.grad.conv2d_input(
                features.shape, weight, gradient, padding=1
            ),
            None,
            torch.nn.grad.conv2d_weight(
                features, weight.shape, gradient, padding=1
            ),
            gradient.sum((0, 2, 3)),
            None,
            None,
        )


class _MaskedConv2d(nn.Conv2d):
    def forward(self, x, mask):
        return MaskedConv2dFunction.apply(
            x, mask, self.weight, self.bias, self.padding
        )


class MaskedConvolution(Net):
    """A convolution where another branch says so (guided anchoring)."""

    prunable: ClassVar = {
        group('stem', 'where masked', 8),
        group('masked', 'head', 6),
    }
    frozen: ClassVar = {'head': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.where = conv(8, 1, 1)
        self.masked = _MaskedConv2d(8, 6, 3, padding=1)
        self.head = conv(6, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        where = self.where(x)
        mask = where.detach().sigmoid() > 0.5
        return self.head(self.masked(x, mask)), where


class SampledAttention(Net):
    """Deformable attention: two heads read where the queries say.

    Both lose the same channels. Here of the operations that mmcv has for
    CPUs, which read with ``grid_sample``.
    """

    prunable: ClassVar = {
        group('stem', 'value places weights', 8),
        group('value', 'out', 4, 2),
    }
    frozen: ClassVar = {'places': POSITIONS, 'weights': '', 'out': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.value = nn.Linear(8, 8)
        self.places = nn.Linear(8, 2 * 3 * 2)
        self.weights = nn.Linear(8, 2 * 3)
        self.out = nn.Linear(8, 5)

    def attend(self, value, sizes, places, weights):
        return multi_scale_deformable_attn_pytorch(
            value, sizes, places, weights
        )

    def forward(self, x):
        x = F.relu(self.stem(x))
        n, _, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        value = self.value(x).view(n, h * w, 2, -1)
        places = self.places(x).view(n, h * w, 2, 1, 3, 2).sigmoid()
        weights = self.weights(x).view(n, h * w, 2, 3).softmax(-1)
        x = self.attend(
            value,
            torch.tensor([[h, w]]),
            places,
            weights.view(n, h * w, 2, 1, 3),
        )
        return self.out(x)


class MultiScaleDeformableAttnFunction(torch.autograd.Function):
    """As mmcv's compiled one, which has no kernel for CPUs."""

    @staticmethod
    def forward(
        context,
        value,
        value_spatial_shapes,
        value_level_start_index,
        sampling_locations,
        attention_weights,
        im2col_step,
    ):
        tensors = value, sampling_locations, attention_weights
        context.save_for_backward(value_spatial_shapes, *tensors)
        return multi_scale_deformable_attn_pytorch(
            value, value_spatial_shapes, *tensors[1:]
        )

    @staticmethod
    def backward(context, gradient):
        sizes, *tensors = context.saved_tensors
        tensors = [t.detach().requires_grad_() for t in tensors]
        with torch.enable_grad():
            out = multi_scale_deformable_attn_pytorch(
                tensors[0], sizes, *tensors[1:]
            )
        value, *others = torch.autograd.grad(out, tensors, gradient)
        return value, None, None, *others, None


class CompiledAttention(SampledAttention):
    """By the rule for the compiled operation."""

    frozen: ClassVar = {
        'places': 'positions or weights',
        'weights': '',
        'out': OUTPUT,
    }

    def attend(self, value, sizes, places, weights):
        return MultiScaleDeformableAttnFunction.apply(
            value, sizes, torch.tensor([0]), places, weights, 64
        )


# -- rows that are picked ----------------------------------------------------


class PickedRows(Net):
    """The best positions of all: their channels are channels still."""

    prunable: ClassVar = {
        group('stem', 'score features', 8),
        group('features', 'hidden', 6),
        group('hidden', 'out', 7),
    }
    frozen: ClassVar = {'out': OUTPUT}

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.score = conv(8, 1)
        self.features = conv(8, 6)
        self.hidden = nn.Linear(6, 7)
        self.out = nn.Linear(7, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        score = self.score(x).flatten(1)
        x = self.features(x).flatten(2).transpose(1, 2)
        rows = score.topk(5)[1]
        x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))
        return self.out(F.relu(self.hidden(x))), score


class PickedChannels(Net):
    """Some channels of each batch: which these are, differs."""

    prunable: ClassVar = {group('stem', 'scored picked best', 8)}
    frozen: ClassVar = {
        'scored': 'picked by computed positions',
        'picked': 'picked by computed positions',
        'best': 'topk over these channels',
        'head': OUTPUT,
    }

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.scored = conv(8, 6)
        self.picked = conv(8, 6)
        self.best = conv(8, 4)
        self.head = conv(4, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.picked(x)
        scores = self.scored(x).sigmoid() + y
        y = y[:, scores.mean((0, 2, 3)) > -9].mean(1, keepdim=True)
        return self.head(self.best(x).topk(4, 1)[0] + y)


class ImageMask(Net):
    """What is the same for all channels does not freeze them."""

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
        mask = (x.mean(1, keepdim=True) > 0).to(x)  # (N, 1, H, W)
        y = self.conv1(x) * mask
        y = self.conv2(y).masked_fill(mask == 0, 0.0) + x[:, :1]
        return self.conv3(y)


DETECTION_NETS: dict[str, type[Net]] = {
    net.__name__: net
    for net in (
        Regions,
        RegionPyramid,
        LevelWithoutRegions,
        RegionLists,
        Deformable,
        DeformableGroups,
        Modulated,
        TorchDeformable,
        CompiledOperation,
        VisibleOperation,
        Reassembly,
        MaskedConvolution,
        SampledAttention,
        CompiledAttention,
        PickedRows,
        PickedChannels,
        ImageMask,
    )
}
