"""Recurrent cells on vectors: Elman's, LSTM, GRU."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.recurrent.cell import (
    PROJECTION,
    CellModule,
    Recur,
    Weights,
)
from flaxnets.recurrent.matmul import multiply
from flaxnets.typing import (
    Array,
    Carry,
    Dtype,
    PRNGKey,
)

_LECUN = nn.initializers.lecun_normal()


class DenseCell(CellModule):
    """What the cells on vectors share: one product with the inputs, for all gates at once."""

    def project(self, weights: dict[str, Array], inputs: Array) -> dict[str, Array]:
        """(..., D) to the gates' shares of the input, (..., G) ``dtype``."""
        x = jnp.asarray(inputs, self.dtype)
        return {name: multiply(x, kernel) for name, kernel in weights.items()}

    def _input_kernel(self, input_shape: tuple[int, ...], gates: int) -> Array:
        shape = (input_shape[-1], gates * self.features)
        kernel = self.param("input_kernel", per_gate(_LECUN, gates), shape, self.param_dtype)
        return kernel.astype(self.dtype)


class ElmanCell(DenseCell):
    r"""The simple recurrent network (Elman 1990), with tanh: :math:`h' = \tanh(x W + h U + b)`.

    Parameters ``input_kernel`` (D,F), ``hidden_kernel`` (F,F), ``bias`` (F,).

    Attributes:
      activation: entry by entry; ``nn.relu`` with an identity for U is the IRNN (1504.00941).
    """

    activation: Callable[[Array], Array] = jnp.tanh

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        f, dtype = self.features, self.param_dtype
        kernel = self.param("hidden_kernel", orthogonal, (f, f), dtype)
        bias = self.param("bias", nn.initializers.zeros, (f,), dtype)
        inputs = {"hidden": self._input_kernel(input_shape, 1)}
        return Weights(inputs, {"hidden": kernel}, {"hidden": bias}, {})

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Array:
        """h: zeros (B,F) ``dtype``."""
        return jnp.zeros((*input_shape[:-1], self.features), self.dtype)

    def step(
        self, weights: dict[str, Array], recur: Recur, carry: Array, projected: dict[str, Array]
    ) -> tuple[Array, Array]:
        """One step; the output (B,F) is the new h."""
        hidden = self.activation(recur("hidden", carry))
        return hidden, hidden


