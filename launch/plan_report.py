"""Text of a training plan, with the devices' data sheets and the measured speed of this CPU."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.configuration import nearest
from flaxnets.layers.convolution import conv2d
from flaxnets.training.config import Config
from flaxnets.training.cost import Cost, Memory
from flaxnets.training.flops import Flops, count_flops
from launch.input_speed import InputSpeed
from launch.reports.run_page import duration


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator, by its maker's data sheet.

    Attributes:
      platform: JAX platform, ``cuda`` or ``tpu``.
      peak: FLOP/s of dense matmuls, by the dtype of their operands. The value for float32 is that
        of JAX's default precision: TF32 on GPUs, bfloat16 passes on TPUs.
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
"""Accelerators by name; A100 and H100 are the SXM versions with 80 GB."""
CPU = "cpu"
"""Name of this machine, whose speed is measured."""
USABLE_MEMORY = 0.9
"""Fraction of a device's memory that a program can use."""


def find_device(name: str) -> Device:
    """Returns the device of a name.

    Raises:
      ValueError: an unknown name.
    """
    if name not in DEVICES:
        raise ValueError(f"--device: unknown {name!r}{nearest(name, [*DEVICES, CPU])}")
    return DEVICES[name]


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
    speed: InputSpeed | None,
    rematerialize: Callable[[], Memory | None] = lambda: None,
) -> Iterator[str]:
    """Yields the lines of a plan.

    Args:
      spec: the experiment, FILE[:variant].
      config: configuration of the experiment.
      cost: cost of a training step and an evaluation step.
      batch: batch of the training data, for its shapes.
      num_examples: size of the training data.
      name: name of the device.
      device: accelerator; None: this machine.
      count: number of devices.
      utilization: assumed fraction of the peak, in (0,1].
      speed: of the input pipeline, on the hosts of the devices; None: not measured.
      rematerialize: as in ``describe_fit``.
    """
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in batch.items())
    yield f"{spec} on {count} × {name}"
    yield f"batch           {shapes}"
    total = sum(cost.parameters.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in cost.parameters.items())
    yield f"parameters      {total:,} ({parts}), {cost.trained:,} of them trained"
    dense = "in matmuls and convolutions"
    elementwise = format_flops(cost.train.elementwise + cost.train.transcendental)
    yield (
        f"training step   {format_flops(cost.train.products)} {dense}, {elementwise} elementwise"
    )
    line = f"evaluation      {format_flops(cost.evaluate.products)} {dense} per batch"
    if loops := cost.evaluate.unbounded_loops:
        line += f"; {loops} loops of unknown length counted once"
    yield line
    if (memory := cost.memory) is not None:
        yield (
            f"memory          {_format_bytes(memory.peak)} peak on each device: state "
            f"{_format_bytes(memory.state)}, batch {_format_bytes(memory.batch)}, temporary "
            f"{_format_bytes(memory.temporary)}"
        )
        if device is not None:
            yield "                " + describe_fit(config, cost, device, count, rematerialize)
    yield f"communication   {_format_bytes(cost.exchanged_bytes)} sent by each device per step"
    steps = num_examples / config.batch_size
    yield (
        f"epoch           {num_examples:,} examples, {steps:,.1f} steps; "
        f"{config.num_steps:,} steps are {config.num_steps / steps:.3g} epochs"
    )
    if device is None:
        seconds = measure_cpu().seconds(cost.train)
        yield f"device          {_step(seconds)} per step at this machine's measured speed"
    else:
        peak = device.peak[dtype_of(config)] * count
        seconds = cost.train.products / (utilization * peak)
        yield (
            f"device          at least {_step(seconds)} per step (roofline): matmuls and "
            f"convolutions alone, at {utilization:.0%} of {format_flops(peak)}/s in "
            f"{dtype_of(config)}"
        )
    yield from describe_time(config, seconds, speed, num_examples, count, shared=device is None)


def describe_time(
    config: Any,
    seconds: float,
    speed: InputSpeed | None,
    num_examples: int,
    count: int,
    *,
    shared: bool,
) -> Iterator[str]:
    """Yields the lines on the input pipeline and on the time, with what bounds it.

    Args:
      config: configuration of the experiment.
      seconds: time of a step on the devices.
      speed: of the input pipeline; None: not measured.
      num_examples: size of the training data.
      count: number of devices.
      shared: the device is the CPU that also reads the batches.
    """
    whole = seconds * config.num_steps
    if speed is None:
        yield "input           not measured"
        yield f"time            at least {_total(whole, count)}, if the data are ready in time"
        return
    batch = config.batch_size / speed.later
    yield (
        f"input           {_step(batch)} per batch: {speed.later:,.3g} examples/s on {speed.cores} "
        f"CPU cores, {speed.first:,.3g} in the first epoch (measured here, {speed.batches} batches)"
    )
    read = speed.seconds(config.num_steps, config.batch_size, num_examples)
    if shared:
        yield (
            f"time            {_step(max(batch, seconds))} to {_step(batch + seconds)} per step, "
            f"as both share the cores; all steps {duration(max(whole, read))} to "
            f"{_total(whole + read, count)}"
        )
        return
    if batch <= seconds:
        bound = f"the device bounds the run: the data need {batch / seconds:.0%} of its time"
    else:
        cores = math.ceil(speed.cores * batch / seconds)
        bound = (
            f"the data bound the run: the device is busy {seconds / batch:.2%} of the time; to "
            f"keep it busy, {cores:,} cores like these are needed, or cached features"
        )
    yield (
        f"time            at least {_step(max(batch, seconds))} per step; all steps "
        f"{_total(max(whole, read), count)}"
    )
    yield f"                {bound}"


