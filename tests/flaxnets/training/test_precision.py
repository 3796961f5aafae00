"""Models in bfloat16: matmuls are; parameters, statistics, losses and norms are float32."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.training.config import OptimizerConfig
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.state import make_state
from flaxnets.training.step import make_train_step
from tests.flaxnets.training.strategies import (
    KINDS,
    NUM_STEPS,
    Examples,
    make_model,
    make_task,
    variables_of,
)


def floats(tree: Any) -> set[str]:
    """Returns the dtypes of all floating-point arrays."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(tree)}
    return {str(dtype) for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}


@pytest.mark.parametrize("kind", KINDS)
def test_only_products_are_bfloat16(kind: str) -> None:
    model, task = make_model(kind, "bfloat16", "float32"), make_task(kind)
    batch = next(Examples(kind, "float32", train=True).batches())
    variables = jax.eval_shape(
        lambda key: task.initialize(model, key, jax.tree.map(jnp.asarray, batch)), jax.random.key(0)
    )
    assert floats(variables) == {"float32"}
    config = OptimizerConfig(clip_norm=1.0)
    optimizer = make_optimizer(config, NUM_STEPS, variables["params"])
    state = jax.eval_shape(lambda tree: make_state(tree, optimizer, 0, ema=True), variables)
    step = make_train_step(model, task, optimizer, accumulate_steps=2, ema_decay=0.9)
    program, (after, sums) = jax.make_jaxpr(step, return_shape=True)(state, batch)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert floats(state) == floats(sums) == {"float32"}
    operations = set(
        re.findall(r":bf16\[[^\]]*\] = (dot_general|conv_general_dilated)", str(program))
    )
    convolutions = set() if kind == "captioner" else {"conv_general_dilated"}
    assert operations == {"dot_general"} | convolutions


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_in_bfloat16_is_near(kind: str) -> None:
    batch = next(Examples(kind, "float32", train=False).batches())
    losses = []
    for dtype in ("float32", "bfloat16"):
        model, task = make_model(kind, dtype, "float32"), make_task(kind)
        evaluate = jax.jit(partial(task.evaluate, model))
        sums, _ = evaluate(variables_of(kind, "float32"), batch)
        losses.append(float(sums["loss"][0] / sums["loss"][1]))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
