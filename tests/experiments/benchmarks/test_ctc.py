"""Benchmark of CTC: all its ways compute the same."""

from typing import Any

import numpy as np

from experiments.benchmarks import ctc
from experiments.benchmarks.run import run_cases


def test_ways_compute_the_same_and_are_measured() -> None:
    cases = ctc.cases(batch_size=2, steps=12, classes=6, length=4, width=3)
    forward, gradient, search = cases
    ours: Any = gradient.ways[ctc.OURS]()()
    peer: Any = gradient.ways[ctc.OPTAX]()()
    for values, others in zip(ours, peer, strict=True):
        np.testing.assert_allclose(values, others, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(forward.ways[ctc.OURS]()(), ours[0], rtol=1e-5)
    found: Any = search.ways[ctc.OURS]()()
    texts: Any = search.ways[ctc.PLAIN]()()
    assert tuple(found.tokens[0, 0, : found.lengths[0, 0]].tolist()) == texts[0][0]
    np.testing.assert_allclose(found.scores[0, 0], texts[0][1], rtol=1e-4)

    results = run_cases(cases[1:], rounds=1, pause=0)
    assert [len(row) >= 2 for row in results.values()] == [True, True]
    for row in results.values():
        assert all(numbers["milliseconds"] > 0 for numbers in row.values())
