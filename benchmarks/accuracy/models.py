"""The networks of the CIFAR-10 experiments."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.functional import relu


class Block(BaseModule):
    """Two convolutions and a shortcut.

    Where the resolution changes, the shortcut of the public weights has no
    parameters: every other pixel, and zeros for the new channels (option A of
    He et al.). Here it is a convolution that does the same at first, so that
    its channels can be removed.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            # without a stride of its own: with less than eight inputs that
            # are last in memory, oneDNN's gradient of strided 1x1
            # convolutions writes past its memory
            # (github.com/uxlfoundation/oneDNN/issues/6035)
            self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
            first = (outputs - inputs) // 2
            with torch.no_grad():
                self.shortcut.weight.zero_()
                self.shortcut.weight[first : first + inputs, :, 0, 0] = (
                    torch.eye(inputs)
                )

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        x = self.shortcut(x[..., :: self.stride, :: self.stride])
        return relu(self.bn2(self.conv2(out)) + x)


@MODELS.register_module()
class CifarResNet(BaseModule):
    """ResNet-20, 32, 44, 56 or 110 for 32x32 images (He et al., 2016, 4.2).

    Names are those of the public weights for CIFAR-10.

    Args:
        depth (int): Layers; 6 n + 2.
    """

    def __init__(self, depth: int, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for i, width in enumerate((16, 32, 64), 1):
            blocks = []
            for n in range((depth - 2) // 6):
                stride = 2 if n == 0 and i > 1 else 1
                blocks.append(Block(channels, width, stride))
                channels = width
            self.add_module(f'layer{i}', nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return (x,)
