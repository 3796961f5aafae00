"""Output shapes of encoders, and random images."""

from typing import Any

import jax
import numpy as np

from flaxnets.encoders.encoder import Encoder


def shapes_of(encoder: Encoder, images: Any, *, train: bool = False) -> tuple[Any, Any]:
    """Returns the shapes of the variables and of the outputs."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def run() -> Any:
        outputs, variables = encoder.init_with_output(keys, images, train=False)
        if train:
            outputs = encoder.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs=keys
            )
        return variables, outputs

    return jax.eval_shape(run)


def draw_images(n: int = 2, size: tuple[int, int] = (65, 70)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *size, 3), np.uint8)
