"""The lines of a plan."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.layers.convolution import conv2d
from flaxnets.training.config import Config
from flaxnets.training.cost import Cost, Memory
from flaxnets.training.flops import Flops, count_flops
from launch.reports.run_page import duration

# Devices that a plan can be made for: peaks and memory from their makers' data sheets.


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
      platform: JAX's name of it.
      peak: operations a second of dense products, by the dtype of their operands; float32 is what
        JAX uses for it by default: TF32 on GPUs, bfloat16 passes on TPUs.
      memory: bytes.
    """

    platform: str
    peak: dict[str, float]
    memory: float


GIB = 2.0**30


def _gpu(bfloat16: float, tf32: float, gigabytes: float) -> Device:
    return Device("cuda", {"bfloat16": bfloat16 * 1e12, "float32": tf32 * 1e12}, gigabytes * 1e9)


def _tpu(bfloat16: float, gibibytes: float) -> Device:
    peak = dict.fromkeys(("bfloat16", "float32"), bfloat16 * 1e12)
    return Device("tpu", peak, gibibytes * GIB)


DEVICES = {
    "a100": _gpu(312, 156, 80),
    "h100": _gpu(989, 495, 80),
    "h200": _gpu(989, 495, 141),
    "tpu_v4": _tpu(275, 32),
    "tpu_v5e": _tpu(197, 16),
    "tpu_v5p": _tpu(459, 95),
    "tpu_v6e": _tpu(918, 32),
}
"""A100 and H100 with SXM and 80 GB."""
CPU = "cpu"
"""This machine, whose speed is measured."""


def find_device(name: str) -> Device:
    """The device of a name.

    Raises:
      ValueError: an unknown one, with the list.
    """
    if name not in DEVICES:
        names = ", ".join([*DEVICES, CPU])
        raise ValueError(f"device: expected one of {names}, received {name!r}")
    return DEVICES[name]


ROOM = 0.9
"""Of a device's memory that a program can have."""


def describe(
    spec: str,
    config: Config,
    cost: Cost,
    batch: Mapping[str, np.ndarray],
    num_examples: int,
    *,
    name: str,
    device: Device | None,
    count: int,
    utilization: float,
    rematerialize: Callable[[], Memory | None] = lambda: None,
) -> Iterator[str]:
    """The lines of a plan.

    Args:
      spec: of the experiment.
      config: its configuration.
      cost: of its steps.
      batch: of which shapes are told.
      num_examples: of the training data.
      name: of the device.
      device: None: this machine.
      count: how many of them.
      utilization: the share of the peak that is assumed.
      rematerialize: as ``fit``'s.
    """
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in batch.items())
    yield f"{spec} on {count} × {name}"
    yield f"batch           {shapes}"
    total = sum(cost.parameters.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in cost.parameters.items())
    yield f"parameters      {total:,} ({parts}), {cost.trained:,} of them trained"
    yield f"training step   {operations(cost.train.products)} in products, " + (
        f"{operations(cost.train.elementwise + cost.train.transcendental)} by elements"
    )
    loops = cost.evaluate.unbounded_loops
    yield f"evaluation      {operations(cost.evaluate.products)} in products, a batch" + (
        f"; {loops} loops of unknown length counted once" if loops else ""
    )
    if cost.memory is not None:
        yield f"memory          {_size(cost.memory.peak)} on each device at its peak: state " + (
            f"{_size(cost.memory.state)}, batch {_size(cost.memory.batch)}, temporary "
            f"{_size(cost.memory.temporary)}"
        )
        if device is not None:
            yield "                " + fit(config, cost, device, count, rematerialize)
    yield f"exchanged       {_size(cost.exchanged_bytes)} sent by each device in a step"
    steps = num_examples / config.batch_size
    yield f"epoch           {num_examples:,} examples, {steps:,.1f} steps; " + (
        f"{config.num_steps:,} steps are {config.num_steps / steps:.3g} epochs"
    )
    if device is None:
        seconds = measure_cpu().seconds(cost.train)
        how = "at this machine's measured speed"
    else:
        peak = device.peak[dtype_of(config)] * count
        seconds = cost.train.products / (utilization * peak)
        how = f"at {utilization:.0%} of {operations(peak)}/s in {dtype_of(config)}"
    whole = seconds * config.num_steps
    yield f"time            {1000 * seconds:.3g} ms a step {how}; all steps {duration(whole)}, " + (
        f"{whole * count / 3600:.3g} device hours, without evaluations"
    )


def fit(
    config: Config,
    cost: Cost,
    device: Device,
    count: int,
    rematerialize: Callable[[], Memory | None] = lambda: None,
) -> str:
    """Whether the step fits into the device, and which flag makes it fit.

    Args:
      config: of the experiment.
      cost: of its steps.
      device: into which they shall fit.
      count: how many of them.
      rematerialize: plans the memory with ``model.encoder.remat=full``, where it is not; it
        is called where nothing that is cheaper helps.
    """
    memory = cost.memory
    assert memory is not None
    room = ROOM * device.memory
    have = f"of {_size(device.memory)}, {ROOM:.0%} of which can be had"
    if memory.peak <= room:
        return f"fits: {memory.peak / device.memory:.1%} {have}"
    line = f"does not fit: {memory.peak / device.memory:.0%} {have}"
    rows = config.batch_size // count // config.accumulate_steps
    for factor in (2, 4, 8, 16, 32, 64):
        # Gradients are summed beside those of a micro-batch.
        micro = memory.state + memory.batch + memory.temporary / factor + 4 * cost.trained
        if rows % factor == 0 and micro <= room:
            return line + f"; --config.accumulate_steps={factor * config.accumulate_steps} would do"
    shared = memory.peak - memory.state + memory.state / count
    if count > 1 and config.fsdp == 1 and shared <= room:
        return line + f"; --config.fsdp={count} would do"
    again = rematerialize()
    if again is not None and again.peak <= room:
        return line + "; --config.model.encoder.remat=full would do"
    return line + "; more devices or a smaller batch are needed"


def dtype_of(config: Any) -> str:
    """The dtype of the products: ``model.dtype`` where the experiment has it."""
    dtype = getattr(getattr(config, "model", None), "dtype", "float32")
    return "bfloat16" if dtype in ("bfloat16", "float16") else "float32"


def operations(count: float) -> str:
    """``4.29 GFLOP``."""
    for scale, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= scale:
            return f"{count / scale:.3g} {name}FLOP"
    return f"{count:.0f} FLOP"


def _size(count: float) -> str:
    for scale, name in ((GIB, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if count >= scale:
            return f"{count / scale:.3g} {name}"
    return f"{count:.0f} B"


# How fast this machine's CPU is at what a training step does, measured in a second or two.

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
