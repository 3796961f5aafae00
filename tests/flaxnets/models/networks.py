"""Small encoders and recurrent layers for the tests of several models."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class ThreeLevels(nn.Module):
    """Encoder with feature maps ``low`` (h/2) and ``high`` (h/4), a vector ``top``, BatchNorm."""

    levels: tuple[str, ...] = ("low", "high", "top")

    @nn.compact
    def __call__(self, images: jax.Array, mask: Any = None, *, train: bool) -> Any:
        x = images.astype(jnp.float32)
        if images.dtype == jnp.uint8:
            x = x / 255
        levels = {}
        if mask is not None:
            mask = mask[:, None, None, None]
        for name, features in (("low", 3), ("high", 5)):
            x = nn.Conv(features, (3, 3), strides=2, name=name)(x)
            x = nn.relu(nn.BatchNorm(not train, name=f"norm_{name}")(x, mask=mask))
            levels[name] = x
        levels["top"] = nn.tanh(nn.Dense(4, name="top")(x.mean((1, 2))))
        return {name: levels[name] for name in self.levels}


class RunningSum(nn.Module):
    """Stand-in for a recurrent layer: cumulative sums of a linear layer, at each position."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array, lengths: Any = None, *, train: bool) -> jax.Array:
        valid = jnp.arange(inputs.shape[1]) < lengths[:, None]
        valid = valid.reshape(*valid.shape, *[1] * (inputs.ndim - 2))
        x = jnp.where(valid, nn.Dense(self.features, name="dense")(inputs), 0)
        return jnp.where(valid, jnp.cumsum(x, axis=1), 0)


def random_variables(model: nn.Module, *arguments: Any) -> Any:
    """Returns random variables of a model, faster than ``init`` and without zero biases."""
    init = functools.partial(model.init, train=False)
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if jax.tree_util.keystr(path).endswith("['var']"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return (0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
    return jax.tree.map_with_path(draw, shapes)


def every_parameter_trains(gradients: Any) -> None:
    """Asserts that each gradient is finite and not zero."""
    for path, leaf in jax.tree.leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert np.any(leaf), name
