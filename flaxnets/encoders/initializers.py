"""Initial weights as PyTorch and torchvision draw them."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer

from flaxnets.typing import Array, PRNGKey

he_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al., 1502.01852, by the outputs of a filter: of torchvision's convolutions."""
torch_kernel: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within ±1/√fan_in: what PyTorch's layers begin with if nothing else is said."""


def torch_bias(fan_in: int) -> Initializer:
    """Uniform within ±1/√fan_in, for the bias of a layer whose outputs see ``fan_in`` inputs."""
    bound = 1 / math.sqrt(fan_in)

    def init(
        key: PRNGKey, shape: Sequence[int], dtype: Any = None, out_sharding: Any = None
    ) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init
