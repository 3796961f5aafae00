"""The layers in Keras 3 on its JAX backend: peers for speed. Needs Keras.

Imported only where that is installed. The layer's function without state is compiled as a whole,
as Keras' own trainer does it.
"""

import importlib
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.layer_steps import make_step
from experiments.benchmarks.timing import Step

LAYERS = {"lstm": "LSTM", "gru": "GRU", "elman": "SimpleRNN", "convlstm": "ConvLSTM2D"}
"""Names here to names in ``keras.layers``."""


def make_layer_step(name: str, x: np.ndarray, features: int, train: bool, **kwargs: Any) -> Step:
    """A forward pass, or one with gradients in parameters and inputs.

    Args:
      name: of a layer.
      x: (B,T,D) or (B,T,H,W,C) float32.
      features: width.
      train: whether gradients are taken.
      **kwargs: of the layer.
    """
    # Read when Keras is first imported.
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
