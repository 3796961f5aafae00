"""The lines of a plan."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flaxnets.training.config import Config
from flaxnets.training.cost import Cost, Memory
from launch.cpu_speed import measure_cpu
from launch.devices import GIB, Device
from launch.report_page import duration

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
      rematerialize: plans the memory with ``model.remat=full``, where that is something else; it
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
        return line + "; --config.model.remat=full would do"
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
