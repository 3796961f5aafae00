"""Class scores of each step."""

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype


class StepClassifier(nn.Module):
    """Dropout, optionally one hidden layer, and scores for each step on its own.

    Attributes:
      num_classes: K.
      hidden_features: width of a ReLU layer before the scores; 0: none.
      dropout_rate: on what each linear layer reads.
      dtype: of the products; the scores are float32.
    """

    num_classes: int
    hidden_features: int = 0
    dropout_rate: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """(B,T,F) float to scores (B,T,K) float32."""
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(inputs)
        if self.hidden_features:
            x = nn.relu(nn.Dense(self.hidden_features, dtype=self.dtype, name="hidden")(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="scores")(x.astype(jnp.float32))
