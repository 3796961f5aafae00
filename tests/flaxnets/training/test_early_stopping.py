"""Training ends after evaluations without a better metric, or if the caller ends it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from flaxnets.training.checkpoint import Checkpointer
from flaxnets.training.loop import OnEvaluation, Outcome, train
from flaxnets.training.metric_writer import MetricsWriter, read_metrics
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir
from tests.flaxnets.training.tiny import TinyConfig, TinyData

ORIGINAL, WRITE = TinyData.batches, MetricsWriter.write
# The second evaluation is the best; the third is as good, which is no better.
SCORES = {2: 1.0, 4: 3.0, 6: 3.0, 8: 2.0, 10: 1.0, 12: 9.0}


def configuration(patience: int = 3, **others: Any) -> TinyConfig:
    return TinyConfig(
        eval_every=2,
        checkpoint_every=1,
        keep_checkpoints=1,
        patience=patience,
        best_metric="CIDEr",
        **others,
    )


def run(config: TinyConfig, path: Path, on_evaluation: OnEvaluation | None = None) -> Outcome:
    with Workdir(path) as workdir:
        workdir.claim("tiny.py", config)
        strategy = DataParallel(jax.devices()[:1])
        return train(
            config, workdir, strategy=strategy, show_progress=False, on_evaluation=on_evaluation
        )


def evaluated(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path) if record["split"] == "validation"]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Metric of the evaluation after each step; a test may change it."""
    scores = dict(SCORES)
    written = [0]

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        return {"CIDEr": scores[written[-1]]}

    def write(self: MetricsWriter, step: int, split: str, values: Any) -> None:
        written.append(step)  # The training metrics are written before the evaluation.
        WRITE(self, step, split, values)

    monkeypatch.setattr("flaxnets.training.loop.evaluate", evaluate)
    monkeypatch.setattr(MetricsWriter, "write", write)
    monkeypatch.setattr(TinyConfig, "scored_metrics", lambda self, split: ("CIDEr",))
    return scores


def kept(path: Path, mode: str = "max") -> tuple[int | None, list[int]]:
    checkpointer = Checkpointer(
        path / "checkpoints", best_metric="CIDEr", mode=mode, read_only=True
    )
    found = checkpointer.best_step, checkpointer.steps
    checkpointer.close()
    return found


def stop_before(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(self: TinyData, start: int = 0) -> Iterator[Any]:
        for each, batch in enumerate(ORIGINAL(self, start), start):
            if self.train and each == number:
                raise KeyboardInterrupt  # As hard as a kill: no checkpoint, no last record.
            yield batch

    monkeypatch.setattr(TinyData, "batches", batches)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(("patience", "end"), [(0, 12), (1, 6), (2, 8), (3, 10), (4, 12)])
def test_training_ends_after_so_many_evaluations_without_a_better_figure(
    patience: int, end: int, scored: dict[int, float], tmp_path: Path
) -> None:
    outcome = run(configuration(patience), tmp_path)
    assert (outcome.step, outcome.signal) == (end, None)
    assert evaluated(tmp_path) == list(range(2, end + 1, 2))
    assert outcome.metrics == {"CIDEr": SCORES[end]}


def test_the_best_checkpoint_is_kept_and_training_again_does_nothing(
    scored: dict[int, float], tmp_path: Path
) -> None:
    scored[6] = 2.5
    run(configuration(), tmp_path)
    assert kept(tmp_path) == (4, [4, 10])
    records = read_metrics(tmp_path)
    again = run(configuration(), tmp_path)
    assert (again.step, again.metrics, again.signal) == (10, {}, None)
    assert read_metrics(tmp_path) == records
    assert kept(tmp_path) == (4, [4, 10])


@pytest.mark.parametrize("stop", [5, 6, 9])
def test_a_run_that_was_killed_ends_at_the_same_step(
    stop: int, scored: dict[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_before(stop, patch)
        with pytest.raises(KeyboardInterrupt):
            run(configuration(), tmp_path)
    assert run(configuration(), tmp_path).step == 10
    assert evaluated(tmp_path) == [2, 4, 6, 8, 10]


def test_lower_may_be_better_and_a_figure_that_is_none_is_no_better(
    scored: dict[int, float], tmp_path: Path
) -> None:
    scored |= {2: 5.0, 4: 3.0, 6: 4.0, 8: float("inf"), 10: 3.5}
    assert run(configuration(best_mode="min"), tmp_path).step == 10
    assert kept(tmp_path, "min") == (4, [4, 10])


def test_the_caller_ends_the_training_after_an_evaluation_whose_checkpoint_is_kept(
    scored: dict[int, float], tmp_path: Path
) -> None:
    asked = []

    def ends_at_six(step: int, metrics: Any) -> bool:
        asked.append((step, dict(metrics)))
        return step == 6

    outcome = run(configuration(0), tmp_path, ends_at_six)
    assert (outcome.step, outcome.signal, outcome.stopped) == (6, None, True)
    assert asked == [(step, {"CIDEr": SCORES[step]}) for step in (2, 4, 6)]
    assert kept(tmp_path) == (6, [6])
    # Run again, it goes on; an end at the last step is none.
    again = run(configuration(0), tmp_path, lambda step, metrics: step == 12)
    assert (again.step, again.stopped) == (12, False)
    assert evaluated(tmp_path) == list(range(2, 13, 2))


def test_without_an_evaluation_the_caller_is_not_asked(tmp_path: Path) -> None:
    config = configuration(0, eval_split="")
    outcome = run(config, tmp_path, lambda step, metrics: True)
    assert (outcome.step, outcome.stopped) == (12, False)


def test_a_negative_patience_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience: expected at least 0, received -1"):
        run(configuration(-1), tmp_path)
