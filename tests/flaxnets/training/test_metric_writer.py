"""Share of time spent waiting for data."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from flaxnets.training.metric_writer import Window


@pytest.mark.parametrize("is_busy", [False, True])
def test_waiting_counts_where_the_device_has_run_out_of_work(is_busy: bool) -> None:
    window = Window(4)
    matrix = jnp.eye(1_500)

    @partial(jax.jit, static_argnums=0)
    def compute(matmuls: int) -> jax.Array:
        """Returns the result of matmuls; twenty take the device half a second or more."""
        return jax.lax.fori_loop(0, matmuls, lambda _, x: x @ matrix, matrix)[0, 0]

    num_matmuls = 20 if is_busy else 0
    jax.block_until_ready(compute(num_matmuls))
    one = jnp.ones(())
    sums = {name: (compute(num_matmuls), one) for name in ("loss", "gradient_norm")}
    if not is_busy:
        jax.block_until_ready(sums)
    with window.waiting():  # Nothing is pending before the first step.
        time.sleep(0.01)
    window.add(1, sums)
    with window.waiting():
        time.sleep(0.1)
    record = window.close()
    seconds = 1 / record["steps_per_second"]
    waited = record["data_wait_share"] * seconds
    if is_busy:
        assert 0.01 <= waited < 0.1 < seconds
    else:
        assert 0.1 <= waited <= seconds
