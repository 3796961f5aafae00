"""All strategies, on any number of devices, give equal losses and evaluations."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.training.parallel import DataParallel, Strategy, make_strategy
from tests.flaxnets.training.strategies import ANSWERS, KINDS, figures

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "jit 8": lambda: make_strategy("jit"),
    # Small enough that the arrays of these networks are sharded.
    "fsdp 4×2": lambda: DataParallel(fsdp=2, sharded_size=16),
    "pmap 8": lambda: make_strategy("pmap"),
}
TOLERANCES = {"float32": 1e-4, "float64": 1e-10}


@functools.cache
def alone(kind: str, dtype: str) -> dict[str, Any]:
    return figures(make_strategy("single"), kind, dtype)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.stress)])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        # Lines are sharded as clips are.
        pytest.param(name, kind, marks=[pytest.mark.stress] * (kind == "lines" and "fsdp" in name))
        for name in STRATEGIES
        for kind in KINDS
    ],
)
def test_losses_and_evaluation_equal_those_of_one_device(name: str, kind: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        one, many = alone(kind, dtype), figures(STRATEGIES[name](), kind, dtype)
    tolerance = TOLERANCES[dtype]
    assert len(one["losses"]) == 20
    assert one["losses"][-1] < one["losses"][0]
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=tolerance)
    assert 10 <= one["metrics"]["examples"] < 21
    assert many["metrics"] == pytest.approx(one["metrics"], rel=tolerance)
    indices = [record["index"] for record in one["records"]]
    assert [record["index"] for record in many["records"]] == indices
    answer = ANSWERS[kind]
    assert [r[answer] for r in many["records"]] == [r[answer] for r in one["records"]]