def _step(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _total(seconds: float, count: int) -> str:
    return f"{duration(seconds)}, {seconds * count / 3600:.3g} device hours, without evaluations"


def describe_fit(
    config: Config,
    cost: Cost,
    device: Device,
    count: int,
    rematerialize: Callable[[], Memory | None] = lambda: None,
) -> str:
    """Returns a line that says if the step fits into memory, and which flag would make it fit.

    Args:
      config: configuration of the experiment.
      cost: cost of its steps, with the memory.
      device: accelerator.
      count: number of devices.
      rematerialize: returns the memory with ``model.encoder.remat=full``, or None where that
        changes nothing. It compiles the step again, so it is called only if cheaper remedies fail.
    """
    memory = cost.memory
    assert memory is not None
    usable = USABLE_MEMORY * device.memory
    of_memory = f"of {_format_bytes(device.memory)}, {USABLE_MEMORY:.0%} of which is usable"
    if memory.peak <= usable:
        return f"fits: {memory.peak / device.memory:.1%} {of_memory}"
    line = f"does not fit: {memory.peak / device.memory:.0%} {of_memory}"
    rows = config.batch_size // count // config.accumulate_steps
    for factor in (2, 4, 8, 16, 32, 64):
        # The summed gradients need 4 bytes per parameter beside those of a micro-batch.
        micro = memory.state + memory.batch + memory.temporary / factor + 4 * cost.trained
        if rows % factor == 0 and micro <= usable:
            return line + f"; --config.accumulate_steps={factor * config.accumulate_steps} would do"
    shared = memory.peak - memory.state + memory.state / count
    if count > 1 and config.fsdp == 1 and shared <= usable:
        return line + f"; --config.fsdp={count} would do"
    remat = rematerialize()
    if remat is not None and remat.peak <= usable:
        return line + "; --config.model.encoder.remat=full would do"
    return line + "; more devices or a smaller batch are needed"


def dtype_of(config: Any) -> str:
    """Returns the dtype of matmuls: that of ``model.dtype``, float32 without such a field."""
    dtype = getattr(getattr(config, "model", None), "dtype", "float32")
    return "bfloat16" if dtype in ("bfloat16", "float16") else "float32"


def format_flops(count: float) -> str:
    """Returns a number of operations as ``4.29 GFLOP``."""
    for scale, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= scale:
            return f"{count / scale:.3g} {name}FLOP"
    return f"{count:.0f} FLOP"


def _format_bytes(count: float) -> str:
    for scale, name in ((GIB, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if count >= scale:
            return f"{count / scale:.3g} {name}"
    return f"{count:.0f} B"


REPEATS = 7
"""Timed calls per operation; their median counts."""


@dataclasses.dataclass(frozen=True)
class CpuSpeed:
    """Measured speed of this machine's CPU in FLOP/s, by kind of operation.

    Attributes:
      matmuls: large matmuls.
      narrow: convolutions with few channels.
      elementwise: elementwise arithmetic on arrays larger than the caches.
      transcendental: tanh.
    """

    matmuls: float
    narrow: float
    elementwise: float
    transcendental: float

    def seconds(self, flops: Flops) -> float:
        """Returns the seconds that the operations take one after the other.

        Measured training steps took 0.85 to 1.1 times as long (three networks and a captioner on
        ``moving_shapes``, two captioners of photographs).
        """
        return (
            (flops.products - flops.narrow) / self.matmuls
            + flops.narrow / self.narrow
            + flops.elementwise / self.elementwise
            + flops.transcendental / self.transcendental
        )


def measure_cpu() -> CpuSpeed:
    """Measures the speed of this machine's CPU; takes a second or two."""
    rows, width = 512, 1024
    left, right = jnp.ones((rows, width)), jnp.ones((width, width))
    images, kernel = jnp.ones((128, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    big = jnp.ones(2**22)

    def convolve(images: jax.Array, kernel: jax.Array) -> Any:
        """Returns the feature maps and both gradients."""
        maps, vjp = jax.vjp(partial(conv2d, strides=(2, 2)), images, kernel)
        return maps, vjp(maps)

    def combine(x: jax.Array, y: jax.Array) -> jax.Array:
        """Applies two operations per array read, as fused code does on average; memory-bound."""
        return x * 1.5 + y

    return CpuSpeed(
        matmuls=2 * rows * width * width / _time(jnp.matmul, left, right),
        narrow=count_flops(convolve, images, kernel).products / _time(convolve, images, kernel),
        elementwise=2 * big.size / _time(combine, big, 2 * big),
        transcendental=big.size / _time(jnp.tanh, big),
    )


def _time(function: Callable[..., Any], *arguments: jax.Array) -> float:
    """Returns the median seconds of a call."""
    # Arguments, not constants: XLA would fold a function of constants at compile time.
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
