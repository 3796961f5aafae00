"""How fast this machine's CPU is at what a training step does, measured in a second or two."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.spatial.convolution import conv2d
from flaxnets.training.flops import Flops, count_flops

REPEATS = 7


@dataclasses.dataclass(frozen=True)
class CpuSpeed:
    """Operations a second: of products, wide and narrow, of arithmetic by elements, of tanh."""

    products: float
    narrow: float
    elementwise: float
    transcendental: float

    def seconds(self, flops: Flops) -> float:
        """What the operations take one after the other.

        Whole steps took 0.85 to 1.1 times as long, as measured of three networks and a captioner on
        ``moving_shapes`` and of two captioners of photographs.
        """
        return (
            (flops.products - flops.narrow) / self.products
            + flops.narrow / self.narrow
            + flops.elementwise / self.elementwise
            + flops.transcendental / self.transcendental
        )


def measure_cpu() -> CpuSpeed:
    """Times products and convolutions like a layer's, and arrays that do not fit into caches."""
    rows, width = 512, 1024
    left, right = jnp.ones((rows, width)), jnp.ones((width, width))
    images, kernel = jnp.ones((128, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    big = jnp.ones(2**22)

    def convolve(images: jax.Array, kernel: jax.Array) -> Any:
        """The maps and both gradients."""
        maps, pull = jax.vjp(partial(conv2d, strides=(2, 2)), images, kernel)
        return maps, pull(maps)

    def combine(x: jax.Array, y: jax.Array) -> jax.Array:
        """Two operations an array read, as fused code does on average; memory sets the time."""
        return x * 1.5 + y

    return CpuSpeed(
        products=2 * rows * width * width / _time(jnp.matmul, left, right),
        narrow=count_flops(convolve, images, kernel).products / _time(convolve, images, kernel),
        elementwise=2 * big.size / _time(combine, big, 2 * big),
        transcendental=big.size / _time(jnp.tanh, big),
    )


def _time(function: Callable[..., Any], *arguments: jax.Array) -> float:
    """Seconds, the median of some calls; of constants XLA would compute it once for all."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
