"""Training loop of a tiny experiment: resume, best checkpoint, faults, devices."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.checkpoint import Checkpointer, DamagedCheckpoint, DataChanged
from flaxnets.training.loop import Outcome, train
from flaxnets.training.metric_writer import NonFiniteLoss, read_metrics
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir
from tests.flaxnets.training.tiny import TinyConfig, TinyData

ONE_DEVICE = DataParallel(jax.devices()[:1])


def run(config: TinyConfig, path: Path, strategy: DataParallel = ONE_DEVICE) -> Outcome:
    with Workdir(path) as workdir:
        workdir.claim("tiny.py", config)
        return train(config, workdir, strategy=strategy, show_progress=False)


def losses(path: Path, split: str = "train") -> dict[int, float]:
    """Returns the loss by step; fails if a step is recorded twice."""
    records = [record for record in read_metrics(path) if record["split"] == split]
    assert len({record["step"] for record in records}) == len(records)
    return {record["step"]: record["loss"] for record in records}


def parameters(path: Path, step: int) -> Any:
    checkpointer = Checkpointer(path / "checkpoints", read_only=True)
    variables = checkpointer.restore_variables(step)
    checkpointer.close()
    return variables


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished")
    run(TinyConfig(), path)
    return path


def test_records_every_step_once_and_evaluates_on_time(finished: Path) -> None:
    assert list(losses(finished)) == list(range(1, 13))
    assert list(losses(finished, "validation")) == [4, 8, 12]
    record = read_metrics(finished)[-1]
    assert record["examples"] == 20
    assert record["skipped"] == 0


def test_the_loss_falls(tmp_path: Path) -> None:
    config = TinyConfig(num_steps=60, eval_every=60, log_every=60, dropout_rate=0.0)
    config.optimizer.learning_rate = 0.05
    outcome = run(config, tmp_path)
    assert outcome.metrics["accuracy"] > 0.6
    assert outcome.metrics["loss"] < 0.9 < np.log(3)


def test_stopped_anywhere_and_run_again_every_loss_is_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stop in (3, 5, 9):

        def batches(self: TinyData, start: int = 0, stop: int = stop) -> Any:
            for number, batch in enumerate(ORIGINAL(self, start), start):
                if self.train and number == stop:
                    raise KeyboardInterrupt  # As hard as a kill: no checkpoint, no last record.
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(TinyData, "batches", batches)
            with pytest.raises(KeyboardInterrupt):
                run(TinyConfig(), tmp_path)
    run(TinyConfig(), tmp_path)
    assert losses(tmp_path) == losses(finished)
    assert losses(tmp_path, "validation") == losses(finished, "validation")
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path, 12), parameters(finished, 12))


ORIGINAL = TinyData.batches


def test_a_signal_saves_at_the_next_step_and_the_run_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(self: TinyData, start: int = 0) -> Any:
        for number, batch in enumerate(ORIGINAL(self, start), start):
            if self.train and number == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(TinyData, "batches", batches)
        outcome = run(TinyConfig(), tmp_path)
    assert (outcome.step, outcome.signal) == (7, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run(TinyConfig(), tmp_path).step == 12
    assert losses(tmp_path) == losses(finished)


def records(path: Path) -> list[tuple[Any, ...]]:
    """Returns all records without times, in the file's order."""
    return [
        tuple(
            sorted((k, v) for k, v in record.items() if "per_second" not in k and "wait" not in k)
        )
        for record in read_metrics(path)
    ]


def assert_same_run(path: Path, expected: Path) -> None:
    assert records(path) == records(expected)
    found = []
    for folder in (path, expected):
        checkpointer = Checkpointer(folder / "checkpoints", read_only=True)
        steps = checkpointer.steps
        ranks = {step: checkpointer.metrics(step) for step in steps}
        found.append((ranks, checkpointer.best_step, checkpointer.restore_variables(steps[-1])))
        checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, *found)


def during_evaluation(monkeypatch: pytest.MonkeyPatch, number: int, act: Any) -> list[int]:
    """Calls ``act`` with the second of three batches of the ``number``-th evaluation from now on.

    Returns:
      Numbers of the batches that are read in evaluations, filled while they are.
    """
    read: list[int] = []

    def batches(self: TinyData, start: int = 0) -> Any:
        for batch_number, batch in enumerate(ORIGINAL(self, start), start):
            if not self.train:
                read.append(batch_number)
                if batch_number == 1 and read.count(0) == number:
                    act()
            yield batch

    monkeypatch.setattr(TinyData, "batches", batches)
    return read


