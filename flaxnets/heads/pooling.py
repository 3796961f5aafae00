"""Pooling over time: what is left of a sequence of steps for one decision about all of it.

Each is called as ``pool(inputs, lengths)`` with inputs (B,T,...) float and lengths (B,) int32 or
None, and gives (B,...); what lies in padded steps changes nothing, and a sequence of no steps gives
zeros, with gradients of zero.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.layers.padding import mask_steps
from flaxnets.typing import Array, Dtype


def pool_last(inputs: Array, lengths: Array | None = None) -> Array:
    """The last valid step. Of a bidirectional layer, its backward half has seen that step alone.

    Args:
      inputs: (B,T,...) float.
      lengths: (B,) int32 in [0,T], valid steps; None: all.

    Returns:
      (B,...) in the dtype of ``inputs``.

    Raises:
      ValueError: as ``mask_steps``.
    """
    valid = mask_steps(inputs, lengths)
    last = jnp.maximum(jnp.sum(valid, axis=1) - 1, 0)
    steps = jnp.take_along_axis(inputs, _over(last[:, None], inputs), axis=1)[:, 0]
    return jnp.where(_over(valid[:, 0], steps), steps, 0)


def pool_mean(inputs: Array, lengths: Array | None = None) -> Array:
    """The mean over the valid steps, summed in float32; arguments as ``pool_last``'s."""
    valid = mask_steps(inputs, lengths)
    total = jnp.sum(jnp.where(_over(valid, inputs), inputs, 0), axis=1, dtype=jnp.float32)
    mean = total / _over(jnp.maximum(jnp.sum(valid, axis=1), 1), total)
    return mean.astype(inputs.dtype)


def pool_max(inputs: Array, lengths: Array | None = None) -> Array:
    """The largest value among the valid steps; arguments as ``pool_last``'s."""
    valid = mask_steps(inputs, lengths)
    largest = jnp.max(jnp.where(_over(valid, inputs), inputs, -jnp.inf), axis=1)
    return jnp.where(_over(valid[:, 0], largest), largest, 0)


def pool_concatenate(inputs: Array, lengths: Array | None = None) -> Array:
    """Returns all steps side by side, (B,T·F): the order-aware baseline without recurrence.

    For sequences of one length only; a padded step, were there one, is zero.

    Args:
      inputs: (B,T,F) float.
      lengths: (B,) int32 in [0,T], valid steps; None: all.

    Raises:
      ValueError: as ``mask_steps``.
    """
    valid = mask_steps(inputs, lengths)
    return jnp.where(_over(valid, inputs), inputs, 0).reshape(inputs.shape[0], -1)


class AttentionPooling(nn.Module):
    r"""A mean weighted by how well each step answers a learned query.

    .. math::
        u_t &= \tanh(W x_t + b) \\
        α_t &= \exp(u_t · q) / Σ_s \exp(u_s · q) \\
        y &= Σ_t α_t x_t

    over the valid steps (Yang et al. 2016, "Hierarchical Attention Networks for Document
    Classification", equations 5 to 7; of the form of Raffel and Ellis, 1512.08756). It is blind to
    order. The weights α (B,T) float32, zero at padding, are sown as ``intermediates/weights``: ask
    for them with ``mutable=["intermediates"]``.

    Attributes:
      features: width of u and of the query q.
      dtype: of the products; the weights are computed in float32.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array | None = None) -> Array:
        """(B,T,F) float to (B,F) in the dtype of ``inputs``.

        Args:
          inputs: (B,T,F) float.
          lengths: (B,) int32 in [0,T], valid steps; None: all.

        Raises:
          ValueError: as ``mask_steps``, or ``inputs`` of another rank.
        """
        valid = mask_steps(inputs, lengths)
        if inputs.ndim != 3:
            raise ValueError(f"inputs: expected (B,T,F), received shape {inputs.shape}")
        # Zero where padded: were it not a number, so would be the gradient of the kernel.
        x = jnp.where(valid[..., None], inputs, 0)
        hidden = nn.tanh(nn.Dense(self.features, dtype=self.dtype, name="hidden")(x))
        query = self.param("query", nn.initializers.normal(self.features**-0.5), (self.features,))
        scores = hidden.astype(jnp.float32) @ query  # (B,T)
        # By hand, as jax.nn.softmax gives NaN where no step is valid.
        scores = jnp.where(valid, scores, jnp.finfo(jnp.float32).min)
        shift = jax.lax.stop_gradient(jnp.max(scores, axis=1, keepdims=True))
        powers = jnp.where(valid, jnp.exp(scores - shift), 0.0)
        total = jnp.sum(powers, axis=1, keepdims=True)
        weights = powers / jnp.where(total > 0, total, 1.0)
        self.sow("intermediates", "weights", weights)
        return jnp.einsum("bt,btf->bf", weights, x.astype(jnp.float32)).astype(inputs.dtype)


def _over(values: Array, inputs: Array) -> Array:
    """``values`` with trailing axes of size 1 until it has the rank of ``inputs``."""
    return values.reshape(*values.shape, *[1] * (inputs.ndim - values.ndim))
