"""``gradients="autodiff"``: derivatives in forward mode, on maps as well, against reverse mode."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import GRUCell
from flaxnets.recurrent.convolutional_cells import ConvGRUCell, ConvLSTMCell, MinConvLSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import MinLSTMCell
from flaxnets.recurrent.scan import ScanOptions


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    ("cell", "shape"),
    [
        (partial(GRUCell, 4), (3,)),
        (partial(MinLSTMCell, 4), (3,)),
        # On a CPU the first three would take convolutions with derivatives in reverse mode only.
        (partial(ConvGRUCell, 4, kernel_size=(1, 1)), (4, 4, 2)),
        (partial(MinConvLSTMCell, 4, kernel_size=(1, 1)), (4, 4, 2)),
        (partial(ConvLSTMCell, 16, kernel_size=(5, 5)), (32, 32, 16)),
        (partial(ConvLSTMCell, 4), (4, 4, 2)),
    ],
)
def test_forward_mode_equals_reverse_mode(cell: Any, shape: tuple[int, ...]) -> None:
    layer = Recurrent(cell, options=ScanOptions(gradients="autodiff"))
    rng = np.random.default_rng(0)
    x, dx = (jnp.asarray(rng.normal(size=(1, 2, *shape)), jnp.float32) for _ in range(2))
    variables = jax.jit(lambda key: layer.init(key, x, train=False))(jax.random.key(0))

    def outputs(x: Any) -> Any:
        return layer.apply(variables, x, train=False)

    y, dy = jax.jit(lambda x, dx: jax.jvp(outputs, (x,), (dx,)))(x, dx)
    weights = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(outputs(x) * weights)))(x)
    np.testing.assert_allclose(jnp.sum(weights * dy), jnp.sum(slope * dx), rtol=1e-3, atol=1e-4)