def test_an_evaluation_that_fails_loses_no_step_and_is_done_by_the_next_call(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = 12

    def fail() -> None:
        raise OSError("clip.avi: cannot be read")

    for number in (step // 4, 1):  # Still not mended at the second call.
        with monkeypatch.context() as patch:
            read = during_evaluation(patch, number, fail)
            with pytest.raises(OSError, match=r"clip\.avi: cannot be read"):
                run(TinyConfig(), tmp_path)
        checkpointer = Checkpointer(tmp_path / "checkpoints", read_only=True)
        assert checkpointer.latest_step == step
        assert checkpointer.metrics(step) is None
        checkpointer.close()
    assert read == [0, 1]
    assert run(TinyConfig(), tmp_path).step == 12
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize("step", [8, 12])
def test_a_signal_ends_an_evaluation_after_the_batch_and_the_next_call_repeats_it(
    step: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        read = during_evaluation(patch, step // 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        outcome = run(TinyConfig(), tmp_path)
    assert (outcome.step, outcome.signal) == (step, signal.SIGTERM)
    assert read[-2:] == [0, 1]
    assert max(losses(tmp_path, "validation")) == step - 4
    again = run(TinyConfig(), tmp_path)
    assert (again.step, again.signal) == (12, None)
    assert_same_run(tmp_path, finished)


def test_a_signal_before_an_evaluation_leaves_it_to_the_next_call(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = 12

    def batches(self: TinyData, start: int = 0) -> Any:
        for number, batch in enumerate(ORIGINAL(self, start), start):
            reached.append(number + 1 if self.train else reached[-1])
            assert self.train or reached[-1] < step
            if self.train and number + 1 == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    reached = [0]
    with monkeypatch.context() as patch:
        patch.setattr(TinyData, "batches", batches)
        outcome = run(TinyConfig(), tmp_path)
    assert (outcome.step, outcome.signal) == (step, signal.SIGTERM)
    assert run(TinyConfig(), tmp_path).step == 12
    assert_same_run(tmp_path, finished)


def test_a_kill_between_an_evaluation_and_its_ranking_records_it_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, rank = 8, Checkpointer.rank

    def killed(self: Checkpointer, at: int, metrics: Any) -> None:
        if at == step:
            raise KeyboardInterrupt
        rank(self, at, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "rank", killed)
        with pytest.raises(KeyboardInterrupt):
            run(TinyConfig(), tmp_path)
    assert max(losses(tmp_path, "validation")) == step
    assert run(TinyConfig(), tmp_path).step == 12
    assert_same_run(tmp_path, finished)


def test_files_that_cannot_be_written_change_nothing_but_are_told(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("no folder")
    assert run(TinyConfig(), tmp_path).step == 12
    assert_same_run(tmp_path, finished)
    (message,) = [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]
    assert "tensorboard" in message


def test_a_damaged_newest_checkpoint_is_skipped_on_demand(finished: Path, tmp_path: Path) -> None:
    path = shutil.copytree(finished, tmp_path / "run")
    damaged = path / "checkpoints" / "12" / "data" / "metadata"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b" ")
    message = r"12: the checkpoint is damaged; .*data/metadata.*Undamaged steps: 8.*--skip_damaged"
    with pytest.raises(DamagedCheckpoint, match=message):
        run(TinyConfig(), path)
    with Workdir(path) as workdir:
        train(TinyConfig(), workdir, strategy=ONE_DEVICE, show_progress=False, skip_damaged=True)
    assert_same_run(path, finished)
    assert (path / "checkpoints" / "12.damaged").is_dir()
    run(TinyConfig(), path)  # Nothing is left to skip.


def test_a_metric_that_does_not_exist_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    config = TinyConfig(num_steps=12, eval_every=3)
    config.best_metric = "accurcy"
    with pytest.raises(
        ValueError, match="best_metric: validation has no 'accurcy'; did you mean 'accuracy'"
    ):
        run(config, tmp_path)
    assert losses(tmp_path) == {}


def test_the_best_checkpoint_is_kept_beside_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TinyConfig(num_steps=12, keep_checkpoints=1, eval_every=3, checkpoint_every=1)
    config.best_metric, config.best_mode = "loss", "min"
    evaluated = iter([3.0, 1.0, 2.0, 4.0])  # At steps 3, 6, 9 and 12.
    monkeypatch.setattr(
        "flaxnets.training.loop.evaluate", lambda *_, **__: {"loss": next(evaluated)}
    )
    run(config, tmp_path)
    checkpointer = Checkpointer(
        tmp_path / "checkpoints", best_metric="loss", mode="min", read_only=True
    )
    assert checkpointer.steps == [6, 12]
    assert checkpointer.best_step == 6
    checkpointer.close()


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_data(self: TinyConfig, split: str) -> TinyData:
        data = TinyData(split, self.batch_size, self.seed)
        data.poison = 9 if split == "train" else None
        return data

    monkeypatch.setattr(TinyConfig, "make_data", make_data)
    with pytest.raises(NonFiniteLoss, match="step 10: the loss is nan"):
        run(TinyConfig(), tmp_path)
    checkpointer = Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert checkpointer.latest_step == 8
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpointer.restore_variables())
    )
    checkpointer.close()


def test_a_batch_in_which_nothing_counts_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(self: TinyData, start: int = 0) -> Any:
        for number, batch in enumerate(ORIGINAL(self, start), start):
            empty = self.train and number >= 4
            yield {**batch, "mask": batch["mask"] & (not empty)}

    monkeypatch.setattr(TinyData, "batches", batches)
    run(TinyConfig(num_steps=8), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path, 4), parameters(tmp_path, 8))


def test_other_data_are_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyData, "describe", lambda self: {"num_examples": 21, "seed": 0})
    with pytest.raises(DataChanged, match="num_examples: 20 there, 21 now"):
        run(TinyConfig(), finished)


def test_another_model_in_the_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr("tests.flaxnets.training.tiny.NUM_CLASSES", 4)
        with pytest.raises(ValueError, match="does not fit the model of this configuration"):
            run(TinyConfig(), tmp_path)


def test_eight_devices_equal_one(finished: Path, tmp_path: Path) -> None:
    config = TinyConfig(dropout_rate=0.0)
    run(config, tmp_path / "one")
    run(config, tmp_path / "eight", DataParallel(jax.devices()[:8]))
    for split in ("train", "validation"):
        one, eight = losses(tmp_path / "one", split), losses(tmp_path / "eight", split)
        np.testing.assert_allclose(list(one.values()), list(eight.values()), rtol=1e-5)


def test_a_batch_that_the_devices_cannot_divide_is_refused(tmp_path: Path) -> None:
    strategy = DataParallel(jax.devices()[:8])
    message = "batch_size: expected a multiple of the 8 devices, received 12; 8 or 16 would do"
    with pytest.raises(ValueError, match=message):
        run(TinyConfig(batch_size=12), tmp_path, strategy)


def test_a_schedule_that_does_not_fit_is_told_before_any_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyConfig, "make_data", lambda *_: pytest.fail("read the data"))
    config = TinyConfig(num_steps=4)
    config.optimizer.warmup_steps = 200
    with pytest.raises(ValueError, match=r"optimizer\.warmup_steps: expected 0 to num_steps - 1"):
        run(config, tmp_path)


