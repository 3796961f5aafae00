r"""Plans a training before it starts: parameters, FLOPs, memory and time.

    python -m launch.plan --config=experiments/lrcn_ucf101.py --device=h100 --devices=8 \
        --config.data.root=/data/ucf101

Nothing is trained and no parameters are allocated: the step is traced with abstract arrays, and
compiled for this machine's backend to find its memory. Some batches of the training data are read
without the model, which measures the input pipeline on this machine; ``--cores`` scales it to the
hosts of the devices. The device's time is a lower bound (roofline): it counts matmuls and
convolutions alone, at ``--utilization`` of the device's peak; for ``--device=cpu``, the speed of
this machine is measured. The slower of the two, data or device, bounds the run. ``--measure`` times
some steps on this machine and prints the utilization that they reach.
"""

import copy
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from flaxnets.training.config import Config, update
from flaxnets.training.cost import Cost, Memory, estimate_cost
from flaxnets.training.loop import make_variables
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import make_state
from flaxnets.training.step import make_train_step
from launch import program
from launch.input_speed import limited, measure_input
from launch.plan_report import (
    CPU,
    DEVICES,
    describe,
    dtype_of,
    find_device,
    format_flops,
    measure_cpu,
)

config_flags.DEFINE_config_file(
    "config", None, "Experiment, FILE[:variant]; --config.FIELD=VALUE overrides a field."
)
DEVICE = flags.DEFINE_string(
    "device", CPU, f"Accelerator, one of {', '.join(DEVICES)}; cpu: this machine."
)
COUNT = flags.DEFINE_integer("devices", 1, "Number of devices.", lower_bound=1)
UTILIZATION = flags.DEFINE_float(
    "utilization", 0.3, "Assumed fraction of the accelerator's peak FLOP/s.", 0.01, 1.0
)
MEASURE = flags.DEFINE_bool("measure", False, "Run and time some steps on this machine.")
MEMORY = flags.DEFINE_bool("memory", True, "Compile the step to find its memory.")
INPUT_SECONDS = flags.DEFINE_float(
    "input_seconds",
    5.0,
    "Seconds of each of the two passes that measure the input pipeline; 0: it is not measured.",
    lower_bound=0,
)
CORES = flags.DEFINE_integer(
    "cores",
    None,
    "CPU cores that feed the devices, those of all hosts together: the measured speed of the input "
    "pipeline is scaled to them in proportion. Unset: this machine's.",
    lower_bound=1,
)
PREPARATION_SECONDS = flags.DEFINE_float(
    "preparation_seconds",
    60.0,
    "Seconds that the training data may take to open, as where a frozen encoder's features are not "
    "cached yet.",
    lower_bound=1,
)

MEASURED_STEPS = 5
"""Steps that ``--measure`` times; their median is printed."""


def main(argv: Sequence[str]) -> None:
    """Prints the plan."""
    spec, config = program.experiment_of_flag(argv)
    config.validate()
    device = None if DEVICE.value == CPU else find_device(DEVICE.value)
    if device is None and COUNT.value > 1:
        raise ValueError(f"--devices: expected 1 with --device=cpu, received {COUNT.value}")
    if device is None and CORES.value is not None:
        raise ValueError(
            f"--cores: expected an accelerator's --device, received {CORES.value} with --device=cpu"
        )
    unready = (
        f"the training data were not open after {PREPARATION_SECONDS.value:g} s: a frozen "
        "encoder's features may not be cached yet; start launch.train, which keeps what it has "
        "encoded, or raise --preparation_seconds"
    )
    with limited(PREPARATION_SECONDS.value, unready):
        data = config.make_data("train")
    batch, speed = measure_input(data, INPUT_SECONDS.value)
    if CORES.value is not None and speed is not None:
        speed = speed.scaled(CORES.value)
    platform = "cpu" if device is None else device.platform
    cost = estimate_cost(config, batch, devices=COUNT.value, platform=platform, memory=MEMORY.value)
    for line in describe(
        spec,
        config,
        cost,
        batch,
        data.num_examples,
        name=DEVICE.value,
        device=device,
        count=COUNT.value,
        utilization=UTILIZATION.value,
        speed=speed,
        rematerialize=lambda: rematerialize(config, batch, platform),
    ):
        print(line)
    if MEASURE.value:
        for line in measure(config, batch, cost):
            print(line)


def rematerialize(config: Config, batch: Mapping[str, np.ndarray], platform: str) -> Memory | None:
    """Returns the memory with ``model.encoder.remat=full``; None if set, or if there is no such."""
    changed = copy.deepcopy(config)
    encoder = getattr(getattr(changed, "model", None), "encoder", None)
    if getattr(encoder, "remat", "full") == "full":
        return None
    update(changed, {"model": {"encoder": {"remat": "full"}}})
    return estimate_cost(changed, batch, devices=COUNT.value, platform=platform).memory


def measure(config: Config, batch: Mapping[str, np.ndarray], cost: Cost) -> Iterator[str]:
    """Times training steps on this machine's first device."""
    model, task = config.make_model(), config.make_task()
    strategy = DataParallel(jax.devices()[:1])
    variables = make_variables(config, model, task, batch)
    optimizer_config = config.make_optimizer_config()
    optimizer = make_optimizer(optimizer_config, config.num_steps, variables["params"])
    state = strategy.place(make_state(variables, optimizer, config.seed, ema=config.ema_decay > 0))
    step = make_train_step(
        model,
        task,
        optimizer,
        frozen=tuple(optimizer_config.frozen),
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
    line = (
        f"measured        {1000 * seconds:.3g} ms per step on 1 × {kind}: {format_flops(reached)}/s"
    )
    if jax.default_backend() == "cpu":
        line += f", {reached / measure_cpu().matmuls:.0%} of one large matmul"
    elif DEVICE.value != CPU:
        peak = find_device(DEVICE.value).peak[dtype_of(config)]
        line += f", {reached / peak:.0%} of the peak of {DEVICE.value}"
    yield line


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    program.run(main)
