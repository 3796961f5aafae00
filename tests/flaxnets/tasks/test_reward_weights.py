"""Self-critical training with references of different weight."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.flaxnets.tasks.table_captioner import variables_of
from tests.flaxnets.tasks.test_self_critical import (
    BASELINES,
    KEY,
    MODEL,
    batch_of,
    task_of,
)


@pytest.mark.parametrize("baseline", BASELINES)
def test_references_count_for_what_they_weigh(baseline: str) -> None:
    batch = batch_of()
    variables = variables_of(MODEL, batch)

    @jax.jit
    def sums_of(weights: Any, tokens: Any) -> Any:
        given = {**batch, "tokens": tokens}
        if weights is not None:
            given["caption_weights"] = weights
        return task_of(baseline).loss(MODEL, variables, given, KEY)[0]

    tokens = batch["tokens"]
    alike = sums_of(None, tokens)
    assert_same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5))
    assert_same(sums_of(jnp.full((2, 2), 0.7), tokens), alike)
    # A reference that weighs nothing is as none; the others are as they were.
    weights = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    first = sums_of(weights, tokens)
    assert_same(first, sums_of(weights, tokens.at[:, 1].set(5)))
    assert_same(first, sums_of(None, tokens.at[:, 1].set(0)))
    for name in ("reward", "baseline"):
        assert abs(first[name][0] - alike[name][0]) > 0.005
