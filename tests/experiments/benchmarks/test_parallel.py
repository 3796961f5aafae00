"""Operations, iterations and cases of scans parallel in time."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import parallel


@pytest.mark.parametrize("num_steps", [16, 100])
def test_an_associative_scan_composes_as_many_pairs_as_are_counted(num_steps: int) -> None:
    composed: list[int] = []

    def compose(first: Any, then: Any) -> Any:
        composed.append(first.shape[0])
        return first + then

    jax.eval_shape(
        lambda x: jax.lax.associative_scan(compose, x), jax.ShapeDtypeStruct((num_steps,), float)
    )
    assert num_steps < sum(composed) <= 2 * num_steps
    assert len(composed) <= 2 * math.ceil(math.log2(num_steps))


@pytest.mark.parametrize("method", parallel.WAYS)
def test_both_take_as_long_where_their_times_cross(method: str) -> None:
    scan = parallel.count_scan("GRU", 10_000, 1, 16)
    newton = parallel.count_newton(method, "GRU", 10_000, 1, 16, 10)
    lanes = parallel.crossing_lanes(newton, scan)
    assert newton.time(lanes) == pytest.approx(scan.time(lanes))
    assert newton.time(2 * lanes) < scan.time(2 * lanes)
    assert newton.time(lanes / 2) > scan.time(lanes / 2)
    # As deep as the scan with as many iterations as steps.
    hopeless = parallel.count_newton(method, "GRU", 100, 1, 16, 100)
    assert parallel.crossing_lanes(hopeless, parallel.count_scan("GRU", 100, 1, 16)) == math.inf


def test_iterations_are_those_of_the_report() -> None:
    _, found = parallel.measure_iterations("GRU", [60], training_steps=0, features=4)
    assert found.keys() == {(60, "DEER"), (60, "quasi-DEER")}
    for iterations, fallbacks, difference in found.values():
        assert 1 < iterations < 30
        assert fallbacks == 0
        assert difference < 1e-4
    assert found[60, "DEER"][0] < found[60, "quasi-DEER"][0]


@pytest.mark.stress
def test_cases_compare_each_method_with_the_scan() -> None:
    cases = parallel.cases(((5, 1, 2, 2),))
    assert [list(case.ways) for case in cases] == 2 * [
        ["DEER", parallel.SCAN],
        ["quasi-DEER", parallel.SCAN],
    ]
    ours, scan = (make() for make in cases[0].ways.values())
    assert jnp.allclose(jnp.asarray(ours()), jnp.asarray(scan()), atol=1e-5)
