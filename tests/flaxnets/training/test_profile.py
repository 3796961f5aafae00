"""Profiler traces have the files that TensorBoard and Perfetto open."""

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flaxnets.training.profile import Profile, parse_steps


def train(profile: Profile, num_steps: int) -> None:
    double = jax.jit(lambda x: 2 * x)
    x = jnp.ones(3)
    for step in range(1, num_steps + 1):
        with profile.step(step):
            x = double(x)
        profile.finish(step, x)
    profile.close()


def test_the_trace_has_the_chosen_steps_alone(tmp_path: Path) -> None:
    train(Profile(tmp_path / "profile", (2, 3)), 5)
    [trace] = tmp_path.rglob("perfetto_trace.json.gz")
    # TensorBoard's plugin looks for its file in this folder.
    [planes] = (tmp_path / "profile" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert planes.stat().st_size > 0
    with gzip.open(trace, "rt") as file:
        events: list[Any] = json.load(file)["traceEvents"]
    steps = [event for event in events if event.get("name") == "train"]
    assert [event["args"]["step_num"] for event in steps] == ["2", "3"]
    assert all(event["ph"] == "X" and event["dur"] > 0 for event in steps)
    begins = steps[0]["ts"]
    assert any("lambda" in event.get("name", "") and event["ts"] >= begins for event in events[1:])


def test_a_run_that_ends_within_the_steps_leaves_its_trace(tmp_path: Path) -> None:
    train(Profile(tmp_path, (2, 30)), 3)
    assert len(list(tmp_path.rglob("perfetto_trace.json.gz"))) == 1


def test_steps_are_a_range() -> None:
    assert parse_steps("10:20") == (10, 20)


def test_without_steps_there_is_no_trace(tmp_path: Path) -> None:
    train(Profile(tmp_path, parse_steps(None)), 3)
    train(Profile(tmp_path, (7, 9)), 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", r"expected FROM:TO, as 10:20, received '3'"),
        ("3:", r"expected FROM:TO, as 10:20, received '3:'"),
        ("a:4", r"expected FROM:TO, as 10:20, received 'a:4'"),
        ("-1:2", r"expected FROM:TO, as 10:20, received '-1:2'"),
        ("5:3", r"expected 1 <= FROM <= TO, received 5:3"),
        ("0:3", r"expected 1 <= FROM <= TO, received 0:3"),
    ],
)
def test_bad_steps_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"profile_steps: {message}"):
        Profile(tmp_path, parse_steps(text))
