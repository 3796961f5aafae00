"""Checkpoints of earlier versions can be resumed from."""

from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxnets.training.checkpoint import Checkpointer, Position
from flaxnets.training.state import make_state


class StateWithoutAverages(flax.struct.PyTreeNode):
    """As it was before parameters could be averaged."""

    step: Any
    params: Any
    collections: Any
    optimizer: Any
    key: Any


@pytest.mark.parametrize("older", [True, False])
def test_a_state_without_averages_is_restored(older: bool, tmp_path: Path) -> None:
    variables = {"params": {"line": jnp.arange(3.0)}}
    state: Any = make_state(variables, optax.adam(0.1), 0)
    saved = state
    if older:
        values = {name: value for name, value in vars(state).items() if name != "ema"}
        saved = StateWithoutAverages(**values)
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(saved, Position(0, {}))
    checkpointer.wait()
    restored, _ = checkpointer.restore(jax.tree.map(jnp.zeros_like, state))
    checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
