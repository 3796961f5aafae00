"""Linear recurrent cells on vectors: minGRU, minLSTM, LRU, QRNN; their base classes.

The carry of a linear cell is the state h of an elementwise linear recurrence whose coefficients
depend on the inputs alone: h_t = a_t ∘ h_{t-1} + b_t. So every matmul covers all steps at once,
before or after the recurrence, and only ``linear_recurrence`` or ``gated_average`` runs over time.
``LinearCell`` and ``AveragingCell`` are the base classes for these two.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.recurrent.cell import CellModule, check_inputs
from flaxnets.recurrent.cells import Initializer, chrono_bias, per_gate
from flaxnets.recurrent.linear_recurrence import (
    gate_weights,
    gated_average,
    linear_recurrence,
    plain_recurrence,
)
from flaxnets.recurrent.matmul import multiply
from flaxnets.typing import (
    Array,
    Carry,
    Dtype,
    PRNGKey,
)

_LECUN = nn.initializers.lecun_normal()


class LinearCell(CellModule):
    r"""Base class of cells whose carry is h in :math:`h_t = a_t ∘ h_{t-1} + b_t`.

    A subclass defines ``weights`` and ``coefficients``, and ``compute_outputs`` if its outputs are
    not its states. ``Cell`` is the interface of other cells. As there, only ``weights`` creates or
    reads Linen's variables. The attributes are those of ``CellModule``.
    """

    def weights(self, input_shape: tuple[int, ...]) -> dict[str, Array]:
        """Returns the parameters by name, created at the first call, for inputs (...,D)."""
        raise NotImplementedError

    def initialize_carry(self, rng: PRNGKey | None, input_shape: tuple[int, ...]) -> Carry:
        """Returns the state before the first step: zeros (B,S) ``state_dtype``.

        Args:
          rng: not used; the signature is that of Flax's cells.
          input_shape: of one step: (B,D).
        """
        return jnp.zeros((*input_shape[:-1], self.features), self.state_dtype)

    def coefficients(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """Returns a and b, (...,S) ``state_dtype``, for inputs (...,D) of any number of steps."""
        raise NotImplementedError

    def compute_states(
        self,
        weights: dict[str, Array],
        carry: Array,
        inputs: Array,
        valid: Array | None,
        resets: Array | None = None,
        *,
        reverse: bool,
        autodiff: bool,
    ) -> Array:
        """Returns the states (B,T,S) ``state_dtype`` of all steps.

        Args:
          weights: the parameters by name.
          carry: (B,S), the state before the first step.
          inputs: (B,T,D).
          valid: (B,T) bool, the steps that change the state; None: all.
          resets: (B,T) bool, the steps that begin from a state of zeros; None: none.
          reverse: from the last step to the first.
          autodiff: leaves derivatives to JAX, in any mode; False: custom ones, in reverse mode.
        """
        coefficients, increments = self.coefficients(weights, inputs)
        if resets is not None:
            coefficients = _where_step(resets, 0, coefficients)
        if valid is not None:
            # h' = 1·h + 0 keeps the state.
            coefficients = _where_step(valid, coefficients, 1)
            increments = _where_step(valid, increments, 0)
        recurrence = plain_recurrence if autodiff else linear_recurrence
        return recurrence(coefficients, increments, carry, axis=1, reverse=reverse)

    def compute_outputs(self, weights: dict[str, Array], states: Array, inputs: Array) -> Array:
        """Returns the outputs (...,F) ``dtype`` for states (...,S) and inputs (...,D)."""
        return states.astype(self.dtype)

    def run(
        self,
        weights: dict[str, Array],
        carry: Carry,
        inputs: Array,
        valid: Array | None,
        resets: Array | None = None,
        *,
        reverse: bool,
        autodiff: bool,
    ) -> tuple[Carry, Array]:
        """Returns the last carry, and the outputs (B,T,F) ``dtype``, zero where not valid.

        The arguments are those of ``compute_states``; a cell whose carry is more than its state
        overrides this, ``initialize_carry`` and ``__call__``.
        """
        states = self.compute_states(
            weights, carry, inputs, valid, resets, reverse=reverse, autodiff=autodiff
        )
        outputs = self.compute_outputs(weights, states, inputs)
        if valid is not None:
            outputs = _where_step(valid, outputs, 0)
        return states[:, 0 if reverse else -1], outputs

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Returns the new carry (B,S) and the output (B,F) of one step, for inputs (B,D).

        Raises:
          ValueError: inputs of another rank or of integers.
        """
        check_inputs(inputs, "B", self.num_feature_axes)
        weights = self.weights(inputs.shape)
        coefficients, increments = self.coefficients(weights, inputs)
        state = coefficients * carry + increments
        return state, self.compute_outputs(weights, state, inputs)

    def affine(self, weights: dict[str, Array], inputs: Array) -> list[Array]:
        """Returns the G blocks (...,F) of x W + b, in ``state_dtype`` from the matmul on."""
        gates = weights["bias"].shape[0] // self.features
        blocks = zip(
            jnp.split(weights["input_kernel"], gates, axis=-1),
            jnp.split(weights["bias"], gates),
            strict=True,
        )
        rows = jnp.asarray(inputs, self.dtype)
        # The gradient of one matmul that is split is slow: XLA pads its parts and adds them.
        return [
            multiply(rows, kernel).astype(self.state_dtype) + bias.astype(self.state_dtype)
            for kernel, bias in blocks
        ]

    def affine_weights(
        self,
        input_shape: tuple[int, ...],
        biases: list[float],
        draw_bias: Initializer | None = None,
    ) -> dict[str, Array]:
        """Creates ``input_kernel`` of ``kernel_shape`` and ``bias`` (G·F,).

        Args:
          input_shape: (...,D), or that of the feature maps.
          biases: G initial values, one for each block of ``bias``.
          draw_bias: initializer of ``bias`` in place of these values.
        """
        gates = len(biases)
        shape = self.kernel_shape(input_shape[-1], gates * self.features)
        kernel = self.param("input_kernel", per_gate(_LECUN, gates), shape, self.param_dtype)
        bias = self.param("bias", draw_bias or blocks(biases), shape[-1:], self.param_dtype)
        return {"input_kernel": kernel, "bias": bias}

    def kernel_shape(self, channels: int, outputs: int) -> tuple[int, ...]:
        """Returns the shape of ``input_kernel``, (channels,outputs)."""
        return channels, outputs


