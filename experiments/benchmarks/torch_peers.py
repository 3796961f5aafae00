"""Recurrent layers and the video network in PyTorch, as peers. Needs PyTorch.

This module is imported only where PyTorch is installed. Arrays are channels-last, as everywhere in
this repository.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks.timing import Step


class ConvLSTM(nn.Module):
    """``flaxnets.recurrent.convolutional_cells.ConvLSTMCell`` in a loop; inputs are hoisted."""

    def __init__(self, channels: int, features: int, kernel_size: int):
        super().__init__()
        self.features, padding = features, kernel_size // 2
        self.inputs = nn.Conv2d(channels, 4 * features, kernel_size, padding=padding)
        self.hidden = nn.Conv2d(features, 4 * features, kernel_size, padding=padding, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Returns the outputs (B,T,F,H,W) of inputs (B,T,C,H,W), and None as a state."""
        b, t, _, h, w = x.shape
        projected = self.inputs(x.flatten(0, 1)).unflatten(0, (b, t))
        hidden = cell = x.new_zeros(b, self.features, h, w)
        outputs = []
        for step in range(t):
            i, f, g, o = (projected[:, step] + self.hidden(hidden)).chunk(4, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs, 1), None


class Block(nn.Module):
    """Residual block of two 3×3 convolutions: ``flaxnets.encoders.resnet.BasicBlock``."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut: Any = None
        if stride != 1 or inputs != features:
            conv = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns feature maps (N,features,H/stride,W/stride) of (N,C,H,W)."""
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu_(y + (x if self.shortcut is None else self.shortcut(x)))


class VideoNetwork(nn.Module):
    """ResNet-18 of each frame, mean over space, an LSTM, logits averaged over time."""

    def __init__(self, features: int, num_classes: int):
        super().__init__()
        stem = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        layers = [stem, nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
        width = 64
        for stage in range(4):
            layers.append(Block(width, 64 * 2**stage, 2 if stage else 1))
            width = 64 * 2**stage
            layers.append(Block(width, width, 1))
        self.encoder = nn.Sequential(*layers)
        self.recurrent = nn.LSTM(512, features, batch_first=True)
        self.classes = nn.Linear(features, num_classes)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Returns the logits (B,num_classes) of a video (B,T,3,H,W)."""
        maps = self.encoder(video.flatten(0, 1))
        frames = maps.mean((2, 3)).unflatten(0, video.shape[:2])
        logits: torch.Tensor = self.classes(self.recurrent(frames)[0]).mean(1)
        return logits


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "lstm": lambda d, f: nn.LSTM(d, f, batch_first=True),
    "gru": lambda d, f: nn.GRU(d, f, batch_first=True),
    "elman": lambda d, f: nn.RNN(d, f, batch_first=True),
    "convlstm": lambda c, f, kernel_size: ConvLSTM(c, f, kernel_size),
}
"""Constructors of the layers, called with the widths of inputs and outputs."""


def make_layer_step(name: str, x: np.ndarray, features: int, train: bool, **kwargs: Any) -> Step:
    """Returns a forward pass, or the gradients by parameters and inputs.

    Args:
      name: key of ``LAYERS``.
      x: (B,T,D) or (B,T,H,W,C) float32.
      features: width of the layer.
      train: whether gradients are computed.
      **kwargs: further arguments of the layer.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    layer = LAYERS[name](x.shape[-1], features, **kwargs)
    if x.ndim == 5:
        x = np.ascontiguousarray(np.moveaxis(x, -1, 2))
    inputs = torch.tensor(x, requires_grad=train)

    def step() -> object:
        if not train:
            with torch.inference_mode():
                return layer(inputs)[0]
        layer.zero_grad()
        inputs.grad = None
        layer(inputs)[0].square().sum().backward()
        return inputs.grad

    return step


def make_network_step(
    video: np.ndarray, labels: np.ndarray, features: int, num_classes: int, rate: float
) -> Step:
    """Returns the training step of ``VideoNetwork``, eager, channels-last, SGD with momentum 0.9.

    Args:
      video: (B,T,H,W,3) float32.
      labels: (B,) int.
      features: width of the LSTM.
      num_classes: number of classes.
      rate: learning rate.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    network = VideoNetwork(features, num_classes).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9)
    # The array is channels-last in memory, so the permutation copies nothing.
    inputs, targets = torch.tensor(video).permute(0, 1, 4, 2, 3), torch.tensor(labels)

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(inputs), targets)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
