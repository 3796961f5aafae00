"""Initial values of recurrent kernels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype, PRNGKey

Initializer = Callable[..., Array]
"""(key, shape, dtype) to an array, as in ``jax.nn.initializers``."""

# Each step brings a singular value s < 1 to about 1.5·s, then doubles its correct digits.
_STEPS = 40


def orthogonal(key: PRNGKey, shape: tuple[int, int], dtype: Dtype = jnp.float32) -> Array:
    """A random orthogonal square matrix, uniform over all of them (Saxe et al., 1312.6120).

    The polar factor of a Gaussian matrix by Newton and Schulz's iteration, products alone. The QR
    decomposition that ``jax.nn.initializers.orthogonal`` uses waits, once it is batched by
    ``vmap``, inside XLA's thread pool for that same pool: with as many decompositions at once as
    processors, as in a fused network on two, the program stands still for ever.

    Args:
      key: of the draw.
      shape: (n,n).
      dtype: of the result.

    Raises:
      ValueError: a shape that is not square.
    """
    if shape[0] != shape[1]:
        raise ValueError(f"shape: expected a square, received {shape}")
    x = jax.random.normal(key, shape, jnp.float32)
    x = x / jnp.linalg.norm(x)  # Frobenius: no singular value above 1.

    def step(_: int, x: Array) -> Array:
        return 1.5 * x - 0.5 * x @ (x.T @ x)

    with jax.default_matmul_precision("highest"):
        return jax.lax.fori_loop(0, _STEPS, step, x).astype(dtype)


def per_gate(init: Initializer, gates: int) -> Initializer:
    """Draws each gate's (...,D,F) block of a (...,D,gates·F) kernel on its own: fan-out F."""

    def draw(key: PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        block = (*shape[:-1], shape[-1] // gates)
        keys = jax.random.split(key, gates)
        return jnp.concatenate([init(k, block, dtype) for k in keys], axis=-1)

    return draw


def forget_gate_bias(value: float) -> Initializer:
    """Zeros but for the second of four gates, the LSTM's f, whose bias is ``value``."""

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        return jnp.zeros((4, shape[0] // 4), dtype).at[1].set(value).reshape(shape)

    return draw
