"""Scheduled sampling (Bengio et al., 1506.03099): a decoder in training reads words of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.typing import Array, Carry, PRNGKey, PyTree

RunStep = Callable[[Carry, Array, PyTree], tuple[Carry, Array, PyTree]]
"""(carry, words, x) to the new carry, scores (...,V) of the next words, and more outputs."""


def scan_sampled_words(
    run_step: RunStep,
    carry: Carry,
    words: Array,
    xs: PyTree,
    *,
    probability: Array | float,
    key: PRNGKey,
) -> tuple[Array, PyTree]:
    """Runs a decoder step after step, since each may read a word from the scores before it.

    No gradient passes through a drawn word. The first word is read as it is given.

    Args:
      run_step: one step; ``x`` is that step's share of ``xs``.
      carry: before the first step.
      words: (L,...) integers, those that are given.
      xs: a pytree of arrays (L,...).
      probability: of a word to be drawn, in [0,1].
      key: of the draws.

    Returns:
      Scores (L,...,V) and outputs (L,...) of all steps.
    """

    def body(state: Any, inputs: Any) -> Any:
        carry, scores = state
        given, x, key, may_draw = inputs
        choose_key, draw_key = jax.random.split(key)
        chosen = may_draw & jax.random.bernoulli(choose_key, probability, given.shape)
        drawn = jax.random.categorical(draw_key, jax.lax.stop_gradient(scores))
        read = jnp.where(chosen, drawn.astype(given.dtype), given)
        carry, scores, outputs = run_step(carry, read, x)
        return (carry, scores), (scores, outputs)

    num_steps = len(words)
    first = jax.tree.map(lambda leaf: leaf[0], (words, xs))
    like = jax.eval_shape(lambda: run_step(carry, *first)[1])
    inputs = words, xs, jax.random.split(key, num_steps), jnp.arange(num_steps) > 0
    state = carry, jnp.zeros(like.shape, like.dtype)
    return jax.lax.scan(body, state, inputs)[1]
