"""Recurrent layers of Keras 3 on its JAX backend, as peers. Needs Keras.

This module is imported only where Keras is installed. The stateless call of the layer is jitted as
a whole, as Keras' own trainer does.
"""

import importlib
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.layer_steps import make_step
from experiments.benchmarks.timing import Step

LAYERS = {"lstm": "LSTM", "gru": "GRU", "elman": "SimpleRNN", "convlstm": "ConvLSTM2D"}
"""Layers by our names: names in ``keras.layers``."""


def make_layer_step(name: str, x: np.ndarray, features: int, train: bool, **kwargs: Any) -> Step:
    """Returns a forward pass, or the gradients by parameters and inputs.

    Args:
      name: key of ``LAYERS``.
      x: (B,T,D) or (B,T,H,W,C) float32.
      features: width of the layer.
      train: whether gradients are computed.
      **kwargs: further arguments of the layer.
    """
    # Keras reads it at its first import.
    os.environ["KERAS_BACKEND"] = "jax"
    keras = importlib.import_module("keras")
    if name == "convlstm":
        kwargs["padding"] = "same"
    layer = getattr(keras.layers, LAYERS[name])(features, return_sequences=True, **kwargs)
    layer.build(x.shape)

    def apply(variables: Any, x: Any) -> Any:
        trainable, others = variables
        return layer.stateless_call(trainable, others, x, training=train)[0]

    trainable = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]

    def apply_trainable(trainable: Any, x: Any) -> Any:
        return apply((trainable, others), x)

    return make_step(apply_trainable, trainable, jnp.asarray(x), train)
