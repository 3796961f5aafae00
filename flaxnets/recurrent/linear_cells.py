"""Linear cells on vectors: minGRU, minLSTM, LRU."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.recurrent.cell import CellModule, check_inputs
from flaxnets.recurrent.cells import Initializer, per_gate
from flaxnets.recurrent.linear_recurrence import gated_average, linear_recurrence, plain_recurrence
from flaxnets.recurrent.matmul import multiply
from flaxnets.typing import (
    Array,
    Carry,
    Dtype,
    PRNGKey,
)

# What a linear recurrent cell is to the layers that scan it.
#
# Its carry is the state h of a recurrence that is linear in it, entry by entry, and whose
# coefficients depend on the inputs alone: h_t = a_t ∘ h_{t-1} + b_t. So all products run over
# all steps at once, and what is left is ``linear_recurrence``, or ``gated_average``.

_LECUN = nn.initializers.lecun_normal()


class LinearCell(CellModule):
    """What ``scan_cell`` needs of a cell whose carry is h in :math:`h_t = a_t ∘ h_{t-1} + b_t`.

    Its counterpart for other cells is ``Cell``. Only ``weights`` touches Linen's variables.

    The attributes are those of ``CellModule``.
    """

    def weights(self, input_shape: tuple[int, ...]) -> dict[str, Array]:
        """The parameters by name, made at the first call for inputs of shape (..., D)."""
        raise NotImplementedError

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Array:
        """The state before the first step: zeros (B,S) ``state_dtype``, for inputs (B,D).

        The signature is that of Flax's cells; ``rng`` is not read.
        """
        return jnp.zeros((*input_shape[:-1], self.features), self.state_dtype)

    def coefficients(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """The a and b, (...,S) ``state_dtype``, of inputs (...,D) of any number of steps."""
        raise NotImplementedError

    def recur(
        self,
        weights: dict[str, Array],
        carry: Array,
        inputs: Array,
        valid: Array | None,
        *,
        reverse: bool,
        autodiff: bool,
    ) -> Array:
        """The states (B,T,S) ``state_dtype`` of all steps.

        Args:
          weights: what ``weights`` gave.
          carry: (B,S), before the first step.
          inputs: (B,T,D).
          valid: (B,T) bool, the steps that change the state; None: all.
          reverse: from the last step to the first.
          autodiff: whether derivatives are left to JAX, in any mode.
        """
        coefficients, addends = self.coefficients(weights, inputs)
        if valid is not None:
            # h = 1·h + 0 leaves the state as it is.
            coefficients = jnp.where(valid[..., None], coefficients, 1)
            addends = jnp.where(valid[..., None], addends, 0)
        recurrence = plain_recurrence if autodiff else linear_recurrence
        return recurrence(coefficients, addends, carry, axis=1, reverse=reverse)

    def read(self, weights: dict[str, Array], states: Array, inputs: Array) -> Array:
        """Outputs (...,F) ``dtype`` of the states (...,S) and the same inputs (...,D)."""
        return states.astype(self.dtype)

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step: the carry (B,S) and inputs (B,D) to the new carry and the output (B,F).

        Raises:
          ValueError: inputs of another rank or of integers.
        """
        check_inputs(inputs, "B", self.num_feature_axes)
        weights = self.weights(inputs.shape)
        coefficients, addends = self.coefficients(weights, inputs)
        state = coefficients * carry + addends
        return state, self.read(weights, state, inputs)

    def affine(self, weights: dict[str, Array], inputs: Array) -> list[Array]:
        """The G blocks of x W + b, (...,F), made as precise as the state after the product."""
        gates = weights["bias"].shape[0] // self.features
        blocks = zip(
            jnp.split(weights["input_kernel"], gates, axis=-1),
            jnp.split(weights["bias"], gates),
            strict=True,
        )
        rows = jnp.asarray(inputs, self.dtype)
        # One product for all, split, has a slow gradient: its parts are padded and added.
        return [
            multiply(rows, kernel).astype(self.state_dtype) + bias.astype(self.state_dtype)
            for kernel, bias in blocks
        ]

    def affine_weights(self, input_shape: tuple[int, ...], biases: list[float]) -> dict[str, Array]:
        """``input_kernel`` (D,G·F) and ``bias`` (G·F,), whose G blocks begin at ``biases``."""
        shape, gates = (input_shape[-1], len(biases) * self.features), len(biases)
        kernel = self.param("input_kernel", per_gate(_LECUN, gates), shape, self.param_dtype)
        bias = self.param("bias", _blocks(biases), shape[1:], self.param_dtype)
        return {"input_kernel": kernel, "bias": bias}


