"""The plan of a training: devices, memory, time, and the flag that makes a step fit."""

from types import SimpleNamespace
from typing import Any

import pytest

from flaxnets.training.cost import Cost, Memory
from flaxnets.training.flops import Flops
from launch.plan_report import (
    DEVICES,
    GIB,
    CpuSpeed,
    Device,
    describe_fit,
    find_device,
)
from tests.launch.programs import (
    MOVING_SHAPES,
    finish,
    sentence,
    start,
    succeed,
)

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


def test_the_program() -> None:
    many = start("plan", MOVING_SHAPES, "--device=tpu_v4", "--devices=4", "--utilization=0.5")
    here = start("plan", MOVING_SHAPES, "--nomemory", "--measure")
    unknown = start("plan", MOVING_SHAPES, "--device=h300", "--nomemory")
    lines = dict(line.split(None, 1) for line in succeed(many).splitlines() if line[0] != " ")
    assert lines[MOVING_SHAPES.partition("=")[2]] == "on 4 × tpu_v4"
    assert " of them trained" in lines["parameters"]
    assert lines["memory"].count("iB") == 4
    assert "at 50% of 1.1 PFLOP/s in float32" in lines["time"]
    assert lines["epoch"].startswith("32 examples, 4.0 steps; 6 steps are 1.5 epochs")
    text = succeed(here)
    assert "memory" not in text
    assert "ms per step on 1 × cpu" in text
    assert "of one large matmul" in text
    assert sentence(finish(unknown)).startswith("error: --device: unknown 'h300'; did you mean")
