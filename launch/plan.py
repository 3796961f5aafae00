"""What a training will cost, before it starts: parameters, operations, memory, time.

    python -m launch.plan --config=experiments/lrcn_ucf101.py --device=h100 --devices=8 \
        --config.data.root=/data/ucf101

Nothing is trained and the model is not allocated: the step is traced with abstract arrays and, for
the memory, compiled for this machine's backend. One batch of the training data is read for its
shapes. The time is what the counted products take at ``--utilization`` of the device's peak; of
``--device=cpu`` it is this machine's, whose speed is measured. ``--measure`` runs some steps here
and says which share of the peak they reached.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from flaxnets.training.config import Config
from flaxnets.training.cost import Cost, estimate_cost
from flaxnets.training.loop import close_batches, make_variables
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import make_state
from flaxnets.training.step import make_train_step
from launch import program
from launch.cpu_speed import measure_cpu
from launch.devices import CPU, GIB, Device, find_device
from launch.report_page import duration

config_flags.DEFINE_config_file(
    "config", None, "The experiment: FILE[:variant]; --config.FIELD=VALUE overrides a field."
)
DEVICE = flags.DEFINE_string("device", CPU, "What it would run on; cpu: this machine.")
COUNT = flags.DEFINE_integer("devices", 1, "How many of them.", lower_bound=1)
UTILIZATION = flags.DEFINE_float(
    "utilization", 0.3, "The share of an accelerator's peak that is reached.", 0.01, 1.0
)
MEASURE = flags.DEFINE_bool("measure", False, "Whether some steps are run and timed here.")
MEMORY = flags.DEFINE_bool("memory", True, "Whether the step is compiled for its memory.")

ROOM = 0.9
"""Of a device's memory that a program can have."""
MEASURED_STEPS = 5


def main(argv: Sequence[str]) -> None:
    """Prints the plan."""
    spec, config = program.experiment_of_flag(argv)
    config.validate()
    device = None if DEVICE.value == CPU else find_device(DEVICE.value)
    if device is None and COUNT.value > 1:
        raise ValueError(f"devices: expected 1 with --device=cpu, received {COUNT.value}")
    data = config.make_data("train")
    batches = data.batches()
    batch = next(batches)
    close_batches(batches)
    platform = "cpu" if device is None else device.platform
    cost = estimate_cost(config, batch, devices=COUNT.value, platform=platform, memory=MEMORY.value)
    steps_per_epoch = data.num_examples / config.batch_size
    for line in describe(spec, config, cost, batch, device, steps_per_epoch):
        print(line)
    if MEASURE.value:
        for line in measure(config, batch, cost):
            print(line)


def describe(
    spec: str,
    config: Config,
    cost: Cost,
    batch: Mapping[str, np.ndarray],
    device: Device | None,
    steps_per_epoch: float,
) -> Iterator[str]:
    """The lines of a plan."""
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in batch.items())
    yield f"{spec} on {COUNT.value} × {DEVICE.value}"
    yield f"batch           {shapes}"
    total = sum(cost.parameters.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in cost.parameters.items())
    yield f"parameters      {total:,} ({parts}), {cost.trained:,} of them trained"
    yield f"training step   {_operations(cost.train.products)} in products, " + (
        f"{_operations(cost.train.elementwise + cost.train.transcendental)} by elements"
    )
    loops = cost.evaluate.unbounded_loops
    yield f"evaluation      {_operations(cost.evaluate.products)} in products, a batch" + (
        f"; {loops} loops of unknown length counted once" if loops else ""
    )
    if cost.memory is not None:
        yield f"memory          {_size(cost.memory.peak)} on each device at its peak: state " + (
            f"{_size(cost.memory.state)}, batch {_size(cost.memory.batch)}, temporary "
            f"{_size(cost.memory.temporary)}"
        )
        if device is not None:
            yield "                " + fit(config, cost, device)
    yield f"exchanged       {_size(cost.exchanged_bytes)} sent by each device in a step"
    yield f"epoch           {steps_per_epoch:,.1f} steps; {config.num_steps:,} steps are " + (
        f"{config.num_steps / steps_per_epoch:.3g} epochs"
    )
    if device is None:
        seconds = measure_cpu().seconds(cost.train)
        how = "at this machine's measured speed"
    else:
        peak = device.peak[dtype_of(config)] * COUNT.value
        seconds = cost.train.products / (UTILIZATION.value * peak)
        how = f"at {UTILIZATION.value:.0%} of {_operations(peak)}/s in {dtype_of(config)}"
    whole = seconds * config.num_steps
    yield f"time            {1000 * seconds:.3g} ms a step {how}; all steps {duration(whole)}, " + (
        f"{whole * COUNT.value / 3600:.3g} device hours, without evaluations"
    )


