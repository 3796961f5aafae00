"""How fast this machine's CPU is at what a training step does, measured in a second or two."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flaxnets.training.flops import Flops

REPEATS = 7


@dataclasses.dataclass(frozen=True)
class CpuSpeed:
    """Operations a second: of products, of arithmetic by elements, of tanh and its like."""

    products: float
    elementwise: float
    transcendental: float

    def seconds(self, flops: Flops) -> float:
        """What the operations take one after the other."""
        return (
            flops.products / self.products
            + flops.elementwise / self.elementwise
            + flops.transcendental / self.transcendental
        )


def measure_cpu() -> CpuSpeed:
    """Times products of the size of a layer's, and arrays that do not fit into caches."""
    rows, width = 512, 1024
    left, right = jnp.ones((rows, width)), jnp.ones((width, width))
    big, times = jnp.ones(2**22), 4

    def arithmetic(x: jax.Array) -> jax.Array:
        for _ in range(times):
            x = x * 1.5 + 0.5
        return x

    return CpuSpeed(
        products=2 * rows * width * width / _time(lambda: left @ right),
        elementwise=2 * times * big.size / _time(lambda: arithmetic(big)),
        transcendental=big.size / _time(lambda: jnp.tanh(big)),
    )


def _time(function: Callable[[], jax.Array]) -> float:
    """Seconds, the median of some calls."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled())
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
