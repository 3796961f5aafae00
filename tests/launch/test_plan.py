"""The plan of a training: devices, memory, time, and the flag that makes a step fit."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flaxnets.training.cost import Cost, Memory
from flaxnets.training.flops import Flops
from launch.input_speed import InputSpeed, limited, measure_input
from launch.plan_report import (
    DEVICES,
    GIB,
    CpuSpeed,
    Device,
    describe_fit,
    describe_time,
    find_device,
)
from tests.data.numbers import Numbers, make_loader
from tests.launch.programs import (
    MOVING_SHAPES,
    finish,
    sentence,
    start,
    succeed,
)

TPUS = ("--device=tpu_v4", "--devices=4")
DEVICE = Device("cuda", {"bfloat16": 2e12, "float32": 1e12}, 10 * GIB)


def cost(state: float, temporary: float) -> Cost:
    memory = Memory(int(state * GIB), 0, int(temporary * GIB))
    return Cost({"all": 1_000}, 1_000, Flops(1e9), Flops(1e8), memory, 0)


@pytest.mark.parametrize(
    ("state", "temporary", "devices", "said"),
    [
        (1, 7, 1, "fits: 80.0% of 10 GiB, 90% of which is usable"),
        (1, 30, 1, "does not fit: 310% of 10 GiB, 90% of which is usable; --config.accumulate_ste"),
        (8, 4, 1, "--config.accumulate_steps=8 would do"),
        (20, 1, 8, "--config.fsdp=8 would do"),
        (20, 1, 1, "more devices or a smaller batch are needed"),
    ],
)
def test_what_makes_a_step_fit(state: float, temporary: float, devices: int, said: str) -> None:
    config: Any = SimpleNamespace(batch_size=64, accumulate_steps=1, fsdp=1)
    assert said in describe_fit(config, cost(state, temporary), DEVICE, devices)


@pytest.mark.parametrize(
    ("again", "said"),
    [
        (Memory(GIB, 0, 4 * GIB), "; --config.model.encoder.remat=full would do"),
        (Memory(GIB, 0, 20 * GIB), "; more devices or a smaller batch are needed"),
        (None, "; more devices or a smaller batch are needed"),
    ],
)
def test_rematerialisation_is_tried_where_nothing_cheaper_helps(
    again: Memory | None, said: str
) -> None:
    config: Any = SimpleNamespace(batch_size=1, accumulate_steps=1, fsdp=1)
    assert describe_fit(config, cost(1, 30), DEVICE, 1, lambda: again).endswith(said)


def test_a_cpu_takes_one_kind_of_work_after_the_other() -> None:
    speed = CpuSpeed(matmuls=1e9, narrow=5e8, elementwise=1e8, transcendental=1e7)
    flops = Flops(products=2e9, narrow=1e9, elementwise=1e8, transcendental=5e6)
    assert speed.seconds(flops) == pytest.approx(1 + 2 + 1 + 0.5)


def test_every_device_has_a_peak_and_memory() -> None:
    for device in DEVICES.values():
        assert device.peak.keys() == {"bfloat16", "float32"}
        assert 1e14 <= device.peak["float32"] <= device.peak["bfloat16"] <= 1e15
        assert 15e9 < device.memory < 150e9
    message = "--device: unknown 'h10'; did you mean 'h100'"
    with pytest.raises(ValueError, match=message):
        find_device("h10")


class Slow(Numbers):
    """Examples that take 5 ms, and 15 ms where they are read for the first time."""

    seen: set[int] = set()  # noqa: RUF012 (shared by the loader's threads)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        time.sleep(0.005 if index in self.seen else 0.015)
        self.seen.add(index)
        return super().__getitem__(index)


def test_the_speed_of_the_input_is_that_of_the_source() -> None:
    Slow.seen.clear()
    loader = make_loader(source=Slow(60), transform=None, num_threads=1)
    batch, speed = measure_input(loader, 0.5)
    assert batch["video"].shape == (4, 2, 4, 4, 3)
    assert speed is not None
    # One thread: 1 / 15 ms and 1 / 5 ms at best, and less on a machine that is busy.
    assert 5 < speed.first < 80
    assert speed.first < speed.later < 230
    assert measure_input(loader, 0)[1] is None


def test_a_batch_that_outlasts_the_time_is_the_only_one() -> None:
    Slow.seen.clear()
    loader = make_loader(source=Slow(60), transform=None, num_threads=1)
    _, speed = measure_input(loader, 0.001)
    assert speed is not None
    assert speed.batches == 1
    assert speed.first < 80


def test_what_takes_too_long_is_ended_and_the_alarm_is_off_afterwards() -> None:
    with pytest.raises(TimeoutError, match="too long"), limited(0.05, "too long"):
        time.sleep(5)
    with limited(0.05, "too long"):
        pass
    time.sleep(0.1)


@pytest.mark.parametrize(
    ("step", "cores", "said"),
    [
        (0.5, 2, "the device bounds the run: the data need 80% of its time"),
        (0.004, 2, "the device is busy 1.00% of the time; to keep it busy, 200 cores like these"),
        (0.004, 100, "the device is busy 50.00% of the time; to keep it busy, 200 cores"),
    ],
)
def test_the_slower_of_data_and_device_bounds_the_run(step: float, cores: int, said: str) -> None:
    config: Any = SimpleNamespace(batch_size=24, num_steps=1_000)
    speed = InputSpeed(first=30, later=60, batches=5, cores=2).scaled(cores)
    lines = list(describe_time(config, step, speed, 2_400, 8, shared=False))
    assert said in lines[-1]
    if cores == 2 and step < 0.4:
        # 2,400 examples at 30 a second and 21,600 at 60 are 440 s.
        assert "at least 400 ms per step; all steps 7\u00a0min 20\u00a0s" in lines[-2]


def test_a_cpu_reads_and_computes_on_the_same_cores() -> None:
    config: Any = SimpleNamespace(batch_size=10, num_steps=100)
    speed = InputSpeed(first=100, later=100, batches=5, cores=2)
    *_, line = describe_time(config, 0.3, speed, 1_000, 1, shared=True)
    assert "300 ms to 400 ms per step" in line
    assert "30.0\u00a0s to 40.0\u00a0s" in line


@pytest.mark.slow
def test_the_program() -> None:
    many = start("plan", MOVING_SHAPES, *TPUS, "--utilization=0.5", "--input_seconds=1")
    here = start("plan", MOVING_SHAPES, "--nomemory", "--measure", "--input_seconds=0")
    unknown = start("plan", MOVING_SHAPES, "--device=h300", "--nomemory")
    lines = dict(line.split(None, 1) for line in succeed(many).splitlines() if line[0] != " ")
    assert lines[MOVING_SHAPES.partition("=")[2]] == "on 4 × tpu_v4"
    assert " of them trained" in lines["parameters"]
    assert lines["memory"].count("iB") == 4
    assert lines["device"].startswith("at least ")
    assert "at 50% of 1.1 PFLOP/s in float32" in lines["device"]
    assert "examples/s" in lines["input"]
    assert "device hours" in lines["time"]
    assert lines["epoch"].startswith("32 examples, 4.0 steps; 6 steps are 1.5 epochs")
    text = succeed(here)
    assert "memory" not in text
    assert "input           not measured\n" in text
    assert "ms per step on 1 × cpu" in text
    assert "of one large matmul" in text
    assert sentence(finish(unknown)).startswith("error: --device: unknown 'h300'; did you mean")
