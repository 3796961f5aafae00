"""Fine-tuning: parameters of another run's best checkpoint, and everything else anew."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.training.checkpoint import Checkpointer, Position, initialize_from
from flaxnets.training.loop import train
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import make_strategy
from flaxnets.training.state import initialize_variables, make_state
from flaxnets.training.workdir import Workdir
from tests.flaxnets.training.tiny import TinyConfig


def variables_of(config: TinyConfig) -> Any:
    batch = next(config.make_data("train").batches())
    model, task = config.make_model(), config.make_task()
    shapes = jax.eval_shape(lambda: initialize_variables(model, task, batch, 0))
    rng = np.random.default_rng(config.seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose step 2 is better than its step 4."""
    config = TinyConfig(seed=1)
    path = tmp_path_factory.mktemp("initialization") / "source"
    with Workdir(path) as workdir:
        workdir.claim("tiny.py", config)
        checkpointer = Checkpointer(workdir.checkpoints)
        variables = variables_of(config)
        optimizer = make_optimizer(config.optimizer, 4, variables["params"])
        state = make_state(variables, optimizer, 1)
        for step, accuracy in ((2, 0.9), (4, 0.1)):
            params = jax.tree.map(lambda leaf, step=step: leaf + step, state.params)
            there = state.replace(step=state.step + step, params=params)
            checkpointer.save(there, Position(step, {}))
            checkpointer.rank(step, {"accuracy": accuracy})
        checkpointer.close()
    return path


def test_training_starts_from_the_best_checkpoint_with_step_and_optimizer_anew(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TinyConfig(num_steps=1, eval_split="", initialize_from=str(source))
    config.optimizer.learning_rate = 0.0
    with Workdir(tmp_path / "run") as workdir, caplog.at_level(logging.INFO):
        workdir.claim("tiny.py", config)
        outcome = train(config, workdir, strategy=make_strategy("single"), show_progress=False)
    assert outcome.step == 1
    assert "parameters start from step 2 of" in caplog.text
    assert "step, optimizer and schedule start anew" in caplog.text
    checkpointer = Checkpointer(tmp_path / "run" / "checkpoints", read_only=True)
    tuned = checkpointer.restore_variables(1)["params"]
    variables = variables_of(config)
    optimizer = make_optimizer(config.optimizer, 1, variables["params"])
    state, _ = checkpointer.restore(make_state(variables, optimizer, 0), 1)
    checkpointer.close()
    expected = variables_of(TinyConfig(seed=1))["params"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 2), tuned, expected)
    counts = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.dtype == np.int32]
    assert counts
    assert all(count == 1 for count in counts)


def test_parts_that_do_not_fit_are_named_unless_they_are_excepted(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = initialize_from(source, variables_of(TinyConfig()))
    monkeypatch.setattr("tests.flaxnets.training.tiny.NUM_CLASSES", 4)
    variables = variables_of(TinyConfig())
    message = (
        rf"checkpoint {source}/checkpoints/2 do not fit the model: classifier \(params/classifier/"
        r"\S+: \(3,\) there, \(4,\) here\)\. Parts named in initialize_except are not loaded"
    )
    with pytest.raises(ValueError, match=message):
        initialize_from(source, variables)
    started = initialize_from(source, variables, ("classifier",))["params"]
    for part, expected in (("classifier", variables), ("recurrent", saved)):
        jax.tree.map(np.testing.assert_array_equal, started[part], expected["params"][part])
    assert not np.array_equal(
        *(jax.tree.leaves(v["params"]["recurrent"])[0] for v in (variables, saved))
    )


def test_a_part_that_only_the_checkpoint_has_is_named(source: Path) -> None:
    variables = variables_of(TinyConfig())
    lesser = {"params": {"recurrent": variables["params"]["recurrent"]}}
    with pytest.raises(ValueError, match=r"classifier \(params/classifier/.* there, absent here\)"):
        initialize_from(source, lesser)
    assert initialize_from(source, lesser, ("classifier",)).keys() == {"params"}


def test_a_misspelt_part_is_refused(source: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no part clasifier in the model or in .* classifier, rec"
    ):
        initialize_from(source, variables_of(TinyConfig()), ("clasifier",))