class AveragingCell(LinearCell):
    r"""Base class of linear cells that average candidates: :math:`h_t = (1 - u) h_{t-1} + u k`.

    A subclass defines ``weights`` and ``gates``. The attributes are those of ``CellModule``.
    """

    def gates(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """Returns z of u = σ(z), and k, (...,F) ``state_dtype``, for inputs (...,D)."""
        raise NotImplementedError

    def coefficients(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """See ``LinearCell.coefficients``."""
        gate, candidate = self.gates(weights, inputs)
        entering, kept = gate_weights(gate)
        return kept, entering * candidate

    def compute_states(
        self,
        weights: dict[str, Array],
        carry: Array,
        inputs: Array,
        valid: Array | None,
        resets: Array | None = None,
        *,
        reverse: bool,
        autodiff: bool,
    ) -> Array:
        """See ``LinearCell.compute_states``."""
        if autodiff or resets is not None:
            # No gate resets a state and lets in no more than σ(z) of the candidate.
            return super().compute_states(
                weights, carry, inputs, valid, resets, reverse=reverse, autodiff=autodiff
            )
        gate, candidate = self.gates(weights, inputs)
        if valid is not None:
            # u = σ(-∞) = 0 keeps the state.
            gate = _where_step(valid, gate, -jnp.inf)
            candidate = _where_step(valid, candidate, 0)
        return gated_average(gate, candidate, carry, axis=1, reverse=reverse)


class MinGRUCell(AveragingCell):
    r"""Minimal GRU (Feng et al., 2410.01201, section 3), whose gate reads the inputs alone.

    .. math::
        z, k &= x W + b \\
        h' &= (1 - σ(z)) h + σ(z) g(k)

    The candidate g(k) is k itself or, with ``positive_candidate``, that of the paper's log-space
    form (appendix): :math:`k + ½` for k ≥ 0 and :math:`σ(k)` below.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import MinGRUCell
    >>> cell, x = MinGRUCell(4), jnp.ones((2, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> (state, output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, {name: leaf.shape for name, leaf in sorted(variables["params"].items())}
    ((2, 4), {'bias': (8,), 'input_kernel': (3, 8)})

    Parameters: ``input_kernel`` W (D,2F) and ``bias`` b (2F,) for z, k.

    Deviations: the paper sums in log space; here h is summed directly in float32 or wider, which
    gives the same values.

    Attributes:
      update_bias: initial bias of z; a lower one gives a longer memory (−2: a mean of about 8
        steps).
      positive_candidate: keeps states positive, as the paper's log-space form needs.
      chrono_steps: initial bias of z by ``chrono_bias``, for memories of up to this many steps, in
        place of ``update_bias``; 0: not.
    """

    update_bias: float = 0.0
    positive_candidate: bool = False
    chrono_steps: int = 0

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> dict[str, Array]:
        """See ``LinearCell.weights``."""
        draw_bias = chrono_bias((-1, 0), self.chrono_steps) if self.chrono_steps else None
        return self.affine_weights(input_shape, [self.update_bias, 0.0], draw_bias)

    def gates(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """See ``AveragingCell.gates``."""
        gate, candidate = self.affine(weights, inputs)
        return gate, _positive(candidate) if self.positive_candidate else candidate


class MinLSTMCell(AveragingCell):
    r"""Minimal LSTM (Feng et al., 2410.01201, section 3), with normalised gates.

    .. math::
        f, i, k &= x W + b \\
        f' &= \frac{σ(f)}{σ(f) + σ(i)}, \quad i' = \frac{σ(i)}{σ(f) + σ(i)} \\
        h' &= f' h + i' g(k)

    where g is that of ``MinGRUCell``. The quotients are computed as in the paper's log-space form
    (appendix), which cannot give 0/0: :math:`i' = σ(\log σ(i) - \log σ(f)) = 1 - f'`.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import MinLSTMCell
    >>> cell, x = MinLSTMCell(4), jnp.ones((2, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> (state, output), variables = init(jax.random.key(0), carry, x)
    >>> output.shape, {name: leaf.shape for name, leaf in sorted(variables["params"].items())}
    ((2, 4), {'bias': (12,), 'input_kernel': (3, 12)})

    Parameters: ``input_kernel`` W (D,3F) and ``bias`` b (3F,) for f, i, k.

    Attributes:
      forget_bias: initial bias of f; a higher one gives a longer memory, up to a limit, since σ(f)
        saturates. ``input_bias`` has no such limit.
      input_bias: initial bias of i; a lower one gives a longer memory (−3: a mean of about 12 steps
        with the default of f).
      positive_candidate: keeps states positive, as in ``MinGRUCell``.
      chrono_steps: initial biases of f and i by ``chrono_bias``, for memories of up to this many
        steps, in place of ``forget_bias`` and ``input_bias``; 0: not.
    """

    forget_bias: float = 0.0
    input_bias: float = 0.0
    positive_candidate: bool = False
    chrono_steps: int = 0

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> dict[str, Array]:
        """See ``LinearCell.weights``."""
        draw_bias = chrono_bias((1, -1, 0), self.chrono_steps) if self.chrono_steps else None
        return self.affine_weights(input_shape, [self.forget_bias, self.input_bias, 0.0], draw_bias)

    def gates(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """See ``AveragingCell.gates``."""
        f, i, candidate = self.affine(weights, inputs)
        # log σ(i) - log σ(f) with one logarithm.
        gate = jnp.minimum(i, 0) - jnp.minimum(f, 0)
        gate += jnp.log((1 + jnp.exp(-jnp.abs(f))) / (1 + jnp.exp(-jnp.abs(i))))
        return gate, _positive(candidate) if self.positive_candidate else candidate


class QRNNCell(AveragingCell):
    r"""Quasi-recurrent cell (Bradbury et al., 1611.01576) with fo-pooling: gates by a convolution.

    .. math::
        z_t, f_t, o_t &= W [x_{t-k+1}; …; x_t] + b \\
        c_t &= σ(f_t) c_{t-1} + (1 - σ(f_t)) \tanh z_t \\
        h_t &= σ(o_t) c_t

    The convolution (section 2, equation 1) is causal: each step reads its own inputs and those of
    the k − 1 steps before, zeros before the first one, as those of other sequences packed into the
    row are. A backward scan reads the steps after it.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent.linear_cells import QRNNCell
    >>> cell, x = QRNNCell(4, window=2), jnp.ones((2, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> ((state, before), output), variables = init(jax.random.key(0), carry, x)
    >>> state.shape, before.shape, output.shape
    ((2, 4), (2, 1, 3), (2, 4))

    Parameters: ``input_kernel`` W (kD,3F), the step itself last, and ``bias`` b (3F,), for z, f, o.

    Deviations: no zoneout (section 2.1); i of ifo-pooling is 1 − σ(f).

    Attributes:
      window: k, steps that the convolution reads, at least 1; the paper's is 2 for language.
      forget_bias: initial bias of f; a higher one gives a longer memory.
      chrono_steps: initial bias of f by ``chrono_bias``, for memories of up to this many steps, in
        place of ``forget_bias``; 0: not.
    """

    window: int = 2
    forget_bias: float = 0.0
    chrono_steps: int = 0

    def __post_init__(self) -> None:
        """Refuses a window without steps."""
        if self.window < 1:
            raise ValueError(f"window: expected at least 1, received {self.window}")
        super().__post_init__()

    @nn.compact
    def weights(self, input_shape: tuple[int, ...]) -> dict[str, Array]:
        """See ``LinearCell.weights``."""
        draw_bias = chrono_bias((0, 1, 0), self.chrono_steps) if self.chrono_steps else None
        shape = (self.window * input_shape[-1],)
        return self.affine_weights(shape, [0.0, self.forget_bias, 0.0], draw_bias)

    def initialize_carry(
        self, rng: PRNGKey | None, input_shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """Returns c, zeros (B,F) ``state_dtype``, and the steps before, (B,k-1,D) ``dtype``."""
        *rows, width = input_shape
        before = jnp.zeros((*rows, self.window - 1, width), self.dtype)
        return jnp.zeros((*rows, self.features), self.state_dtype), before

    def gates(self, weights: dict[str, Array], inputs: Array) -> tuple[Array, Array]:
        """See ``AveragingCell.gates``; inputs (...,kD) are those of ``run``."""
        candidate, forget, _ = self.affine(weights, inputs)
        return -forget, jnp.tanh(candidate)

    def compute_outputs(self, weights: dict[str, Array], states: Array, inputs: Array) -> Array:
        """See ``LinearCell.compute_outputs``; inputs (...,kD) are those of ``run``."""
        _, _, exposed = self.affine(weights, inputs)
        return (nn.sigmoid(exposed) * states).astype(self.dtype)

    def run(
        self,
        weights: dict[str, Array],
        carry: Carry,
        inputs: Array,
        valid: Array | None,
        resets: Array | None = None,
        *,
        reverse: bool,
        autodiff: bool,
    ) -> tuple[Carry, Array]:
        """See ``LinearCell.run``."""
        state, before = carry
        inputs = jnp.asarray(inputs, self.dtype)
        if reverse:  # Backwards in time is forwards through flipped steps, padding first.
            inputs, valid, resets = jax.tree.map(
                lambda x: jnp.flip(x, axis=1), (inputs, valid, resets)
            )
        windows, before = self._windows(before, inputs, valid, resets, reverse)
        state, outputs = super().run(
            weights, state, windows, valid, resets, reverse=False, autodiff=autodiff
        )
        return (state, before), jnp.flip(outputs, axis=1) if reverse else outputs

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Returns the new carry and the output (B,F) of one step, for inputs (B,D).

        Raises:
          ValueError: inputs of another rank or of integers.
        """
        check_inputs(inputs, "B", self.num_feature_axes)
        weights = self.weights(inputs.shape)
        carry, outputs = self.run(
            weights, carry, inputs[:, None], None, reverse=False, autodiff=True
        )
        return carry, outputs[:, 0]

    def _windows(
        self,
        before: Array,
        inputs: Array,
        valid: Array | None,
        resets: Array | None,
        padding_first: bool,
    ) -> tuple[Array, Array]:
        """Returns the windows (B,T,kD) of all steps, and the k − 1 last steps (B,k-1,D)."""
        batch_size, num_steps, _ = inputs.shape
        context = self.window - 1
        if not context:
            return inputs, before
        count = jnp.full((batch_size, 1), num_steps)
        if valid is not None:
            count = jnp.sum(valid, axis=1, keepdims=True)
        first = num_steps - count if padding_first else jnp.zeros_like(count)
        steps = jnp.concatenate([before, inputs], axis=1)  # (B,k-1+T,D)
        if padding_first:
            # The steps before stand right before the first valid one; padding is zeros.
            places = jnp.arange(context + num_steps)[:, None] == first[..., None] + jnp.arange(
                context
            )
            steps = jnp.pad(inputs, ((0, 0), (context, 0), (0, 0)))
            steps += jnp.einsum("btk,bkd->btd", places.astype(before.dtype), before)
        resets = jnp.zeros((batch_size, num_steps), bool) if resets is None else resets
        # Resets up to and with each step; a window ends at the last one.
        marks = jnp.pad(jnp.cumsum(resets, axis=1), ((0, 0), (context, 0)))  # (B,k-1+T)
        windows = [
            jnp.where(
                (marks[:, context:] > marks[:, begin : begin + num_steps])[..., None],
                0,
                steps[:, begin : begin + num_steps],
            )
            for begin in range(context)
        ]
        # The last k − 1 steps, as the window of the step that follows reads them.
        index = first + count + jnp.arange(context)  # (B,k-1)
        kept = jnp.take_along_axis(steps, index[..., None], axis=1)
        marked = jnp.take_along_axis(marks, index, axis=1)
        kept = jnp.where((marked[:, -1:] > marked)[..., None], 0, kept)
        return jnp.concatenate([*windows, inputs], axis=-1), kept


class LRUCell(LinearCell):
    r"""Linear recurrent unit (Orvieto et al., 2303.06349): a complex diagonal recurrence.

    .. math::
        λ &= \exp(-e^{ν} + i e^{θ}), \quad |λ| < 1 \\
        h' &= λ ∘ h + e^{γ} ∘ (x B) \\
        y &= \mathrm{Re}(h' C) + x D

    Initially λ is uniformly distributed on the ring between the radii ``r_min`` and ``r_max``, with
    phases in [0, ``max_phase``] (section 3.3, lemma 3.2), and :math:`e^γ = \sqrt{1 - |λ|²}`
    (section 3.4); ν, θ and γ are trained. For long sequences section 3.4 uses radii close to 1 and
    small phases, as π/10. The state is complex64, or complex128 in float64.

    >>> import jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import LRUCell
    >>> cell, x = LRUCell(4, state_features=6), jnp.ones((2, 3))
    >>> carry = cell.initialize_carry(None, x.shape)
    >>> init = jax.jit(cell.init_with_output)
    >>> (state, output), variables = init(jax.random.key(0), carry, x)
    >>> state.shape, str(state.dtype), output.shape
    ((2, 6), 'complex64', (2, 4))

    Parameters: ``nu``, ``theta``, ``gamma`` (S,), ``input_kernel`` (D,2S) for Re B, Im B,
    ``output_kernel`` (2S,F) for Re C, −Im C, ``skip_kernel`` (D,F).

    Deviations: D is a matrix, as in the paper's equation; the paper's code has a diagonal, which
    needs inputs as wide as the outputs.

    Attributes:
      state_features: S, width of the state; 0: ``features``.
      r_min: smallest initial |λ|, in [0,r_max).
      r_max: largest initial |λ|, at most 1.
      max_phase: largest initial phase, radians in (0,2π].
    """

    state_features: int = 0
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi

    @property
    def state_dtype(self) -> Dtype:
        """Complex dtype of the state."""
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
        # Variances 1/(2D) and 1/S, as in the paper's appendix A; e^γ normalises for them.
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
        """Returns h: zeros (B,S) complex."""
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
        increments = jax.lax.complex(*parts)
        return jnp.broadcast_to(eigenvalues, increments.shape), increments

    def compute_outputs(self, weights: dict[str, Array], states: Array, inputs: Array) -> Array:
        """See ``LinearCell.compute_outputs``."""
        real, imaginary = jnp.split(weights["output_kernel"], 2)
        return (
            multiply(states.real.astype(self.dtype), real)
            + multiply(states.imag.astype(self.dtype), imaginary)
            + multiply(jnp.asarray(inputs, self.dtype), weights["skip_kernel"])
        )

    @property
    def _state_features(self) -> int:
        return self.state_features or self.features


def _where_step(flags: Array, true: Any, false: Any) -> Array:
    """Returns ``true`` at the steps that are flagged, (B,T) bool, else ``false``: (B,T,...)."""
    rank = max(jnp.ndim(true), jnp.ndim(false))
    return jnp.where(flags.reshape(*flags.shape, *[1] * (rank - flags.ndim)), true, false)


def blocks(values: list[float]) -> Initializer:
    """Returns an initializer of equal blocks along one axis, each filled with one value."""

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        return jnp.repeat(jnp.asarray(values, dtype), shape[0] // len(values))

    return draw


def _positive(x: Array) -> Array:
    """Returns g(x) of 2410.01201's log-space appendix: continuous, increasing, positive."""
    return jnp.where(x >= 0, x + 0.5, nn.sigmoid(x))


def _ring(r_min: float, r_max: float) -> Initializer:
    """Returns an initializer of ν for λ uniform on the ring between two radii.

    Then |λ|² is uniform, and ν = log(−½ log |λ|²).
    """

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        square = jax.random.uniform(key, shape, minval=r_min**2, maxval=r_max**2)
        # |λ| is clipped to [1e-6, 1 - 1e-6], so that ν and γ are finite.
        return jnp.log(jnp.clip(-0.5 * jnp.log(square), 1e-6, -math.log(1e-6))).astype(dtype)

    return draw


def _phases(max_phase: float) -> Initializer:
    """Returns an initializer of θ, the logarithm of a phase uniform up to ``max_phase``."""

    def draw(key: PRNGKey, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
        phase = jax.random.uniform(key, shape, maxval=max_phase)
        return jnp.log(jnp.maximum(phase, 1e-6)).astype(dtype)

    return draw


def _normalization(nu: Array) -> Array:
    r"""Returns γ, the logarithm of :math:`\sqrt{1 - |λ|²}`."""
    return 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu)))
