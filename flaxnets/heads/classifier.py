"""Classification heads: logits of each step, or of the whole clip.

Every head is called as ``head(inputs, lengths, train=...)`` with inputs (B,T,F) float and lengths
(B,) integers (an array or a list) or None, and returns float32 logits: (B,T,K) for the steps, or
(B,1,K) for the clip. T and the lengths may differ between batches, but for ``pool_concatenate``,
which needs one T. What lies in padded steps has no effect on values or gradients.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.configuration import check_dtype_argument
from flaxnets.heads.pooling import RUNNING_POOLS
from flaxnets.layers.padding import mask_steps, zero_where_masked
from flaxnets.typing import Array, Carry, Dtype

Pooling = Callable[[Array, Array | None], Array]
"""(B,T,F) float and lengths (B,) int32 or None to (B,F): a function or module of ``pooling.py``."""


class StreamLogits(NamedTuple):
    """Logits of the next steps of a stream, float32 at least."""

    steps: Array
    """(B,T,K), of each step alone."""
    clips: Array | None
    """(B,T,K), at each step those of the clip of all steps so far; None of a head that gives
    logits at each step, which the task averages."""


class StepClassifier(nn.Module):
    """Logits of each step independently: dropout, optionally one hidden layer, one linear layer.

    >>> import jax
    >>> steps = jnp.zeros((2, 8, 16))
    >>> head = StepClassifier(num_classes=5)
    >>> logits, variables = head.init_with_output(jax.random.key(0), steps, train=False)
    >>> logits.shape
    (2, 8, 5)

    Attributes:
      num_classes: K.
      hidden_features: width of a Dense + ReLU layer before the logits; 0: none.
      dropout_rate: on the inputs of each linear layer.
      dtype: of the hidden layer's matmul; the logits are float32 at least.
    """

    num_classes: int
    hidden_features: int = 0
    dropout_rate: float = 0.0
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array | None = None, *, train: bool) -> Array:
        """Maps (B,T,F) float to logits (B,T,K), float32 at least.

        Args:
          inputs: (B,T,F) float.
          lengths: (B,) integers in [0,T], valid steps; None: T. Padded steps are read as zeros, and
            their logits are meaningless.
          train: whether dropout acts.

        Raises:
          ValueError: ``inputs`` or ``lengths`` of another rank or dtype, or lengths outside [0,T].
        """
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(_read_steps(inputs, lengths))
        if self.hidden_features:
            x = nn.relu(nn.Dense(self.hidden_features, dtype=self.dtype, name="hidden")(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="scores")(_at_least_float32(x))

    @property
    def obstacle(self) -> str:
        """The reason why the head has no ``stream``: always empty."""
        return ""

    def stream(
        self, carry: Carry | None, inputs: Array, lengths: Array | None = None
    ) -> tuple[Carry, StreamLogits]:
        """Returns an empty carry and the logits of the next steps; arguments as ``__call__``."""
        return (), StreamLogits(self(inputs, lengths, train=False), None)


class ClipClassifier(nn.Module):
    """Logits of the whole clip: pooling over the valid steps, then fully connected layers.

    With ``pool_max`` on flattened feature maps it is the temporal feature pooling of Beyond Short
    Snippets (Ng et al., 1503.08909, section 3.1):

    - Conv pooling: the maximum over time of the last feature maps at each position, then two fully
      connected layers: ``CRNN(pool="flatten", ...)`` with ``hidden_features=(4096, 4096)``.
    - Late pooling: the fully connected layers on each frame, then the maximum:
      ``step_features=(4096, 4096)``.

    With ``pool_last`` it is the head of GRU-RCN (Ballas et al., 1511.06432). Deviation: the rate of
    dropout is free, Ng et al. name none.

    >>> import jax
    >>> from flaxnets.heads.pooling import pool_mean
    >>> steps, lengths = jnp.zeros((2, 8, 16)), jnp.array([8, 3])
    >>> head = ClipClassifier(num_classes=5, pool=pool_mean)
    >>> logits, variables = head.init_with_output(jax.random.key(0), steps, lengths, train=False)
    >>> logits.shape
    (2, 1, 5)

    Attributes:
      num_classes: K.
      pool: (B,T,F) and lengths to (B,F): ``pool_last``, ``pool_mean``, ``pool_max`` or an
        ``AttentionPooling``.
      step_features: widths of Dense + ReLU layers on each step, before the pooling.
      hidden_features: widths of Dense + ReLU layers after the pooling.
      dropout_rate: on the inputs of each linear layer.
      dtype: of the hidden layers' matmuls; the logits are float32 at least.
    """

    num_classes: int
    pool: Pooling
    step_features: tuple[int, ...] = ()
    hidden_features: tuple[int, ...] = ()
    dropout_rate: float = 0.0
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    def __call__(self, inputs: Array, lengths: Array | None = None, *, train: bool) -> Array:
        """Maps (B,T,F) float to logits (B,1,K) of the clips, float32 at least.

        Args:
          inputs: (B,T,F) float.
          lengths: (B,) integers in [0,T], valid steps; None: T. Padded steps change nothing.
          train: whether dropout acts.

        Raises:
          ValueError: ``inputs`` or ``lengths`` of another rank or dtype, or lengths outside [0,T].
        """

        def pool(x: Array) -> Array:
            pooled = self.pool(x, lengths)
            if pooled.ndim != 2 or pooled.shape[0] != x.shape[0]:
                raise ValueError(
                    f"pool: expected (B,F) of (B,T,F), received {pooled.shape} of {x.shape}"
                )
            return pooled[:, None]  # (B,1,F)

        return self._classify(inputs, lengths, pool, train)

    @property
    def obstacle(self) -> str:
        """The reason why the head has no ``stream``; empty if it has."""
        try:
            known = self.pool in RUNNING_POOLS
        except TypeError:  # A pooling of the user's that has no hash.
            known = False
        if known:
            return ""
        kind = type(self.pool).__name__ if isinstance(self.pool, nn.Module) else ""
        name = kind or getattr(self.pool, "__name__", repr(self.pool))
        return f"{name} pools all steps of a clip"

    def stream(
        self, carry: Carry | None, inputs: Array, lengths: Array | None = None
    ) -> tuple[Carry, StreamLogits]:
        """Returns the new carry and the logits of the next steps.

        Args:
          carry: that of the chunk before; None for the first chunk.
          inputs: (B,T,F) float, the next steps.
          lengths: (B,) integers in [0,T], valid steps of this chunk; None: all.

        Raises:
          ValueError: a pooling that needs the whole clip, or as ``__call__``.
        """
        if self.obstacle:
            raise ValueError(f"pool: expected pool_last, pool_mean or pool_max; {self.obstacle}")
        run, carries = RUNNING_POOLS[self.pool], []

        def pool(x: Array) -> Array:
            new_carry, pooled = run(carry, x, mask_steps(x, lengths))
            carries.append(new_carry)
            return jnp.concatenate([x, pooled], axis=1)  # Of each step alone, and of all so far.

        logits = self._classify(inputs, lengths, pool, False)
        t = inputs.shape[1]
        return carries[0], StreamLogits(logits[:, :t], logits[:, t:])

    @nn.compact
    def _classify(
        self, inputs: Array, lengths: Array | None, pool: Callable[[Array], Array], train: bool
    ) -> Array:
        """Returns the logits (B,N,K) of what ``pool`` makes of the steps (B,T,F): (B,N,F)."""
        x = _read_steps(inputs, lengths)
        for layer, features in enumerate(self.step_features):
            x = self._hidden(x, features, f"step_{layer}", train)  # (B,T,features)
        x = pool(x)
        for layer, features in enumerate(self.hidden_features):
            x = self._hidden(x, features, f"hidden_{layer}", train)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="scores")(_at_least_float32(x))

    def _hidden(self, inputs: Array, features: int, name: str, train: bool) -> Array:
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(inputs)
        return nn.relu(nn.Dense(features, dtype=self.dtype, name=name)(x))


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _read_steps(inputs: Array, lengths: Array | None) -> Array:
    """Returns (B,T,F) with zeros at padded steps."""
    if inputs.ndim != 3:
        raise ValueError(f"inputs: expected (B,T,F), received shape {inputs.shape}")
    return inputs if lengths is None else zero_where_masked(inputs, mask_steps(inputs, lengths))
