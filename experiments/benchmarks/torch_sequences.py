"""Language and music models and temporal convolutional networks in PyTorch. Needs PyTorch.

This module is imported only where PyTorch is installed.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from experiments.benchmarks.timing import Step
from flaxnets.models.sequence_model import SequenceModelConfig
from flaxnets.training.config import OptimizerConfig


class StepNetwork(nn.Module):
    """Embedding, ``nn.LSTM`` and a linear layer, as ``flaxnets.models.sequence_model``.

    Args:
      config: the network.
      num_outputs: K.
      num_tokens: V, of inputs that are tokens; 0: they are values, as many as outputs.
    """

    def __init__(self, config: SequenceModelConfig, num_outputs: int, num_tokens: int):
        super().__init__()
        width, recurrent = config.embedding_features, config.recurrent
        self.embedding = nn.Embedding(num_tokens, width) if num_tokens else None
        self.inputs = nn.Dropout(config.dropout_rate)
        self.recurrent = nn.LSTM(
            width if num_tokens else num_outputs,
            recurrent.features,
            recurrent.num_layers,
            batch_first=True,
            dropout=recurrent.dropout_rate,
        )
        self.outputs = nn.Dropout(config.head.dropout_rate)
        self.scores = nn.Linear(recurrent.features, num_outputs)

    def forward(self, x: torch.Tensor, carry: Any) -> tuple[torch.Tensor, Any]:
        """Returns logits (B,T,K) and the new carry."""
        if self.embedding is not None:
            x = self.embedding(x)
        x, carry = self.recurrent(self.inputs(x), carry)
        return self.scores(self.outputs(x)), carry


class TCNBlock(nn.Module):
    """Block of ``flaxnets.encoders.tcn.TCN``: two causal convolutions beside a skip connection."""

    def __init__(self, channels: int, features: int, kernel_size: int, dilation: int):
        super().__init__()

        def conv(channels: int) -> nn.Module:
            padding = (kernel_size - 1) * dilation
            layer = nn.Conv1d(channels, features, kernel_size, padding=padding, dilation=dilation)
            return weight_norm(layer)

        self.convs = nn.ModuleList([conv(channels), conv(features)])
        self.skip = nn.Identity() if channels == features else nn.Conv1d(channels, features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (B,F,T) for (B,D,T)."""
        y = x
        for conv in self.convs:
            # What the padding after the last step adds is cut off, as in the study's code.
            y = torch.relu(conv(y)[..., : x.shape[-1]])
        return torch.relu(y + self.skip(x))


def make_tcn(channels: int, features: Sequence[int], kernel_size: int) -> nn.Sequential:
    """Returns ``flaxnets.encoders.tcn.TCN`` as a network of (B,D,T)."""
    widths = (channels, *features)
    blocks = zip(widths, features, strict=False)
    return nn.Sequential(*(TCNBlock(d, f, kernel_size, 2**i) for i, (d, f) in enumerate(blocks)))


def make_tcn_step(x: np.ndarray, features: Sequence[int], kernel_size: int) -> Step:
    """Returns the gradients of ``make_tcn``, of parameters and of the inputs (B,T,D)."""
    torch.set_num_threads(os.cpu_count() or 1)
    inputs = torch.tensor(x).transpose(1, 2).contiguous().requires_grad_()
    network = make_tcn(x.shape[-1], features, kernel_size)

    def step() -> None:
        network.zero_grad()
        inputs.grad = None
        network(inputs).square().sum().backward()

    return step


class TrainingStep:
    """Eager training step of truncated back-propagation; each call continues from the last.

    Attributes:
      network: the network.

    Args:
      network: as ``StepNetwork``.
      batch: as ``experiments.benchmarks.sequences.draw_tokens`` or ``draw_rolls``.
      optimizer: the hyper-parameters; ``sgd`` or ``adam``.
    """

    def __init__(
        self, network: StepNetwork, batch: Mapping[str, np.ndarray], optimizer: OptimizerConfig
    ):
        torch.set_num_threads(os.cpu_count() or 1)
        self.network = network.train()
        rate = optimizer.learning_rate
        self._optimizer: torch.optim.Optimizer
        if optimizer.name == "sgd":
            self._optimizer = torch.optim.SGD(network.parameters(), rate, fused=True)
        else:
            self._optimizer = torch.optim.Adam(network.parameters(), rate, fused=True)
        self._clip_norm = optimizer.clip_norm
        tokens = "tokens" in batch
        self._inputs = torch.tensor(batch["tokens" if tokens else "inputs"])
        self._targets = torch.tensor(batch["targets"])
        if tokens:
            self._inputs, self._targets = self._inputs.long(), self._targets.long()
        self._carry: Any = None

    def loss(self) -> torch.Tensor:
        """Returns the loss of the batch, nats a step, and keeps the carry."""
        logits, carry = self.network(self._inputs, self._carry)
        self._carry = tuple(state.detach() for state in carry)
        if self._targets.dtype == torch.long:
            return functional.cross_entropy(logits.flatten(0, 1), self._targets.flatten())
        total = functional.binary_cross_entropy_with_logits(logits, self._targets, reduction="sum")
        return total / self._targets[..., 0].numel()

    def __call__(self) -> float:
        """Takes one step and returns its loss."""
        self._optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_norm)
        self._optimizer.step()
        return float(loss.detach())


def make_step(
    batch: Mapping[str, np.ndarray],
    config: SequenceModelConfig,
    optimizer: OptimizerConfig,
    num_outputs: int,
    num_tokens: int,
) -> Step:
    """Returns the training step of ``StepNetwork``; arguments as there and of ``TrainingStep``."""
    return TrainingStep(StepNetwork(config, num_outputs, num_tokens), batch, optimizer)