class LSTMCell(DenseCell):
    r"""Long short-term memory with a forget gate (Hochreiter 1997; Gers 2000).

    .. math::
        i, f, g, o &= x W + h U + b \\
        c' &= σ(f) c + σ(i) \tanh g \\
        h' &= σ(o) \tanh c'

    With ``peepholes`` (Gers 2002; Shi et al., 1506.04214, equation 3) the gates also read the cell
    state: i and f get :math:`w_i ∘ c` and :math:`w_f ∘ c`, o gets :math:`w_o ∘ c'`. With
    ``layer_norm`` (Ba et al., 1607.06450, equations 20-22) the products x W and h U, and the c'
    that h' reads, are normalised: :math:`LN(x W) + LN(h U) + b`. With ``projection_features`` P
    (Sak et al. 2014) the hidden state is :math:`h' = (σ(o) \tanh c') R` of width P.

    Gates stand in PyTorch's order i, f, g, o. The cell state c stays float32 in any lower
    ``dtype``, since it adds up over many steps.

    Parameters: ``input_kernel`` (D,4F), ``hidden_kernel`` (P or F,4F), ``bias`` (4F,);
    ``peepholes`` (3,F) for i, f, o; ``input_scale``, ``hidden_scale`` (4F,), ``cell_scale``,
    ``cell_bias`` (F,); ``projection_kernel`` (F,P).

    Attributes:
      forget_bias: initial bias of f (Jozefowicz et al. 2015 find 1 good).
      peepholes: whether the gates read the cell state.
      layer_norm: whether the products are normalised.
      projection_features: P; 0: no projection.
    """

    forget_bias: float = 1.0
    peepholes: bool = False
    layer_norm: bool = False
    projection_features: int = 0

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        f, dtype = self.features, self.param_dtype
        width = self.projection_features or f
        kernel = self._input_kernel(input_shape, 4)
        draw = per_gate(orthogonal if width == f else _LECUN, 4)
        hidden = {"hidden": self.param("hidden_kernel", draw, (width, 4 * f), dtype)}
        if self.projection_features:
            hidden[PROJECTION] = self.param("projection_kernel", _LECUN, (f, width), dtype)
        bias = self.param("bias", forget_gate_bias(self.forget_bias), (4 * f,), dtype)
        pointwise = {}
        if self.peepholes:
            pointwise["peepholes"] = self.param("peepholes", nn.initializers.zeros, (3, f), dtype)
        if not self.layer_norm:
            return Weights({"hidden": kernel}, hidden, {"hidden": bias}, pointwise)
        for name, size in (("input", 4 * f), ("hidden", 4 * f), ("cell", f)):
            scale = self.param(f"{name}_scale", nn.initializers.ones, (size,), dtype)
            pointwise[f"{name}_scale"] = scale
        pointwise["cell_bias"] = self.param("cell_bias", nn.initializers.zeros, (f,), dtype)
        return Weights({"inputs": kernel}, hidden, {}, {**pointwise, "bias": bias})

    def initialize_carry(
        self, rng: PRNGKey | None, input_shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """(c, h): zeros (B,F), at least float32, and (B,F or P) ``dtype``."""
        rows = input_shape[:-1]
        cell = jnp.zeros((*rows, self.features), self.state_dtype)
        return cell, jnp.zeros((*rows, self.projection_features or self.features), self.dtype)

    def step(
        self, weights: dict[str, Array], recur: Recur, carry: Carry, projected: dict[str, Array]
    ) -> tuple[Carry, Array]:
        """One step; the output (B,F), or (B,P), is the new h."""
        cell, hidden = carry
        gates = recur("hidden", hidden)
        if self.layer_norm:
            gates = (
                normalize(gates, weights["hidden_scale"])
                + normalize(projected["inputs"], weights["input_scale"])
                + weights["bias"]
            )
        cell, gate = update_cell_state(cell, gates, weights.get("peepholes"))
        exposed = cell
        if self.layer_norm:
            exposed = normalize(cell, weights["cell_scale"]) + weights["cell_bias"]
        hidden = (gate * jnp.tanh(exposed)).astype(self.dtype)
        if self.projection_features:
            hidden = recur(PROJECTION, hidden)
        return (cell, hidden), hidden


class GRUCell(DenseCell):
    r"""Gated recurrent unit, in both forms that are in use.

    .. math::
        r, z &= σ(x W_{rz} + h U_{rz} + b_{rz}) \\
        n &= \tanh(x W_n + b_n + r ∘ (h U_n + b_{hn})) \quad \text{reset after the product} \\
        n &= \tanh(x W_n + b_n + (r ∘ h) U_n) \quad \text{reset before it} \\
        h' &= (1 - z) n + z h

    The first is cuDNN's and PyTorch's and needs one product a step; the second is that of Cho et
    al. (1406.1078, with z and 1 − z exchanged) and of GRU-RCN. They give different numbers. Gates
    stand in PyTorch's order r, z, n.

    Parameters: ``input_kernel`` (D,3F), ``hidden_kernel`` (F,3F), ``bias`` (3F,), and
    ``hidden_bias`` (F,) where the reset comes after. The state stays float32 in any lower
    ``dtype``.

    Attributes:
      reset_after: whether the reset gate acts after the product.
    """

    reset_after: bool = True

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        f, dtype = self.features, self.param_dtype
        inputs = self._input_kernel(input_shape, 3)
        kernel = self.param("hidden_kernel", per_gate(orthogonal, 3), (f, 3 * f), dtype)
        bias = self.param("bias", nn.initializers.zeros, (3 * f,), dtype)
        hidden_bias = None
        if self.reset_after:
            hidden_bias = self.param("hidden_bias", nn.initializers.zeros, (f,), dtype)
        return gru_weights(inputs, kernel, bias, hidden_bias)

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Array:
        """h: zeros (B,F), at least float32."""
        return jnp.zeros((*input_shape[:-1], self.features), self.state_dtype)

    def step(
        self, weights: dict[str, Array], recur: Recur, carry: Array, projected: dict[str, Array]
    ) -> tuple[Array, Array]:
        """One step; the output (B,F) is the new h in ``dtype``."""
        hidden = step_gru(weights, recur, carry, projected, self.dtype)
        return hidden, hidden.astype(self.dtype)


def update_cell_state(cell: Array, gates: Array, peepholes: Array | None) -> tuple[Array, Array]:
    """The LSTM's new cell state and its output gate, from (B,...,4F) gates i, f, g, o.

    Args:
      cell: c, (B,...,F), at least float32.
      gates: sums before the nonlinearities.
      peepholes: (3,...,F) for i, f, o; None: none.

    Returns:
      c' and σ(o), in the dtype of ``cell``.
    """
    gates = gates.astype(cell.dtype)
    if peepholes is None:
        # σ(x) = ½ tanh(½ x) + ½ makes of all four gates one pass over contiguous memory.
        half = jnp.asarray(np.repeat([0.5, 0.5, 1.0, 0.5], cell.shape[-1]), cell.dtype)
        i, f, g, o = jnp.split(jnp.tanh(gates * half), 4, axis=-1)
        i, f, o = 0.5 * i + 0.5, 0.5 * f + 0.5, 0.5 * o + 0.5
        return f * cell + i * g, o
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f = i + peepholes[0] * cell, f + peepholes[1] * cell
    cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
    return cell, nn.sigmoid(o + peepholes[2] * cell)


def gru_weights(inputs: Array, kernel: Array, bias: Array, hidden_bias: Array | None) -> Weights:
    """A GRU's parameters as ``step_gru`` reads them, dense or convolutional.

    Args:
      inputs: (...,D,3F) for r, z, n.
      kernel: (...,F,3F).
      bias: (3F,).
      hidden_bias: (F,), of the candidate's hidden product where the reset comes after it; None: it
        comes before.
    """
    gates = 2 * (bias.shape[0] // 3)
    if hidden_bias is not None:
        biases = {"hidden": jnp.concatenate([bias[:gates], hidden_bias])}
        return Weights({"inputs": inputs}, {"hidden": kernel}, biases, {"bias": bias[gates:]})

    def split(x: Array) -> dict[str, Array]:
        return {"gates": x[..., :gates], "candidate": x[..., gates:]}

    return Weights(split(inputs), split(kernel), split(bias), {})


def step_gru(
    weights: dict[str, Array],
    recur: Recur,
    hidden: Array,
    projected: dict[str, Array],
    dtype: Dtype,
) -> Array:
    """The new h of a GRU, dense or convolutional; see ``GRUCell``.

    Args:
      weights: ``bias`` (F,) of the candidate, where the reset comes after the product.
      recur: products with ``hidden``, or with ``gates`` and ``candidate``.
      hidden: h, (B,...,F), at least float32.
      projected: ``inputs`` (B,...,3F), where the reset comes after the product.
      dtype: of the products.
    """
    state_dtype, features = hidden.dtype, hidden.shape[-1]

    def sigmoids(gates: Array) -> tuple[Array, Array]:
        # As in update_cell_state.
        r, z = jnp.split(jnp.tanh(0.5 * gates.astype(state_dtype)), 2, axis=-1)
        return 0.5 * r + 0.5, 0.5 * z + 0.5

    if "inputs" in projected:
        # Split, not sliced: the gradient of a split is one concatenation.
        products = recur("hidden", hidden.astype(dtype))
        gates, product = jnp.split(products, [2 * features], axis=-1)
        input_gates, candidate = jnp.split(projected["inputs"], [2 * features], axis=-1)
        r, z = sigmoids(input_gates + gates)
        n = jnp.tanh(candidate.astype(state_dtype) + weights["bias"] + r * product)
    else:
        r, z = sigmoids(recur("gates", hidden.astype(dtype)))
        n = jnp.tanh(recur("candidate", (r * hidden).astype(dtype)).astype(state_dtype))
    return n + z * (hidden - n)


def normalize(x: Array, scale: Array, epsilon: float = 1e-5) -> Array:
    """Layer normalisation over the last axis (1607.06450), without a bias; at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred * centred, -1, keepdims=True)
    return centred * (scale / jnp.sqrt(variance + epsilon))


# Initial values of recurrent kernels.

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
