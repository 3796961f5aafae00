"""Causal convolution over time, for sequences with lengths, packed sequences and streams."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.configuration import check_dtype_argument
from flaxnets.layers.padding import zero_padding
from flaxnets.typing import Array, Dtype

Initializer = Callable[..., Array]

_TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""The default of PyTorch's convolutions: uniform within ±1/√(k·D)."""


class CausalConv(nn.Module):
    r"""Causal convolution over time with dilation, of which each step reads itself and the past.

    .. math::
        y_t = \sum_{j=0}^{k-1} x_{t - j d} W_j + b

    with zeros before the first step of each sequence. It is XLA's convolution but for packed
    sequences and float64, of which XLA's is slow on CPUs: one matmul of the k shifted inputs, side
    by side, with the k kernels.

    With ``weight_norm`` the kernel of each output channel is :math:`g\,v / \|v\|` (Salimans and
    Kingma, 1602.07868).

    >>> import jax, jax.numpy as jnp
    >>> layer, x = CausalConv(4, kernel_size=3, dilation=2), jnp.ones((2, 6, 5))
    >>> y, variables = layer.init_with_output(jax.random.key(0), x)
    >>> y.shape, {name: leaf.shape for name, leaf in sorted(variables["params"].items())}
    ((2, 6, 4), {'bias': (4,), 'kernel': (3, 5, 4)})

    Parameters: ``kernel`` (k,D,F), of which the last one reads the step itself, as in
    ``flax.linen.Conv``; ``bias`` (F,); with ``weight_norm`` also ``scale`` g (F,), initially the
    norm of the kernel.

    Attributes:
      features: F, output channels.
      kernel_size: k, >= 1.
      dilation: d, >= 1, steps between two inputs of one output.
      weight_norm: normalises the kernels.
      kernel_init: of (k,D,F).
      dtype: of the convolution and of the outputs.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: int
    dilation: int = 1
    weight_norm: bool = False
    kernel_init: Initializer = _TORCH
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses sizes below 1 and the name of a dtype that does not exist."""
        for name in ("features", "kernel_size", "dilation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, received {getattr(self, name)}")
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @property
    def num_before(self) -> int:
        """Steps before the first one that the outputs depend on, (k−1)·d."""
        return (self.kernel_size - 1) * self.dilation

    @nn.compact
    def __call__(
        self, inputs: Array, starts: Array | None = None, before: Array | None = None
    ) -> Array:
        """Returns (B,T,F).

        Args:
          inputs: (B,T,D) float; what follows a step has no effect on it.
          starts: (B,T) bool, the first steps of packed sequences, which do not read what lies
            before them; None: one sequence a row.
          before: (B,(k−1)·d,D), the inputs before the first step, as ``last_inputs`` returns them;
            None: zeros.

        Raises:
          ValueError: inputs of another rank, or ``before`` of another shape.
        """
        check_sequences(inputs)
        b, t, d = inputs.shape
        shape = (self.kernel_size, d, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if self.weight_norm:
            norm = jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1)))
            scale = self.param("scale", lambda *_: norm)
            kernel = kernel * (scale / jnp.maximum(norm, 1e-12))
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        x = inputs.astype(self.dtype)
        shifts = starts is not None or x.dtype == jnp.float64
        if before is None and not shifts:
            # Taps before the first step of all outputs read zeros alone. An export for any number
            # of steps has all taps.
            taps = self.kernel_size
            if isinstance(t, int):
                taps = min(taps, 1 + max(t - 1, 0) // self.dilation)
            return self._convolve(x, kernel[-taps:], (taps - 1) * self.dilation) + bias
        if before is None:
            before = jnp.zeros((b, self.num_before, d), inputs.dtype)
        if before.shape != (b, self.num_before, d):
            raise ValueError(
                f"before: expected shape {(b, self.num_before, d)}, received {before.shape}"
            )
        x = jnp.concatenate([before.astype(self.dtype), x], axis=1)
        if not shifts:
            return self._convolve(x, kernel, 0) + bias
        shifted = [x[:, j * self.dilation :][:, :t] for j in range(self.kernel_size)]
        if starts is not None:
            # Each step reads zeros in place of what lies before the start of its sequence.
            numbers = jnp.cumsum(starts, axis=1)  # (B,T), of the packed sequence
            padded = jnp.pad(numbers, ((0, 0), (self.num_before, 0)))
            for j in range(self.kernel_size - 1):
                same = padded[:, j * self.dilation :][:, :t] == numbers
                shifted[j] = jnp.where(same[..., None], shifted[j], 0)
        columns = jnp.concatenate(shifted, axis=-1)  # (B,T,k·D)
        return columns @ kernel.reshape(-1, self.features) + bias

    def _convolve(self, x: Array, kernel: Array, num_zeros: int) -> Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1,),
            padding=[(num_zeros, 0)],
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )


def check_sequences(inputs: Array) -> None:
    """Refuses inputs that are not (B,T,D) float.

    Raises:
      ValueError: naming the shape or dtype.
    """
    if inputs.ndim != 3:
        raise ValueError(f"inputs: expected (B,T,D), received shape {tuple(inputs.shape)}")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"inputs: expected float, received {inputs.dtype}")


def last_inputs(
    inputs: Array, count: int, before: Array, lengths: Array | None, starts: Array | None
) -> Array:
    """Returns the inputs that the next steps of a stream read, (B,count,D).

    Args:
      inputs: (B,T,D), the steps that were read last.
      count: of steps, ``CausalConv.num_before``.
      before: (B,count,D), the steps before ``inputs``.
      lengths: (B,) int32 in [0,T], valid steps; None: all.
      starts: (B,T) bool, as of ``CausalConv``: what lies before the last start is zero.
    """
    b, t = inputs.shape[:2]
    x = jnp.concatenate([before, zero_padding(inputs, lengths).astype(before.dtype)], axis=1)
    ends = jnp.full(b, t) if lengths is None else lengths
    if starts is not None:
        valid = starts & (jnp.arange(t) < ends[:, None])
        numbers = jnp.pad(jnp.cumsum(valid, axis=1), ((0, 0), (count, 0)))
        x = jnp.where((numbers == numbers[:, -1:])[..., None], x, 0)

    def cut(x: Array, begin: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, begin, count)

    return jax.vmap(cut)(x, ends)
