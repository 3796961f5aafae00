"""Class scores, of each step or of the whole clip.

Every head has one call: ``head(inputs (B,T,F), lengths (B,) | None, *, train)`` to scores (B,T,K)
of each step, or (B,1,K) of all steps together.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype

Pooling = Callable[[Array, Array | None], Array]
"""(B,T,F) and lengths (B,) to (B,F): a function or module of ``decoders/pooling.py``."""


class StepClassifier(nn.Module):
    """Dropout, optionally one hidden layer, and scores for each step on its own.

    Attributes:
      num_classes: K.
      hidden_features: width of a ReLU layer before the scores; 0: none.
      dropout_rate: on what each linear layer reads.
      dtype: of the products; the scores are float32 at least.
    """

    num_classes: int
    hidden_features: int = 0
    dropout_rate: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array | None = None, *, train: bool) -> Array:
        """(B,T,F) float to scores (B,T,K) float32; ``lengths`` is not read.

        Raises:
          ValueError: ``inputs`` of another rank.
        """
        _raise_on_rank(inputs)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(inputs)
        if self.hidden_features:
            x = nn.relu(nn.Dense(self.hidden_features, dtype=self.dtype, name="hidden")(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="scores")(_at_least_float32(x))


class ClipClassifier(nn.Module):
    """Pools over time, and scores once for the whole clip.

    With ``pool_max`` on flattened maps it is the temporal feature pooling of Beyond Short Snippets
    (Ng et al., 1503.08909, section 3.1):

    - Conv pooling, the maximum over time of the last convolution's maps, place by place, then two
      fully connected layers: ``CRNN(pool="flatten", ...)`` with ``hidden_features=(4096, 4096)``.
    - Late pooling, the fully connected layers at each frame, then the maximum:
      ``step_features=(4096, 4096)``.

    Deviations: dropout is the caller's choice, the paper names none. With ``pool_last`` it is
    GRU-RCN's head (Ballas et al., 1511.06432).

    Attributes:
      num_classes: K.
      pool: (B,T,F) and lengths to (B,F): ``pool_last``, ``pool_mean``, ``pool_max``, an
        ``AttentionPooling``.
      step_features: widths of ReLU layers on each step, before the pooling.
      hidden_features: widths of ReLU layers after it.
      dropout_rate: on what each linear layer reads.
      dtype: of the products; the scores are float32 at least.
    """

    num_classes: int
    pool: Pooling
    step_features: tuple[int, ...] = ()
    hidden_features: tuple[int, ...] = ()
    dropout_rate: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, lengths: Array | None = None, *, train: bool) -> Array:
        """(B,T,F) float to scores (B,1,K) float32 of the clip.

        Args:
          inputs: (B,T,F) float.
          lengths: (B,) int32 in [0,T], valid steps; None: all.
          train: whether dropout acts.

        Raises:
          ValueError: ``inputs`` or ``lengths`` of another rank or dtype, or lengths outside [0,T].
        """
        _raise_on_rank(inputs)
        x = inputs
        for layer, features in enumerate(self.step_features):
            x = self._hidden(x, features, f"step_{layer}", train)  # (B,T,features)
        x = self.pool(x, lengths)[:, None]  # (B,1,F)
        for layer, features in enumerate(self.hidden_features):
            x = self._hidden(x, features, f"hidden_{layer}", train)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="scores")(_at_least_float32(x))

    def _hidden(self, inputs: Array, features: int, name: str, train: bool) -> Array:
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(inputs)
        return nn.relu(nn.Dense(features, dtype=self.dtype, name=name)(x))


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _raise_on_rank(inputs: Array) -> None:
    if inputs.ndim != 3:
        raise ValueError(f"inputs: expected (B,T,F), received shape {inputs.shape}")
