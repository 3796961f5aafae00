"""ConvLSTM and PredRNN that predict frame by frame, in PyTorch, as peers. Needs PyTorch.

Written anew after the structure of OpenSTL's ``ConvLSTM_Model``, ``PredRNN_Model`` and
``PredRNNv2_Model``: separate convolutions of inputs and states, without biases; patches as
channels; a 1×1 convolution to the next frame; the mean squared error of all frames but the first;
Adam. OpenSTL's ConvLSTM cell also owns two convolutions that its forward pass does not use; they
are left out here.

This module is imported only where PyTorch is installed.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from flaxnets.training.config import OptimizerConfig


class ConvLSTMCell(nn.Module):
    """Gates i, f, g, o by one convolution of inputs and one of hidden states; no biases."""

    def __init__(self, channels: int, features: int, kernel_size: int):
        super().__init__()
        self.inputs = _convolution(channels, 4 * features, kernel_size)
        self.hidden = _convolution(features, 4 * features, kernel_size)

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the new hidden state and cell state, (B,F,h,w)."""
        i, f, g, o = (self.inputs(x) + self.hidden(hidden)).chunk(4, 1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class STLSTMCell(nn.Module):
    """ST-LSTM of PredRNN; its input convolution gives i, f, g, i', f', g', o."""

    def __init__(self, channels: int, features: int, kernel_size: int):
        super().__init__()
        self.features = features
        self.inputs = _convolution(channels, 7 * features, kernel_size)
        self.hidden = _convolution(features, 4 * features, kernel_size)
        self.memory = _convolution(features, 3 * features, kernel_size)
        self.output = _convolution(2 * features, features, kernel_size)
        self.projection = _convolution(2 * features, features, 1)

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Returns hidden, cell state, memory, and what was added to the last two, (B,F,h,w)."""
        xi, xf, xg, xi2, xf2, xg2, xo = self.inputs(x).split(self.features, 1)
        hi, hf, hg, ho = self.hidden(hidden).split(self.features, 1)
        mi, mf, mg = self.memory(memory).split(self.features, 1)
        added_cell = torch.sigmoid(xi + hi) * torch.tanh(xg + hg)
        cell = torch.sigmoid(xf + hf + 1.0) * cell + added_cell
        added_memory = torch.sigmoid(xi2 + mi) * torch.tanh(xg2 + mg)
        memory = torch.sigmoid(xf2 + mf + 1.0) * memory + added_memory
        states = torch.cat([cell, memory], 1)
        exposed = torch.sigmoid(xo + ho + self.output(states))
        hidden = exposed * torch.tanh(self.projection(states))
        return hidden, cell, memory, added_cell, added_memory


class FrameNetwork(nn.Module):
    """Stack of cells that reads a frame and predicts the next one.

    Args:
      cell: ``convlstm``, or ``stlstm`` with the zig-zag memory of PredRNN.
      features: widths of the layers, from below; for ``stlstm`` all the same.
      kernel_size: side of the kernels, in patches; odd.
      patch_size: side of a patch, pixels.
      channels: of a frame.
      decoupling: ``stlstm`` only: also returns the decoupling loss.
    """

    def __init__(
        self,
        cell: str,
        features: Sequence[int],
        kernel_size: int,
        patch_size: int,
        channels: int,
        decoupling: bool = False,
    ):
        super().__init__()
        make: Any = {"convlstm": ConvLSTMCell, "stlstm": STLSTMCell}[cell]
        self.cell, self.features, self.patch_size = cell, tuple(features), patch_size
        values = patch_size**2 * channels
        widths = [values, *features]
        self.cells = nn.ModuleList(
            make(below, width, kernel_size)
            for below, width in zip(widths[:-1], features, strict=True)
        )
        self.frames = _convolution(widths[-1], values, 1)
        self.adapter = _convolution(widths[-1], widths[-1], 1) if decoupling else None

    def forward(
        self, frames: torch.Tensor, use_truth: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the predictions of frames 1 to T - 1, and the decoupling loss, else 0.

        Args:
          frames: (B,T,H,W,C) float32.
          use_truth: (B,T-1) bool: the input of step t is the true frame.

        Returns:
          (B,T-1,H,W,C), and () in [0,1], the mean over steps, layers, sequences and channels.
        """
        maps = to_patches(frames, self.patch_size)
        b, steps, _, h, w = maps[:, :-1].shape
        hidden = [maps.new_zeros(b, width, h, w) for width in self.features]
        cells, memory = list(hidden), hidden[0]
        prediction, predictions = maps[:, 0], []
        losses = []
        for t in range(steps):
            keep = use_truth[:, t, None, None, None].to(maps.dtype)
            x = keep * maps[:, t] + (1 - keep) * prediction
            for layer, cell in enumerate(self.cells):
                if self.cell == "convlstm":
                    hidden[layer], cells[layer] = cell(x, hidden[layer], cells[layer])
                else:
                    hidden[layer], cells[layer], memory, *added = cell(
                        x, hidden[layer], cells[layer], memory
                    )
                    if self.adapter is not None:
                        first, second = (self.adapter(each).flatten(2) for each in added)
                        losses.append(
                            functional.cosine_similarity(first, second, dim=2).abs().mean()
                        )
                x = hidden[layer]
            prediction = self.frames(x)
            predictions.append(prediction)
        loss = torch.stack(losses).mean() if losses else maps.new_zeros(())
        return from_patches(torch.stack(predictions, 1), self.patch_size), loss


class TrainingStep:
    """Eager training step on the mean squared error, with Adam.

    Attributes:
      network: the network.

    Args:
      network: the network.
      optimizer: ``adam``, constant or ``onecycle``; no clipping, no decay, no frozen parts.
      num_steps: of the whole training, for the schedule.
      decoupling_weight: of the decoupling loss.

    Raises:
      ValueError: an optimizer that this step does not have.
    """

    def __init__(
        self,
        network: FrameNetwork,
        optimizer: OptimizerConfig,
        num_steps: int,
        decoupling_weight: float = 0.0,
    ):
        if (
            optimizer.name != "adam"
            or optimizer.schedule not in ("constant", "onecycle")
            or optimizer.clip_norm
            or optimizer.weight_decay
            or optimizer.frozen
        ):
            raise ValueError(
                "optimizer: expected adam, constant or onecycle, without clipping, decay and "
                f"frozen parts, received {optimizer}"
            )
        torch.set_num_threads(os.cpu_count() or 1)
        self.network = network.train()
        rate = optimizer.learning_rate
        moments = optimizer.b1, optimizer.b2
        self._optimizer = torch.optim.Adam(network.parameters(), rate, moments)
        self._schedule: Any = None
        if optimizer.schedule == "onecycle":
            self._schedule = torch.optim.lr_scheduler.OneCycleLR(
                self._optimizer,
                max_lr=rate,
                total_steps=num_steps,
                pct_start=optimizer.rise_share,
                cycle_momentum=optimizer.cycle_momentum,
                final_div_factor=1e4,
            )
        self._weight = decoupling_weight

    def loss(self, frames: torch.Tensor, use_truth: torch.Tensor) -> torch.Tensor:
        """Returns the loss of frames (B,T,H,W,C) in [0,1], as ``FrameNetwork`` reads them."""
        predictions, decoupling = self.network(frames, use_truth)
        return functional.mse_loss(predictions, frames[:, 1:]) + self._weight * decoupling

    def __call__(self, frames: torch.Tensor, use_truth: torch.Tensor) -> float:
        """Takes one step and returns its loss."""
        self._optimizer.zero_grad()
        loss = self.loss(frames, use_truth)
        loss.backward()
        self._optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
        return float(loss.detach())


def to_patches(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Returns frames (B,T,H,W,C) as patches (B,T,p²C,H/p,W/p)."""
    b, t, h, w, c = frames.shape
    blocks = frames.reshape(b, t, h // size, size, w // size, size, c)
    return blocks.permute(0, 1, 3, 5, 6, 2, 4).reshape(b, t, -1, h // size, w // size)


def from_patches(patches: torch.Tensor, size: int) -> torch.Tensor:
    """Returns patches (B,T,p²C,h,w) as frames (B,T,ph,pw,C)."""
    b, t, values, h, w = patches.shape
    blocks = patches.reshape(b, t, size, size, values // size**2, h, w)
    return blocks.permute(0, 1, 5, 2, 6, 3, 4).reshape(b, t, h * size, w * size, -1)


def load_flax(network: FrameNetwork, params: Mapping[str, Any]) -> None:
    """Copies the parameters of our ``NextFrameForecaster`` into the network.

    Args:
      network: of the same sizes.
      params: ``stack`` with ``cells_i``, without biases, and ``output_kernel``.
    """
    stack = params["stack"]
    tensors = {"frames.weight": _to_torch(params["output_kernel"])}
    for layer, features in enumerate(network.features):
        own = stack[f"cells_{layer}"]
        kernel = np.asarray(own["input_kernel"])
        if network.cell == "stlstm":  # Ours gives i, f, g, o, i', f', g'.
            i, f, g, o, *rest = np.split(kernel, kernel.shape[-1] // features, axis=-1)
            kernel = np.concatenate([i, f, g, *rest, o], axis=-1)
        tensors[f"cells.{layer}.inputs.weight"] = _to_torch(kernel)
        for name in ("hidden", "memory", "output", "projection"):
            if f"{name}_kernel" in own:
                tensors[f"cells.{layer}.{name}.weight"] = _to_torch(own[f"{name}_kernel"])
    if network.adapter is not None:
        tensors["adapter.weight"] = _to_torch(stack["adapter_kernel"])
    network.load_state_dict(tensors)


def _to_torch(kernel: Any) -> torch.Tensor:
    """Returns a kernel (h,w,C,D), or (C,D), as PyTorch's (D,C,h,w)."""
    array = np.array(kernel, np.float32)
    array = array[None, None] if array.ndim == 2 else array
    return torch.tensor(array.transpose(3, 2, 0, 1))


def _convolution(channels: int, features: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(channels, features, kernel_size, padding=kernel_size // 2, bias=False)
