"""EfficientNet-Lite0 in PyTorch: peer for speed, reference for the import of weights.

Needs PyTorch; this module is imported only where it is installed. Attributes have the names of the
weights' file, so that ``load_state_dict`` checks that it is complete.
"""

import torch
from torch import nn
from torch.nn import functional

from flaxnets.encoders.efficientnet_lite import STAGES


class SameConv(nn.Conv2d):
    """Convolution without bias and with TensorFlow's SAME padding: the odd pixel right, below."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1
    ):
        super().__init__(inputs, outputs, kernel_size, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns feature maps (N,outputs,⌈H/stride⌉,⌈W/stride⌉) of (N,C,H,W)."""
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        pads = [max((-(-n // stride) - 1) * stride + kernel_size - n, 0) for n in x.shape[2:]]
        if any(pads):
            x = functional.pad(
                x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2]
            )
        return functional.conv2d(x, self.weight, None, self.stride, groups=self.groups)


class Block(nn.Module):
    """Inverted bottleneck: ``flaxnets.encoders.efficientnet_lite.InvertedBottleneck``."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel_size: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion != 1
        self.skips = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = SameConv(inputs, hidden, 1)
            self._bn0 = nn.BatchNorm2d(hidden, eps=1e-3)
        self._depthwise_conv = SameConv(hidden, hidden, kernel_size, stride, groups=hidden)
        self._bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self._project_conv = SameConv(hidden, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns feature maps (N,outputs,h,w) of (N,C,H,W)."""
        x = inputs
        if self.expands:
            x = functional.relu6(self._bn0(self._expand_conv(x)))
        x = functional.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return x + inputs if self.skips else x


class TorchEfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks = []
        channels = 32
        for stage in STAGES:
            for i in range(stage.blocks):
                stride = stage.strides if i == 0 else 1
                block = Block(channels, stage.features, stage.expansion, stage.kernel_size, stride)
                blocks.append(block)
                channels = stage.features
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(channels, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns feature maps (N,1280,h,w) of normalised images (N,3,H,W), without ``_fc``."""
        x = functional.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        return functional.relu6(self._bn1(self._conv_head(x)))
