"""Recurrent cells on vectors: Elman's, LSTM, GRU, and the initial values of their kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.recurrent.cell import (
    PROJECTION,
    CellModule,
    ProjectHidden,
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
    """Base class of cells on vectors: one input projection for all gates."""

    def project(self, weights: dict[str, Array], inputs: Array) -> dict[str, Array]:
        """Returns the input projections (...,G) ``dtype`` of inputs (...,D), by name."""
        x = jnp.asarray(inputs, self.dtype)
        return {name: multiply(x, kernel) for name, kernel in weights.items()}

    def _input_kernel(self, input_shape: tuple[int, ...], gates: int) -> Array:
        shape = (input_shape[-1], gates * self.features)
        if not input_shape[-1]:  # No parameter: checkpoints hold no empty arrays.
            return jnp.zeros(shape, self.dtype)
        kernel = self.param("input_kernel", per_gate(_LECUN, gates), shape, self.param_dtype)
        return kernel.astype(self.dtype)


class ElmanCell(DenseCell):
    r"""Simple recurrent network (Elman 1990).

    .. math::
        h' = \tanh(x W + h U + b)

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import ElmanCell
    >>> cell, x = ElmanCell(4), jnp.ones((2, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> (hidden, output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, {name: leaf.shape for name, leaf in sorted(variables["params"].items())}
    ((2, 4), {'bias': (4,), 'hidden_kernel': (4, 4), 'input_kernel': (3, 4)})

    Parameters: ``input_kernel`` W (D,F), ``hidden_kernel`` U (F,F), ``bias`` (F,).

    Attributes:
      activation: elementwise, in place of tanh; ``nn.relu`` with the identity for U is the IRNN
        (Le et al., 1504.00941).
    """

    activation: Callable[[Array], Array] = jnp.tanh

    @property
    def elementwise(self) -> bool:
        """See ``CellModule.elementwise``: true, as the activation is."""
        return True

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        f, dtype = self.features, self.param_dtype
        kernel = self.param("hidden_kernel", orthogonal, (f, f), dtype)
        bias = self.param("bias", nn.initializers.zeros, (f,), dtype)
        inputs = {"hidden": self._input_kernel(input_shape, 1)}
        return Weights(inputs, {"hidden": kernel}, {"hidden": bias}, {})

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Array:
        """Returns h: zeros (B,F) ``dtype``."""
        return jnp.zeros((*input_shape[:-1], self.features), self.dtype)

    def step(
        self,
        weights: dict[str, Array],
        project_hidden: ProjectHidden,
        carry: Array,
        projected: dict[str, Array],
    ) -> tuple[Array, Array]:
        """Returns the new h (B,F), as carry and as output."""
        hidden = self.activation(project_hidden("hidden", carry))
        return hidden, hidden


class LSTMCell(DenseCell):
    r"""Long short-term memory with a forget gate (Hochreiter 1997; Gers et al. 2000).

    .. math::
        i, f, g, o &= x W + h U + b \\
        c' &= σ(f) c + σ(i) \tanh g \\
        h' &= σ(o) \tanh c'

    Options:

    - ``peepholes`` (Gers et al. 2002; Shi et al., 1506.04214, equation 3): the gates also read the
      cell state. :math:`w_i ∘ c` is added to i, :math:`w_f ∘ c` to f, :math:`w_o ∘ c'` to o.
    - ``layer_norm`` (Ba et al., 1607.06450, equations 20-22): the gates are
      :math:`LN(x W) + LN(h U) + b`, and :math:`h' = σ(o) \tanh LN(c')`.
    - ``projection_features`` P (Sak et al. 2014): :math:`h' = (σ(o) \tanh c') R` of width P.

    The gates are in PyTorch's order i, f, g, o. The cell state c is float32 in any lower ``dtype``,
    since it accumulates over many steps.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import LSTMCell
    >>> cell, x = LSTMCell(4), jnp.ones((2, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> ((cell_state, hidden), output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, {name: leaf.shape for name, leaf in sorted(variables["params"].items())}
    ((2, 4), {'bias': (16,), 'hidden_kernel': (4, 16), 'input_kernel': (3, 16)})

    Parameters: ``input_kernel`` W (D,4F), ``hidden_kernel`` U (P or F,4F), ``bias`` (4F,);
    ``peepholes`` (3,F) for i, f, o; ``input_scale``, ``hidden_scale`` (4F,), ``cell_scale``,
    ``cell_bias`` (F,); ``projection_kernel`` R (F,P).

    Attributes:
      forget_bias: initial bias of f; 1 as Jozefowicz et al. (2015) recommend.
      peepholes: adds peephole connections.
      layer_norm: adds layer normalisation.
      projection_features: P; 0: no projection.
      chrono_steps: initial biases of f and i by ``chrono_bias``, for memories of up to this many
        steps, in place of ``forget_bias``; 0: not.
    """

    forget_bias: float = 1.0
    peepholes: bool = False
    layer_norm: bool = False
    projection_features: int = 0
    chrono_steps: int = 0

    @property
    def elementwise(self) -> bool:
        """See ``CellModule.elementwise``: false with layer normalisation or a projection."""
        return not (self.layer_norm or self.projection_features)

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
        draw_bias = forget_gate_bias(self.forget_bias)
        if self.chrono_steps:
            draw_bias = chrono_bias((-1, 1, 0, 0), self.chrono_steps)
        bias = self.param("bias", draw_bias, (4 * f,), dtype)
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
        """Returns (c, h): zeros (B,F), at least float32, and (B,F or P) ``dtype``."""
        rows = input_shape[:-1]
        cell = jnp.zeros((*rows, self.features), self.state_dtype)
        return cell, jnp.zeros((*rows, self.projection_features or self.features), self.dtype)

    def step(
        self,
        weights: dict[str, Array],
        project_hidden: ProjectHidden,
        carry: Carry,
        projected: dict[str, Array],
    ) -> tuple[Carry, Array]:
        """Returns the new (c, h), and h (B,F or P) as output."""
        cell, hidden = carry
        gates = project_hidden("hidden", hidden)
        if self.layer_norm:
            gates = (
                normalize(gates, weights["hidden_scale"])
                + normalize(projected["inputs"], weights["input_scale"])
                + weights["bias"].astype(self.state_dtype)
            )
        cell, gate = update_cell_state(cell, gates, weights.get("peepholes"))
        exposed = cell
        if self.layer_norm:
            exposed = normalize(cell, weights["cell_scale"])
            exposed += weights["cell_bias"].astype(exposed.dtype)
        hidden = (gate * jnp.tanh(exposed)).astype(self.dtype)
        if self.projection_features:
            hidden = project_hidden(PROJECTION, hidden)
        return (cell, hidden), hidden


class GRUCell(DenseCell):
    r"""Gated recurrent unit (Cho et al., 1406.1078), with its reset after or before the matmul.

    .. math::
        r, z &= σ(x W_{rz} + h U_{rz} + b_{rz}) \\
        n &= \tanh(x W_n + b_n + r ∘ (h U_n + b_{hn})) \quad \text{(reset after)} \\
        n &= \tanh(x W_n + b_n + (r ∘ h) U_n) \quad \text{(reset before)} \\
        h' &= (1 - z) n + z h

    Reset after is the form of cuDNN and PyTorch; it needs one matmul per step. Reset before is that
    of the paper (with z and 1 − z exchanged) and of GRU-RCN; it needs two. Their results differ, so
    weights of one form do not fit the other. The gates are in PyTorch's order r, z, n. The state is
    float32 in any lower ``dtype``.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import GRUCell
    >>> cell, x = GRUCell(4), jnp.ones((2, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> (hidden, output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, sorted(variables["params"])
    ((2, 4), ['bias', 'hidden_bias', 'hidden_kernel', 'input_kernel'])

    Parameters: ``input_kernel`` W (D,3F), ``hidden_kernel`` U (F,3F), ``bias`` b (3F,), and
    ``hidden_bias`` :math:`b_{hn}` (F,) with reset after.

    Attributes:
      reset_after: applies the reset gate after the matmul.
      chrono_steps: initial bias of z by ``chrono_bias``, for memories of up to this many steps; 0:
        zeros.
    """

    reset_after: bool = True
    chrono_steps: int = 0

    @property
    def elementwise(self) -> bool:
        """See ``CellModule.elementwise``: true."""
        return True

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> Weights:
        """See ``Cell.weights``."""
        f, dtype = self.features, self.param_dtype
        inputs = self._input_kernel(input_shape, 3)
        kernel = self.param("hidden_kernel", per_gate(orthogonal, 3), (f, 3 * f), dtype)
        draw_bias = nn.initializers.zeros
        if self.chrono_steps:
            draw_bias = chrono_bias((0, 1, 0), self.chrono_steps)
        bias = self.param("bias", draw_bias, (3 * f,), dtype)
        hidden_bias = None
        if self.reset_after:
            hidden_bias = self.param("hidden_bias", nn.initializers.zeros, (f,), dtype)
        return gru_weights(inputs, kernel, bias, hidden_bias)

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Array:
        """Returns h: zeros (B,F), at least float32."""
        return jnp.zeros((*input_shape[:-1], self.features), self.state_dtype)

    def step(
        self,
        weights: dict[str, Array],
        project_hidden: ProjectHidden,
        carry: Array,
        projected: dict[str, Array],
    ) -> tuple[Array, Array]:
        """Returns the new h (B,F), and the same in ``dtype`` as output."""
        hidden = step_gru(weights, project_hidden, carry, projected, self.dtype)
        return hidden, hidden.astype(self.dtype)


def update_cell_state(cell: Array, gates: Array, peepholes: Array | None) -> tuple[Array, Array]:
    """Returns the LSTM's new cell state c' and its output gate σ(o), in the dtype of ``cell``.

    Args:
      cell: c, (B,...,F), at least float32.
      gates: i, f, g, o before their nonlinearities, (B,...,4F).
      peepholes: (3,...,F) for i, f, o; None: no peepholes.
    """
    gates = gates.astype(cell.dtype)
    if peepholes is None:
        # σ(x) = ½ tanh(½ x) + ½: one tanh over all four gates is one pass over contiguous memory.
        half = jnp.asarray(np.repeat([0.5, 0.5, 1.0, 0.5], cell.shape[-1]), cell.dtype)
        i, f, g, o = jnp.split(jnp.tanh(gates * half), 4, axis=-1)
        i, f, o = 0.5 * i + 0.5, 0.5 * f + 0.5, 0.5 * o + 0.5
        return f * cell + i * g, o
    peepholes = peepholes.astype(cell.dtype)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f = i + peepholes[0] * cell, f + peepholes[1] * cell
    cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
    return cell, nn.sigmoid(o + peepholes[2] * cell)


def gru_weights(inputs: Array, kernel: Array, bias: Array, hidden_bias: Array | None) -> Weights:
    """Returns a GRU's parameters as ``step_gru`` uses them, dense or convolutional.

    Args:
      inputs: input kernel (...,D,3F) for r, z, n.
      kernel: hidden kernel (...,F,3F).
      bias: (3F,).
      hidden_bias: (F,), of the candidate's hidden projection with reset after; None: reset before.
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
    project_hidden: ProjectHidden,
    hidden: Array,
    projected: dict[str, Array],
    dtype: Dtype,
) -> Array:
    """Returns the new h of a GRU, dense or convolutional; see ``GRUCell``.

    Args:
      weights: ``bias`` (F,) of the candidate, with reset after.
      project_hidden: has the kernel ``hidden`` with reset after, else ``gates`` and ``candidate``.
      hidden: h, (B,...,F), at least float32.
      projected: ``inputs`` (B,...,3F), with reset after. It is not added to the hidden projection,
        since the reset gate scales the candidate's share of the latter alone.
      dtype: of the matmuls.
    """
    state_dtype, features = hidden.dtype, hidden.shape[-1]

    def sigmoids(gates: Array) -> tuple[Array, Array]:
        # σ by tanh, as in update_cell_state.
        r, z = jnp.split(jnp.tanh(0.5 * gates.astype(state_dtype)), 2, axis=-1)
        return 0.5 * r + 0.5, 0.5 * z + 0.5

    if "inputs" in projected:
        # Split, not sliced: the gradient of a split is one concatenation.
        products = project_hidden("hidden", hidden.astype(dtype))
        gates, product = jnp.split(products, [2 * features], axis=-1)
        input_gates, candidate = jnp.split(projected["inputs"], [2 * features], axis=-1)
        r, z = sigmoids(input_gates + gates)
        bias = weights["bias"].astype(state_dtype)
        n = jnp.tanh(candidate.astype(state_dtype) + bias + r * product)
    else:
        r, z = sigmoids(project_hidden("gates", hidden.astype(dtype)))
        n = jnp.tanh(project_hidden("candidate", (r * hidden).astype(dtype)).astype(state_dtype))
    return n + z * (hidden - n)


def normalize(x: Array, scale: Array, epsilon: float = 1e-5) -> Array:
    """Returns ``x`` normalised over the last axis (1607.06450) and scaled, at least float32.

    Args:
      x: (...,F).
      scale: (F,), cast to the dtype of the result.
      epsilon: added to the variance.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred * centred, -1, keepdims=True)
    return centred * (scale.astype(x.dtype) / jnp.sqrt(variance + epsilon))


Initializer = Callable[..., Array]
"""(key, shape, dtype) to an array, as in ``jax.nn.initializers``."""

# An iteration multiplies a small singular value by 1.5, and doubles the correct digits of one near
# 1. 40 iterations suffice from about 1e-6.
_NEWTON_SCHULZ_ITERATIONS = 40


def orthogonal(key: PRNGKey, shape: tuple[int, int], dtype: Dtype = jnp.float32) -> Array:
    """Draws a random orthogonal square matrix, uniformly (Saxe et al., 1312.6120).

    It is the polar factor of a Gaussian matrix, by Newton-Schulz iteration. The QR decomposition of
    ``jax.nn.initializers.orthogonal`` can deadlock on CPUs: batched by ``vmap``, it waits inside
    XLA's thread pool for that same pool, and with as many decompositions at once as cores the
    program hangs.

    Args:
      key: random key.
      shape: (n,n).
      dtype: of the result.

    Raises:
      ValueError: a shape that is not square.
    """
    if shape[0] != shape[1]:
        raise ValueError(f"shape: expected a square, received {shape}")
    x = jax.random.normal(key, shape, jnp.float32)
    x = x / jnp.linalg.norm(x)  # Frobenius: no singular value above 1.

    def iterate(_: int, x: Array) -> Array:
        return 1.5 * x - 0.5 * x @ (x.T @ x)

    with jax.default_matmul_precision("highest"):
        return jax.lax.fori_loop(0, _NEWTON_SCHULZ_ITERATIONS, iterate, x).astype(dtype)


def per_gate(init: Initializer, gates: int) -> Initializer:
    """Returns an initializer that draws each gate's (...,D,F) block of a kernel separately.

    So the fan-out is F, not gates·F.

    Args:
      init: of one block.
      gates: number of blocks, side by side along the last axis.
    """

    def draw(key: PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        block = (*shape[:-1], shape[-1] // gates)
        if 0 in shape:  # Of a cell without inputs: a fan-in of zero has no deviation.
            return jnp.zeros(shape, dtype)
        keys = jax.random.split(key, gates)
        return jnp.concatenate([init(k, block, dtype) for k in keys], axis=-1)

    return draw


def forget_gate_bias(value: float) -> Initializer:
    """Returns an initializer of an LSTM's bias (4F,): ``value`` for f, the second gate, else 0."""

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        return jnp.zeros((4, shape[0] // 4), dtype).at[1].set(value).reshape(shape)

    return draw


def chrono_bias(signs: Sequence[int], steps: int) -> Initializer:
    r"""Returns the chrono initializer of gate biases (Tallec and Ollivier, 1804.11188).

    A gate whose inputs vary little keeps a state for about :math:`1 + e^b` steps. Each feature
    draws one bias :math:`b = \log u, u \sim U(1, T - 1)`, so that memories are spread over 2 to T
    steps. The paper's equation 16 has b for an LSTM's forget gate and −b for its input gate.

    Args:
      signs: of b in each block of F biases, in the cell's order: 1 for gates that keep, -1 for
        those that let in, 0 for the others, which are zero.
      steps: T, >= 1, the longest memory.

    Raises:
      ValueError: fewer steps.
    """
    if steps < 1:
        raise ValueError(f"chrono_steps: expected at least 1, received {steps}")

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        features = shape[0] // len(signs)
        longest = max(steps - 1.0, 1.0)
        bias = jnp.log(jax.random.uniform(key, (features,), minval=1.0, maxval=longest))
        return (jnp.asarray(signs)[:, None] * bias).reshape(shape).astype(dtype)

    return draw
