"""The CRNN for lines of text in PyTorch, as a peer. Needs PyTorch.

This module is imported only where PyTorch is installed.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks.timing import Step


class Lines(nn.Module):
    """``flaxnets.encoders.vgg.CRNNVGG``, bidirectional LSTMs and a linear layer.

    Args:
      features: channels of the four stages.
      batch_norm: whether every convolution is followed by BatchNorm, not only the paper's two.
      height: of the lines, pixels.
      hidden: width of each LSTM.
      projection: width of the linear layer between the LSTMs; 0: none.
      num_classes: K, the blank included.
      dropout_rate: between the LSTMs, and before the linear layer.
    """

    def __init__(
        self,
        features: Sequence[int],
        batch_norm: bool,
        height: int,
        hidden: int,
        projection: int,
        num_classes: int,
        dropout_rate: float,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        width = 1

        def convolve(channels: int, kernel_size: Any, padding: Any, norm: bool) -> None:
            nonlocal width
            layers.append(nn.Conv2d(width, channels, kernel_size, padding=padding, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU(inplace=True))
            width = channels

        for stage, channels in enumerate(features):
            for _ in range(1 if stage < 2 else 2):
                convolve(channels, 3, 1, batch_norm or stage == 3)
            layers.append(nn.MaxPool2d((2, 2) if stage < 2 else (2, 1)))
        layers.append(nn.ZeroPad2d((0, 1, 0, 0)))
        convolve(features[-1], (height // 16, 2), 0, batch_norm)
        self.encoder = nn.Sequential(*layers)
        self.recurrent = nn.LSTM(
            width,
            hidden,
            num_layers=1 if projection else 2,
            bidirectional=True,
            batch_first=True,
            dropout=0.0 if projection else dropout_rate,
        )
        self.dropout = nn.Dropout(dropout_rate)
        self.projection = self.upper = None
        if projection:
            self.projection = nn.Linear(2 * hidden, projection)
            self.upper = nn.LSTM(projection, hidden, bidirectional=True, batch_first=True)
        self.classes = nn.Linear(2 * hidden, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits (B,S,K) of lines (B,1,H,W) uint8."""
        maps = self.encoder((images.float() - 127.5) / 127.5)  # (B,D,1,S)
        hidden = self.recurrent(maps[:, :, 0].transpose(1, 2))[0]
        if self.projection is not None and self.upper is not None:
            hidden = self.upper(self.dropout(self.projection(hidden)))[0]
        logits: torch.Tensor = self.classes(self.dropout(hidden))
        return logits


class TrainingStep:
    """Eager training step with clipping and AdamW; each call continues from the last.

    Attributes:
      network: the network, in the memory format ``channels_last``, the faster one here.

    Args:
      network: as ``Lines``.
      batch: as ``experiments.benchmarks.lines.draw_batch``.
      rate: learning rate.
      weight_decay: of matrices and kernels.
      clip_norm: largest global norm of the gradient.
    """

    def __init__(
        self,
        network: Lines,
        batch: Mapping[str, np.ndarray],
        rate: float,
        weight_decay: float,
        clip_norm: float,
    ):
        torch.set_num_threads(os.cpu_count() or 1)
        self.network = network.train().to(memory_format=torch.channels_last)
        parameters = list(network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, rate, fused=True)
        self._clip_norm = clip_norm
        images, *rest = (
            torch.tensor(batch[name]) for name in ("image", "tokens", "lengths", "token_lengths")
        )
        self._images = images.permute(0, 3, 1, 2)
        self._tokens, lengths, self._counts = (values.long() for values in rest)
        self._steps = -(-lengths // 4)

    def loss(self) -> torch.Tensor:
        """Returns the loss of the batch, nats per character."""
        log_probs = functional.log_softmax(self.network(self._images), -1).transpose(0, 1)
        losses = functional.ctc_loss(
            log_probs, self._tokens, self._steps, self._counts, reduction="sum", zero_infinity=True
        )
        return losses / self._counts.sum()

    def __call__(self) -> float:
        """Takes one step and returns its loss."""
        self._optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_norm)
        self._optimizer.step()
        return float(loss.detach())


def make_step(batch: Mapping[str, np.ndarray], **options: Any) -> Step:
    """Returns the training step of ``Lines``.

    Args:
      batch: as for ``TrainingStep``.
      **options: of ``Lines`` and ``TrainingStep``.
    """
    of_step = {name: options.pop(name) for name in ("rate", "weight_decay", "clip_norm")}
    return TrainingStep(Lines(**options), batch, **of_step)