def test_evaluation_counts_every_example_once(finished: Path) -> None:
    config, workdir = TinyConfig(), Workdir(finished)
    model = TrainedModel(config, workdir)
    metrics = model.evaluate("test")
    records = read_predictions(workdir.predictions("test"))
    assert [record["index"] for record in records] == list(range(20))
    right = np.mean([record["label"] == record["prediction"] for record in records])
    assert metrics["accuracy"] == pytest.approx(right)
    negative_log = [-np.log(record["probabilities"][record["label"]]) for record in records]
    assert metrics["loss"] == pytest.approx(np.mean(negative_log), rel=1e-4)
    assert metrics["top5_accuracy"] == 1.0


def test_a_damaged_line_of_the_outputs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes(b'{"index": 0}\n{"index": \xff}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl, line 2: damaged .*evaluate again"):
        read_predictions(path)


def test_a_checkpoint_that_is_not_there_names_those_that_are(finished: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5; there are .*8, 12"):
        TrainedModel(TinyConfig(), Workdir(finished), step=5)
    with pytest.raises(FileNotFoundError, match="no checkpoints; expected a workdir that has"):
        TrainedModel(TinyConfig(), Workdir(finished / "checkpoints"))


def test_views_of_a_video_are_averaged(finished: Path) -> None:
    config = TinyConfig()
    model, task = config.make_model(), config.make_task()
    variables = parameters(finished, 12)
    batch = next(iter(config.make_data("test").batches()))
    views = {
        **batch,
        "features": np.stack([batch["features"], batch["features"][::-1]], 1),
        "lengths": np.stack([batch["lengths"], batch["lengths"][::-1]], 1),
    }
    single = np.asarray(task.predict(model, variables, batch))
    both = np.asarray(task.predict(model, variables, views))
    np.testing.assert_allclose(both, (single + single[::-1]) / 2, rtol=1e-5)
    assert json.dumps(task.describe_outputs({"probabilities": both}, 0))