def fit(config: Config, cost: Cost, device: Device) -> str:
    """Whether the step fits into the device, and which flag makes it fit."""
    memory = cost.memory
    assert memory is not None
    room = ROOM * device.memory
    have = f"of {_size(device.memory)}, {ROOM:.0%} of which can be had"
    if memory.peak <= room:
        return f"fits: {memory.peak / device.memory:.1%} {have}"
    line = f"does not fit: {memory.peak / device.memory:.0%} {have}"
    rows = config.batch_size // COUNT.value // config.accumulate_steps
    for factor in (2, 4, 8, 16, 32, 64):
        # Gradients are summed beside those of a micro-batch.
        micro = memory.state + memory.batch + memory.temporary / factor + 4 * cost.trained
        if rows % factor == 0 and micro <= room:
            return line + f"; --config.accumulate_steps={factor * config.accumulate_steps} would do"
    shared = memory.peak - memory.state + memory.state / COUNT.value
    if COUNT.value > 1 and config.fsdp == 1 and shared <= room:
        return line + f"; --config.fsdp={COUNT.value} would do"
    return line + "; more devices, a smaller batch or rematerialisation are needed"


def measure(config: Config, batch: Mapping[str, np.ndarray], cost: Cost) -> Iterator[str]:
    """Runs steps on this machine's first device."""
    model, task = config.make_model(), config.make_task()
    strategy = DataParallel(jax.devices()[:1])
    variables = make_variables(config, model, task, batch)
    optimizer = make_optimizer(config.optimizer, config.num_steps, variables["params"])
    state = strategy.place(make_state(variables, optimizer, config.seed, ema=config.ema_decay > 0))
    step = make_train_step(
        model,
        task,
        optimizer,
        frozen=tuple(config.optimizer.frozen),
        strategy=strategy,
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
    )
    compiled, placed = strategy.compile_train(step, state), strategy.shard(batch)
    state, _ = jax.block_until_ready(compiled(state, placed))
    times = []
    for _ in range(MEASURED_STEPS):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, placed))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    kind = jax.devices()[0].device_kind
    reached = cost.train.products / seconds
    line = f"measured        {1000 * seconds:.3g} ms a step on 1 × {kind}: {_operations(reached)}/s"
    if jax.default_backend() == "cpu":
        line += f", {reached / measure_cpu().products:.0%} of what one large product reaches"
    elif DEVICE.value != CPU:
        peak = find_device(DEVICE.value).peak[dtype_of(config)]
        line += f", {reached / peak:.0%} of the peak of {DEVICE.value}"
    yield line


def dtype_of(config: Any) -> str:
    """The dtype of the products: ``model.dtype`` where the experiment has it."""
    dtype = getattr(getattr(config, "model", None), "dtype", "float32")
    return "bfloat16" if dtype in ("bfloat16", "float16") else "float32"


def _operations(count: float) -> str:
    for scale, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= scale:
            return f"{count / scale:.3g} {name}FLOP"
    return f"{count:.0f} FLOP"


def _size(count: float) -> str:
    for scale, name in ((GIB, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if count >= scale:
            return f"{count / scale:.3g} {name}"
    return f"{count:.0f} B"


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    program.run(main)
