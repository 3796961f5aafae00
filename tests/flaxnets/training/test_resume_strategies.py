"""A run that stopped on eight devices resumes with any strategy, equal to an uninterrupted one."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxnets.training.checkpoint import Checkpointer
from flaxnets.training.loop import train
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.parallel import Strategy, make_strategy
from flaxnets.training.workdir import Workdir
from tests.flaxnets.training.tiny import TinyConfig, TinyData

STRATEGIES = {"jit": {}, "single": {}, "pmap": {}, "fsdp": {"fsdp": 2}}


class Recorded(TinyData):
    """Data that records the numbers of its training examples."""

    seen: list[list[int]]

    def rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        if self.train:
            self.seen.append(rows.tolist())
        return super().rows(rows)


class RecordedConfig(TinyConfig):
    """Experiment without dropout, whose masks differ under pmap."""

    seen: list[list[int]]

    def make_data(self, split: str) -> Recorded:
        data = Recorded(split, self.batch_size, self.seed)
        data.seen = self.seen
        return data


def run(path: Path, strategy: Strategy) -> list[list[int]]:
    """Trains to the end; returns the numbers of the examples of each batch."""
    config = RecordedConfig(dropout_rate=0.0, keep_checkpoints=3)
    config.seen = []
    config.optimizer.learning_rate = 0.05
    with Workdir(path) as workdir:
        workdir.claim("tiny.py", config)
        train(config, workdir, strategy=strategy, show_progress=False)
    return config.seen[1:]  # The first batch gave the shapes.


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    path = tmp_path_factory.mktemp("uninterrupted")
    return path, run(path, make_strategy("jit"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_losses_and_the_order_of_the_data_go_on(
    name: str, uninterrupted: tuple[Path, list[list[int]]], tmp_path: Path
) -> None:
    assert len(jax.devices()) == 8
    whole, examples = uninterrupted
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    # As after a kill behind step 5: the checkpoint of step 4 is the newest.
    for step in (8, 12):
        shutil.rmtree(path / "checkpoints" / str(step))
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:6]))
    strategy = make_strategy("jit" if name == "fsdp" else name, **STRATEGIES[name])
    seen = run(path, strategy)
    assert (len(examples), len(seen)) >= (12, 8)
    assert seen[:8] == examples[4:12]
    expected, actual = read_metrics(whole), read_metrics(path)
    assert [(r["step"], r["split"]) for r in actual] == [(r["step"], r["split"]) for r in expected]
    for one, other in zip(expected, actual, strict=True):
        tolerance = 0 if name == "jit" else 1e-4
        assert other["loss"] == pytest.approx(one["loss"], rel=tolerance), (one["step"], name)
    for folder in (whole, path):
        checkpointer = Checkpointer(folder / "checkpoints", read_only=True)
        variables = checkpointer.restore_variables(12)
        checkpointer.close()
        if folder == whole:
            final = variables
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), final, variables
    )