class AveragingCell(LinearCell):
    r"""A linear cell whose state is an average of candidates: :math:`h_t = (1 - u) h_{t-1} + u k`.

    The attributes are those of ``CellModule``.
    """

    def gates(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """The z of u = σ(z) and the k, (...,F) ``state_dtype``, of inputs (...,D)."""
        raise NotImplementedError

    def coefficients(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """See ``LinearCell.coefficients``."""
        gate, candidate = self.gates(weights, inputs)
        kept = nn.sigmoid(-gate)
        return kept, (1 - kept) * candidate

    def recur(
        self,
        weights: dict[str, Array],
        carry: Array,
        inputs: Array,
        valid: Array | None,
        *,
        reverse: bool,
        autodiff: bool,
    ) -> Array:
        """See ``LinearCell.recur``."""
        if autodiff:
            how = {"reverse": reverse, "autodiff": True}
            return super().recur(weights, carry, inputs, valid, **how)
        gate, candidate = self.gates(weights, inputs)
        if valid is not None:
            # σ(-∞) = 0 leaves the state as it is.
            gate = jnp.where(valid[..., None], gate, -jnp.inf)
            candidate = jnp.where(valid[..., None], candidate, 0)
        return gated_average(gate, candidate, carry, axis=1, reverse=reverse)


def _blocks(values: list[float]) -> Initializer:
    """Equal blocks of one value each."""

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        return jnp.repeat(jnp.asarray(values, dtype), shape[0] // len(values))

    return draw


class MinGRUCell(AveragingCell):
    r"""The minimal GRU (Feng et al., 2410.01201, section 3): a gate that reads the inputs alone.

    .. math::
        z, k &= x W + b \\
        h' &= (1 - σ(z)) h + σ(z) g(k)

    The candidate g(k) is k itself, or, with ``positive_candidate``, that of the paper's
    log-space form (appendix): :math:`k + ½` for k ≥ 0 and :math:`σ(k)` below. The paper needs it
    to take logarithms; here h is added up as it is, in float32 or wider, which gives the same.

    Parameters: ``input_kernel`` (D,2F) and ``bias`` (2F,) for z, k.

    Attributes:
      update_bias: initial bias of z; the lower, the longer the cell remembers (−2: a mean of about
        8 steps).
      positive_candidate: whether states are kept above zero.
    """

    update_bias: float = 0.0
    positive_candidate: bool = False

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> dict[str, Array]:
        """See ``LinearCell.weights``."""
        return self.affine_weights(input_shape, [self.update_bias, 0.0])

    def gates(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """See ``AveragingCell.gates``."""
        gate, candidate = self.affine(weights, inputs)
        return gate, _positive(candidate) if self.positive_candidate else candidate


class MinLSTMCell(AveragingCell):
    r"""The minimal LSTM (Feng et al., 2410.01201, section 3), its gates divided by their sum.

    .. math::
        f, i, k &= x W + b \\
        f' &= \frac{σ(f)}{σ(f) + σ(i)}, \quad i' = \frac{σ(i)}{σ(f) + σ(i)} \\
        h' &= f' h + i' g(k)

    g is that of ``MinGRUCell``. The quotients are formed as the paper's log-space form does
    (appendix), which cannot be 0/0: :math:`i' = σ(\log σ(i) - \log σ(f)) = 1 - f'`.

    Parameters: ``input_kernel`` (D,3F) and ``bias`` (3F,) for f, i, k.

    Attributes:
      forget_bias: initial bias of f; the higher, the longer the cell remembers. It saturates, as
        σ(f) does: the bias of i, which goes down to any length, is ``input_bias``.
      input_bias: initial bias of i (−3: a mean of about 12 steps with the default of f).
      positive_candidate: whether states are kept above zero.
    """

    forget_bias: float = 0.0
    input_bias: float = 0.0
    positive_candidate: bool = False

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> dict[str, Array]:
        """See ``LinearCell.weights``."""
        return self.affine_weights(input_shape, [self.forget_bias, self.input_bias, 0.0])

    def gates(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """See ``AveragingCell.gates``."""
        f, i, candidate = self.affine(weights, inputs)
        # log σ(i) - log σ(f) with one logarithm.
        gate = jnp.minimum(i, 0) - jnp.minimum(f, 0)
        gate += jnp.log((1 + jnp.exp(-jnp.abs(f))) / (1 + jnp.exp(-jnp.abs(i))))
        return gate, _positive(candidate) if self.positive_candidate else candidate


class LRUCell(LinearCell):
    r"""The linear recurrent unit (Orvieto et al., 2303.06349): a complex diagonal recurrence.

    .. math::
        λ &= \exp(-e^{ν} + i e^{θ}), \quad |λ| < 1 \\
        h' &= λ ∘ h + e^{γ} ∘ (x B) \\
        y &= \mathrm{Re}(h' C) + x D

    λ begins uniformly distributed on the ring between the radii ``r_min`` and ``r_max``, with
    phases in [0, ``max_phase``] (section 3.3, lemma 3.2), and :math:`e^γ = \sqrt{1 - |λ|²}`
    (section 3.4); all of ν, θ and γ are trained. Section 3.4 takes r close to 1 and phases near 0,
    as π/10, where sequences are long.

    The paper's code has a diagonal for D, which inputs as wide as the outputs need; here it is a
    matrix, as the paper's equation has it.

    Parameters: ``nu``, ``theta``, ``gamma`` (S,), ``input_kernel`` (D,2S) for Re B, Im B,
    ``output_kernel`` (2S,F) for Re C, −Im C, ``skip_kernel`` (D,F). The state is complex64, or
    complex128 in float64.

    Attributes:
      state_features: S; 0: as many as ``features``.
      r_min: least |λ| at the beginning, in [0,r_max).
      r_max: largest |λ| at the beginning, at most 1.
      max_phase: largest phase at the beginning, radians in (0,2π].
    """

    state_features: int = 0
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    @property
    def state_dtype(self) -> Dtype:
        """Complex, of the state."""
        return jnp.promote_types(self.dtype, jnp.complex64)

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> dict[str, Array]:
        """See ``LinearCell.weights``.

        Raises:
          ValueError: radii or a phase out of range.
        """
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(
                "r_min, r_max: expected 0 <= r_min < r_max <= 1, "
                f"received {self.r_min} and {self.r_max}"
            )
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase: expected in (0,2π], received {self.max_phase}")
        d, s, f = input_shape[-1], self._state_features, self.features
        dtype = self.param_dtype
        nu = self.param("nu", _ring(self.r_min, self.r_max), (s,), dtype)
        # Variances 1/(2D) and 1/S, as in the paper's appendix A; e^γ is made for them.
        return {
            "nu": nu,
            "theta": self.param("theta", _phases(self.max_phase), (s,), dtype),
            "gamma": self.param("gamma", lambda *_: _normalization(nu)),
            "input_kernel": self.param(
                "input_kernel", nn.initializers.normal((2 * d) ** -0.5), (d, 2 * s), dtype
            ),
            "output_kernel": self.param(
                "output_kernel", nn.initializers.normal(s**-0.5), (2 * s, f), dtype
            ),
            "skip_kernel": self.param("skip_kernel", _LECUN, (d, f), dtype),
        }

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Array:
        """h: zeros (B,S) complex."""
        return jnp.zeros((*input_shape[:-1], self._state_features), self.state_dtype)

    def coefficients(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """See ``LinearCell.coefficients``."""
        real = jnp.finfo(self.state_dtype).dtype
        nu, theta, gamma = (weights[name].astype(real) for name in ("nu", "theta", "gamma"))
        radius, phase = jnp.exp(-jnp.exp(nu)), jnp.exp(theta)
        eigenvalues = jax.lax.complex(radius * jnp.cos(phase), radius * jnp.sin(phase))
        rows = jnp.asarray(inputs, self.dtype)
        parts = (
            multiply(rows, kernel * jnp.exp(gamma)).astype(real)
            for kernel in jnp.split(weights["input_kernel"], 2, axis=-1)
        )
        addends = jax.lax.complex(*parts)
        return jnp.broadcast_to(eigenvalues, addends.shape), addends

    def read(self, weights: dict[str, Array], states: Array, inputs: Array) -> Array:
        """See ``LinearCell.read``."""
        real, imaginary = jnp.split(weights["output_kernel"], 2)
        return (
            multiply(states.real.astype(self.dtype), real)
            + multiply(states.imag.astype(self.dtype), imaginary)
            + multiply(jnp.asarray(inputs, self.dtype), weights["skip_kernel"])
        )

    @property
    def _state_features(self) -> int:
        return self.state_features or self.features


def _positive(x: Array) -> Array:
    """The paper's g (2410.01201, log-space appendix): continuous, increasing, above zero."""
    return jnp.where(x >= 0, x + 0.5, nn.sigmoid(x))


def _ring(r_min: float, r_max: float) -> Initializer:
    """ν of eigenvalues uniform on the ring between two radii: |λ|² is uniform."""

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        square = jax.random.uniform(key, shape, minval=r_min**2, maxval=r_max**2)
        # |λ| in [1e-6, 1 - 1e-6], so that ν and γ are finite.
        return jnp.log(jnp.clip(-0.5 * jnp.log(square), 1e-6, -math.log(1e-6))).astype(dtype)

    return draw


def _phases(max_phase: float) -> Initializer:
    """θ of phases uniform up to ``max_phase``."""

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        phase = jax.random.uniform(key, shape, maxval=max_phase)
        return jnp.log(jnp.maximum(phase, 1e-6)).astype(dtype)

    return draw


def _normalization(nu: Array) -> Array:
    r"""γ, the logarithm of :math:`\sqrt{1 - |λ|²}`."""
    return 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu)))
