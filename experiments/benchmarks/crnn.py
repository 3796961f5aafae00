"""Training step of ResNet-18 + LSTM on video, against plain Flax and PyTorch.

A step is forward pass, backward pass and SGD with momentum, with updates of the batch statistics.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.timing import Case, Step
from flaxnets.encoders.resnet import ResNet
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.typing import Array, PyTree

NUM_CLASSES = 10
RATE = 1e-3


class Network(nn.Module):
    """Feature maps of each frame, mean over space, a recurrent layer, logits averaged over time.

    Attributes:
      encode: module from images (N,H,W,3) to feature maps (N,h,w,C).
      recurrent: module from (B,T,C) to (B,T,F).
    """

    encode: Callable[[Array], Any]
    recurrent: Callable[[Array], Any]

    @nn.compact
    def __call__(self, video: Array) -> Array:
        """Returns the logits (B,NUM_CLASSES) of a video (B,T,H,W,3)."""
        b, t = video.shape[:2]
        maps = self.encode(video.reshape(b * t, *video.shape[2:]))
        hidden = self.recurrent(maps.mean((1, 2)).reshape(b, t, -1))
        return nn.Dense(NUM_CLASSES)(hidden).mean(1)


class OurEncoder(nn.Module):
    """``flaxnets.encoders.resnet.ResNet`` of depth 18 with its defaults."""

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Returns feature maps (N,h,w,512) of images (N,H,W,3)."""
        maps: Any = ResNet(depth=18)(images, train=True)
        return maps


class OurLSTM(nn.Module):
    """``flaxnets.recurrent.layers.Recurrent`` of LSTM cells."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the outputs (B,T,F) of inputs (B,T,D)."""
        outputs: Array = Recurrent(partial(LSTMCell, self.features))(x, train=True)
        return outputs


class PlainBlock(nn.Module):
    """Residual block in plain Linen."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns feature maps (N,H/strides,W/strides,features) of (N,H,W,C)."""
        norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9)
        conv = partial(nn.Conv, self.features, use_bias=False)
        y = nn.relu(norm()(conv((3, 3), strides=self.strides, padding=1)(x)))
        y = norm()(conv((3, 3), padding=1)(y))
        if self.strides != 1 or x.shape[-1] != self.features:
            x = norm()(conv((1, 1), strides=self.strides)(x))
        return nn.relu(x + y)


class PlainEncoder(nn.Module):
    """ResNet-18 in plain Linen."""

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Returns feature maps (N,h,w,512) of images (N,H,W,3)."""
        x = nn.Conv(64, (7, 7), strides=2, padding=3, use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage in range(4):
            for block in range(2):
                x = PlainBlock(64 * 2**stage, 2 if stage and not block else 1)(x)
        return x


class TrainingStep:
    """Training step of a network; each call continues from the state of the last."""

    def __init__(self, network: nn.Module, video: np.ndarray, labels: np.ndarray):
        self._batch = jnp.asarray(video), jnp.asarray(labels)
        variables = jax.jit(network.init)(jax.random.key(0), self._batch[0])
        optimizer = optax.sgd(RATE, momentum=0.9)
        parameters = variables["params"]
        self._state: PyTree = (
            parameters, variables["batch_stats"], optimizer.init(parameters),
        )  # fmt: skip

        def update(state: PyTree, video: Array, labels: Array) -> tuple[PyTree, Array]:
            parameters, statistics, momenta = state

            def loss(parameters: PyTree) -> tuple[Array, PyTree]:
                variables = {"params": parameters, "batch_stats": statistics}
                logits, new = network.apply(variables, video, mutable=["batch_stats"])
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), new["batch_stats"]

            (value, statistics_), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
            updates, momenta = optimizer.update(gradients, momenta)
            return (optax.apply_updates(parameters, updates), statistics_, momenta), value

        self._update = jax.jit(update, donate_argnums=0)

    def __call__(self) -> float:
        """Takes one step and returns its loss."""
        self._state, loss = self._update(self._state, *self._batch)
        jax.block_until_ready(self._state)
        return float(loss)

    def temporary_bytes(self) -> int:
        """Returns the bytes that XLA allocates for temporaries."""
        compiled = self._update.lower(self._state, *self._batch).compile()
        analysis: Any = compiled.memory_analysis()
        return int(analysis.temp_size_in_bytes)


def cases(
    batch_size: int = 4, num_frames: int = 16, size: int = 112, features: int = 256
) -> list[Case]:
    """Returns the training step on clips of the given size."""

    def draw() -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        video = rng.normal(size=(batch_size, num_frames, size, size, 3)).astype(np.float32)
        return video, rng.integers(0, NUM_CLASSES, batch_size)

    def ours() -> Step:
        return TrainingStep(Network(OurEncoder(), OurLSTM(features)), *draw())

    def plain() -> Step:
        recurrent = nn.RNN(nn.OptimizedLSTMCell(features))
        return TrainingStep(Network(PlainEncoder(), recurrent), *draw())

    ways: dict[str, Callable[[], Step]] = {"flaxnets": ours, "flax.linen": plain}
    if importlib.util.find_spec("torch") is not None:

        def torch() -> Step:
            from experiments.benchmarks.torch_peers import make_network_step

            return make_network_step(*draw(), features, NUM_CLASSES, RATE)

        ways["PyTorch"] = torch
    name = f"ResNet-18 + LSTM({features}), {batch_size}×{num_frames} frames of {size}²"
    return [Case(f"{name}, training step with SGD", ways)]
