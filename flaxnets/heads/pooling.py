"""Pooling over time: a sequence of steps to one vector, for one decision about the whole clip.

Each is called as ``pool(inputs, lengths)`` with inputs (B,T,...) float and lengths (B,) integers
(an array or a list) or None, and returns (B,...). Padded steps change nothing, and a sequence
without steps gives zeros with zero gradients, so that lengths may be anything in [0,T], and T zero.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.configuration import check_dtype_argument
from flaxnets.layers.padding import mask_steps
from flaxnets.typing import Array, Carry, Dtype


def pool_last(inputs: Array, lengths: Array | None = None) -> Array:
    """Returns the last valid step.

    After a bidirectional layer, note that the backward half has read nothing but that step.

    >>> steps, lengths = jnp.arange(6.0).reshape(2, 3, 1), jnp.array([3, 2])
    >>> pool_last(steps, lengths).tolist()
    [[2.0], [4.0]]

    Args:
      inputs: (B,T,...) float.
      lengths: (B,) integers in [0,T], valid steps; None: T.

    Returns:
      (B,...) in the dtype of ``inputs``.

    Raises:
      ValueError: as ``mask_steps``.
    """
    valid = mask_steps(inputs, lengths)
    if not inputs.shape[1]:
        return _without_steps(inputs)
    last = jnp.maximum(jnp.sum(valid, axis=1) - 1, 0)
    steps = jnp.take_along_axis(inputs, _over(last[:, None], inputs), axis=1)[:, 0]
    return jnp.where(_over(valid[:, 0], steps), steps, 0)


def pool_mean(inputs: Array, lengths: Array | None = None) -> Array:
    """Returns the mean of the valid steps, summed in float32 at least.

    Arguments are those of ``pool_last``.

    >>> steps, lengths = jnp.arange(6.0).reshape(2, 3, 1), jnp.array([3, 2])
    >>> pool_mean(steps, lengths).tolist()
    [[1.0], [3.5]]
    """
    valid = mask_steps(inputs, lengths)
    wide = jnp.promote_types(inputs.dtype, jnp.float32)
    total = jnp.sum(jnp.where(_over(valid, inputs), inputs, 0), axis=1, dtype=wide)
    mean = total / _over(jnp.maximum(jnp.sum(valid, axis=1), 1), total)
    return mean.astype(inputs.dtype)


def pool_max(inputs: Array, lengths: Array | None = None) -> Array:
    """Returns the maximum of the valid steps, feature by feature; arguments as for ``pool_last``.

    >>> steps, lengths = 1 - jnp.arange(6.0).reshape(2, 3, 1), jnp.array([3, 2])
    >>> pool_max(steps, lengths).tolist()
    [[1.0], [-2.0]]
    """
    valid = mask_steps(inputs, lengths)
    if not inputs.shape[1]:
        return _without_steps(inputs)
    largest = jnp.max(jnp.where(_over(valid, inputs), inputs, -jnp.inf), axis=1)
    return jnp.where(_over(valid[:, 0], largest), largest, 0)


def _run_last(carry: Carry | None, inputs: Array, valid: Array) -> tuple[Carry, Array]:
    """Running form of ``pool_last``, see ``RUNNING_POOLS``."""
    last = jnp.zeros_like(inputs, shape=_step_shape(inputs)) if carry is None else carry

    def step(last: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        last = jnp.where(x[1][:, None], x[0], last)
        return last, last

    return _over_time(step, last, inputs, valid)


def _run_mean(carry: Carry | None, inputs: Array, valid: Array) -> tuple[Carry, Array]:
    """Running form of ``pool_mean``, see ``RUNNING_POOLS``."""
    wide = jnp.promote_types(inputs.dtype, jnp.float32)
    if carry is None:
        carry = jnp.zeros(_step_shape(inputs), wide), jnp.zeros(inputs.shape[:1], jnp.int32)

    def step(carry: Carry, x: tuple[Array, Array]) -> tuple[Carry, Array]:
        mean, count = carry
        count = count + x[1]
        # A mean that is moved, not a sum that is divided: after a million steps a sum in float32
        # would no longer see a step.
        moved = mean + (x[0].astype(wide) - mean) / jnp.maximum(count, 1)[:, None]
        mean = jnp.where(x[1][:, None], moved, mean)
        return (mean, count), mean

    carry, means = _over_time(step, carry, inputs, valid)
    return carry, means.astype(inputs.dtype)


def _run_max(carry: Carry | None, inputs: Array, valid: Array) -> tuple[Carry, Array]:
    """Running form of ``pool_max``, see ``RUNNING_POOLS``."""
    largest = jnp.full_like(inputs, -jnp.inf, shape=_step_shape(inputs)) if carry is None else carry

    def step(largest: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        largest = jnp.where(x[1][:, None], jnp.maximum(largest, x[0]), largest)
        # Sequences without a step so far give zeros.
        return largest, jnp.where(jnp.isneginf(largest), 0, largest)

    return _over_time(step, largest, inputs, valid)


RUNNING_POOLS: Mapping[Callable[..., Array], Callable[..., tuple[Carry, Array]]] = {
    pool_last: _run_last,
    pool_mean: _run_mean,
    pool_max: _run_max,
}
"""Running forms of those poolings that have one: (carry of the steps before, or None; inputs
(B,T,F); valid (B,T) bool) to the new carry and, at each step, the pooled steps so far, (B,T,F)."""


def _step_shape(inputs: Array) -> tuple[int, ...]:
    return inputs.shape[0], inputs.shape[2]


def _over_time(
    step: Callable[..., tuple[Carry, Array]], carry: Carry, inputs: Array, valid: Array
) -> tuple[Carry, Array]:
    if not inputs.shape[1]:
        return carry, inputs
    carry, outputs = jax.lax.scan(step, carry, (inputs.swapaxes(0, 1), valid.swapaxes(0, 1)))
    return carry, outputs.swapaxes(0, 1)


def pool_concatenate(inputs: Array, lengths: Array | None = None) -> Array:
    """Returns all steps side by side, (B,T·F): the order-aware baseline without recurrence.

    For sequences of one length only; a padded step, were there one, is zero.

    Args:
      inputs: (B,T,F) float.
      lengths: (B,) integers in [0,T], valid steps; None: all.

    Raises:
      ValueError: as ``mask_steps``.
    """
    valid = mask_steps(inputs, lengths)
    steps = jnp.where(_over(valid, inputs), inputs, 0)
    return steps.reshape(inputs.shape[0], math.prod(inputs.shape[1:]))


class AttentionPooling(nn.Module):
    r"""Attention over time: a mean of the steps, weighted by their similarity to a learned query.

    .. math::
        u_t &= \tanh(W x_t + b) \\
        α_t &= \exp(u_t · q) / Σ_s \exp(u_s · q) \\
        y &= Σ_t α_t x_t

    over the valid steps (Yang et al. 2016, "Hierarchical Attention Networks for Document
    Classification", equations 5 to 7; also the form of Raffel and Ellis, 1512.08756). It ignores
    the order of the steps. The attention weights α (B,T) float32, zero at padding, are sown as
    ``intermediates/weights``:

    >>> steps, lengths = jnp.zeros((2, 3, 4)), jnp.array([3, 2])
    >>> pool = AttentionPooling(features=8)
    >>> variables = pool.init(jax.random.key(0), steps, lengths)
    >>> pooled, sown = pool.apply(variables, steps, lengths, mutable=["intermediates"])
    >>> pooled.shape
    (2, 4)
    >>> sown["intermediates"]["weights"][0][1].tolist()
    [0.5, 0.5, 0.0]

    Attributes:
      features: width of u and of the query q.
      dtype: of the matmul; the attention weights are float32 at least.
    """

    features: int
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array | None = None) -> Array:
        """Pools (B,T,F) float to (B,F) in the dtype of ``inputs``.

        Args:
          inputs: (B,T,F) float.
          lengths: (B,) integers in [0,T], valid steps; None: T.

        Raises:
          ValueError: as for ``mask_steps``, or ``inputs`` of another rank.
        """
        valid = mask_steps(inputs, lengths)
        if inputs.ndim != 3:
            raise ValueError(f"inputs: expected (B,T,F), received shape {inputs.shape}")
        # Zero at padding: a NaN there would make the gradient of the kernel NaN, as 0 · NaN is NaN.
        x = jnp.where(valid[..., None], inputs, 0)
        hidden = nn.tanh(nn.Dense(self.features, dtype=self.dtype, name="hidden")(x))
        query = self.param("query", nn.initializers.normal(self.features**-0.5), (self.features,))
        wide = jnp.promote_types(inputs.dtype, jnp.float32)
        logits = hidden.astype(wide) @ query.astype(wide)  # (B,T)
        # A softmax by hand: jax.nn.softmax gives NaN where no step is valid.
        logits = jnp.where(valid, logits, jnp.finfo(wide).min)
        if not inputs.shape[1]:
            self.sow("intermediates", "weights", logits)
            return _without_steps(inputs)
        shift = jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))
        powers = jnp.where(valid, jnp.exp(logits - shift), 0.0)
        total = jnp.sum(powers, axis=1, keepdims=True)
        weights = powers / jnp.where(total > 0, total, 1.0)
        self.sow("intermediates", "weights", weights)
        return jnp.einsum("bt,btf->bf", weights, x.astype(wide)).astype(inputs.dtype)


def _without_steps(inputs: Array) -> Array:
    """Returns zeros (B,...), the pooled steps of (B,0,...)."""
    return jnp.zeros((inputs.shape[0], *inputs.shape[2:]), inputs.dtype)


def _over(values: Array, inputs: Array) -> Array:
    """Appends axes of size 1 to ``values`` up to the rank of ``inputs``."""
    return values.reshape(*values.shape, *[1] * (inputs.ndim - values.ndim))
