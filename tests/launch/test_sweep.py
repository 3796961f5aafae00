"""Sweeps that train: trials as runs, their values, pruning, folds, the page, the programs."""

import json
import os
import shlex
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flaxnets.training.config import Config
from flaxnets.training.loop import Outcome
from flaxnets.training.workdir import Workdir
from flaxnets.training.writers import read_metrics
from launch import sweep_trial
from launch.experiment import load_experiment
from launch.run_list import find_runs
from launch.sweep_page import build_page, summarize
from launch.sweep_plan import Plan, make_plan
from launch.sweep_queue import Queue
from launch.sweep_storage import Database
from launch.sweep_study import open_study
from launch.sweep_trial import Runner
from launch.sweep_worker import work
from tests.launch.pages import Page
from tests.launch.programs import MOVING_SHAPES, finish, sentence, start, succeed

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

TINY = "tests/flaxnets/training/tiny.py"
RATE = "optimizer.learning_rate=log:1e-3:1e-1"


class Folded(Config):
    """An experiment with three folds, whose training is made up."""

    fold = 0

    def set_fold(self, fold: int) -> None:
        if not 1 <= fold <= 3:
            raise ValueError(f"fold: expected 1 to 3, received {fold}")
        self.fold = fold


def make(config: Config, **options: Any) -> Plan:
    settings = {"space": [RATE], "sampler": "random", "pruner": "none", **options}
    return make_plan(TINY, config, **settings)


def sweep(folder: Path, plan: Plan) -> Queue:
    """Does all trials of a sweep in this process."""
    database = Database(f"sqlite:///{folder / 'study.db'}")
    study = open_study(database, "tiny", plan.settings, trials=plan.trials, cells=plan.cells)
    queue = Queue(database, study, plan.settings)
    work(queue, Runner(plan.settings, plan.dimensions, plan.suggest, folder, database))
    return queue


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Config, int], Any]], None]:
    """Takes what an evaluation after a step has, in the place of training."""

    def use(evaluate: Callable[[Config, int], Mapping[str, float]]) -> None:
        def train(config: Config, workdir: Workdir, *, on_evaluation: Any, **_: Any) -> Outcome:
            records: list[dict[str, Any]] = []
            for step in range(config.eval_every, config.num_steps + 1, config.eval_every):
                metrics = evaluate(config, step)
                finite = {
                    name: value if value == value else None for name, value in metrics.items()
                }
                records.append({"step": step, "split": "train", "steps_per_second": 4.0})
                records.append({"step": step, "split": config.eval_split, **finite})
                lines = "".join(json.dumps(record) + "\n" for record in records)
                (workdir.path / "metrics.jsonl").write_text(lines)
                if on_evaluation(step, metrics) and step < config.num_steps:
                    return Outcome(step, metrics, stopped=True)
            return Outcome(config.num_steps, {})

        monkeypatch.setattr(sweep_trial, "train", train)

    return use


def test_a_trial_is_a_run_whose_value_is_its_best_evaluation(tmp_path: Path) -> None:
    config = load_experiment(TINY)
    config.strategy = "single"
    plan = make(config, trials=1, objectives=["accuracy", "loss:min", "step_seconds"])
    queue = sweep(tmp_path, plan)
    [trial] = queue.study.get_trials()
    assert [run.name for run in find_runs(tmp_path)] == ["trial0000"]
    recorded = json.loads((tmp_path / "trial0000/config.json").read_text())
    assert recorded["experiment"] == TINY
    rate = trial.params["optimizer.learning_rate"]
    assert recorded["config"]["optimizer"]["learning_rate"] == rate != 1e-3
    assert trial.user_attrs["overrides"] == {"optimizer.learning_rate": rate}
    every = read_metrics(tmp_path / "trial0000")
    records = [record for record in every if record["split"] == "validation"]
    assert [record["step"] for record in records] == [4, 8, 12]
    best = max(records, key=lambda record: record["accuracy"])
    assert trial.values[:2] == [best["accuracy"], best["loss"]]
    assert trial.values[2] > 0


def test_folds_and_seeds_give_the_mean_and_the_spread(tmp_path: Path, made_up: Any) -> None:
    made_up(lambda config, step: {"accuracy": config.fold + 0.5 * config.seed - step / 1e6})
    config = Folded(num_steps=4, eval_every=2)
    queue = sweep(tmp_path, make(config, trials=1, folds=3, seeds=[0, 1]))
    [trial] = queue.study.get_trials()
    values = [fold + 0.5 * seed - 2e-6 for fold in (1, 2, 3) for seed in (0, 1)]
    assert trial.value == pytest.approx(2.25 - 2e-6)
    assert trial.user_attrs["runs"] == [pytest.approx(values)]
    assert trial.user_attrs["spread"] == [pytest.approx(0.93541434)]
    names = [f"trial0000/fold{fold:02d}_seed{seed}" for fold in (1, 2, 3) for seed in (0, 1)]
    assert [run.name for run in find_runs(tmp_path)] == names
    # Of the same runs each: the mean of those before and of the one that trains.
    reports = trial.intermediate_values
    assert list(reports) == list(range(2, 25, 2))
    assert reports[10] == pytest.approx((1.0 + 1.5 + 2.0 - 3 * 2e-6) / 3)
    page = build_page(queue.study, tmp_path)
    assert "2.25 ± 0.94" in page
    with pytest.raises(ValueError, match="fold: expected 1 to 3, received 4"):
        make(Folded(), folds=4)


def test_pruned_and_failed_trials_are_recorded(tmp_path: Path, made_up: Any) -> None:
    def evaluate(config: Config, step: int) -> dict[str, float]:
        if config.seed == 3:
            raise RuntimeError("no <memory>")
        if config.seed == 4:
            return {"accuracy": float("nan")}
        return {"accuracy": step / 100 if config.seed < 7 else 0.0, "loss": 1.0}

    made_up(evaluate)
    config = Folded(num_steps=10, eval_every=2)
    plan = make(config, space=["seed=0:9:1"], sampler="grid", pruner="median")
    queue = sweep(tmp_path, plan)
    trials = queue.study.get_trials()
    assert [trial.state.name for trial in trials] == (
        ["COMPLETE"] * 3 + ["FAIL"] * 2 + ["COMPLETE"] * 2 + ["PRUNED"] * 3
    )
    assert trials[3].user_attrs["error"] == "RuntimeError: no <memory>"
    assert "gave a finite accuracy; there are accuracy" in trials[4].user_attrs["error"]
    page = Page(build_page(queue.study, tmp_path))
    assert "RuntimeError: no <memory>" in page.text
    assert "best: trial 0, accuracy:max 0.1" in summarize(queue.study, tmp_path)


def test_the_page_has_the_plots_and_the_command(tmp_path: Path, made_up: Any) -> None:
    made_up(lambda config, step: {"accuracy": config.optimizer.learning_rate, "loss": step + 1.0})
    config = load_experiment(TINY)
    config.batch_size = 4
    space = [RATE, "num_steps=8,12", "optimizer.name=sgd,adam"]
    queue = sweep(tmp_path, make(config, trials=6, space=space))
    best = queue.study.best_trial
    text = build_page(queue.study, tmp_path)
    for title in ("History of accuracy", "Importance for", "Parallel", "Course of accuracy"):
        assert f"<h3>{title}" in text
    words = shlex.split(summarize(queue.study, tmp_path).splitlines()[-1])
    assert shlex.join(words) in Page(text.partition("<script>")[0] + "</body></html>").text
    assert words[:4] == ["python", "-m", "launch.train", f"--config={TINY}"]
    assert set(words[5:]) == {
        "--config.batch_size=4",
        f"--config.optimizer.learning_rate={best.params['optimizer.learning_rate']}",
        *([] if best.params["num_steps"] == 12 else ["--config.num_steps=8"]),
        *([] if best.params["optimizer.name"] == "adam" else ["--config.optimizer.name=sgd"]),
    }
    # Nothing is fetched, and the library is in it once.
    assert text.count("<script") == 2
    assert not [src for src in Page(text).attributes("script", "src") if src]
    two = make(config, trials=3, objectives=["accuracy:max", "loss:min"])
    front = build_page(sweep(tmp_path / "two", two).study, tmp_path)
    assert "<h3>Pareto front" in front
    assert "<h2>Pareto front" in front


def test_what_no_sweep_can_judge_by_is_refused() -> None:
    for split in ("", "test"):
        with pytest.raises(ValueError, match="eval_split: expected a split that judges the trials"):
            make(Config(eval_split=split))
    for objective, message in (
        ("loss", "expected METRIC:max or METRIC:min, as loss:min, received 'loss'"),
        ("loss:low", "received 'loss:low'"),
        ("step_seconds", "expected a metric beside step_seconds"),
    ):
        with pytest.raises(ValueError, match=message):
            make(Config(), objectives=[objective])
    with pytest.raises(ValueError, match="objective: expected each once, received loss twice"):
        make(Config(), objectives=["loss:min", "loss:max"])
    with pytest.raises(ValueError, match="trials: the grid has 2 cells, received 3"):
        make(Config(), sampler="grid", space=["seed=1,2"], trials=3)
    with pytest.raises(ValueError, match="space: expected --space=FIELD=VALUES or --space_file"):
        make(Config(), space=[])
    with pytest.raises(ValueError, match="seeds: expected each once, received 1,1"):
        make(Config(), seeds=[1, 1])


def test_what_the_program_refuses(tmp_path: Path) -> None:
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'a'}"]
    misspelt = start("sweep", *flags, "--space=optimizer.learning_rat=1,2")
    nothing = start("sweep", f"--workdir={tmp_path / 'none'}", "--page")
    assert sentence(finish(misspelt)) == (
        "error: space: no field optimizer.learning_rat in the configuration; did you mean "
        "optimizer.learning_rate?"
    )
    assert "no study; expected the workdir of a sweep" in sentence(finish(nothing))
    assert not list(tmp_path.iterdir())


@pytest.mark.stress
def test_the_program(tmp_path: Path) -> None:
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'a'}", "--trials=2"]
    lines = succeed(start("sweep", *flags, f"--space={RATE}")).splitlines()
    assert lines[0] == "2 trials: 2 complete"
    assert lines[1].startswith("best: trial ")
    assert lines[-1] == str(tmp_path / "a/sweep.html")
    other = start("sweep", *flags, "--space=seed=1,2")
    page = start("sweep", f"--workdir={tmp_path / 'a'}", "--page")
    assert sentence(finish(other)).endswith(
        "\n  space: optimizer.learning_rate=log:0.001:0.1 there, seed=1,2 now"
    )
    assert succeed(page).split() == [str(tmp_path / "a/sweep.html")]
    # The command of the best configuration, as it is printed.
    command = shlex.split(lines[2])
    assert command[:3] == ["python", "-m", "launch.train"]
    succeed(start("train", *command[3:]))
    [best] = [run for run in find_runs(tmp_path / "a") if run.name == "best"]
    assert f"accuracy:max {best.best:.4g}" in lines[1]


@pytest.mark.stress
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(number: int, tmp_path: Path) -> None:
    training = ["--config.num_steps=400", "--config.eval_every=100"]
    flags = [f"--workdir={tmp_path / 'a'}", "--trials=1", "--space=optimizer.momentum=0.5,0.9"]
    flags += [MOVING_SHAPES, *training]
    stopped = start("sweep", *flags)
    deadline = time.monotonic() + 200
    while not whole_steps(tmp_path / "a/trial0000"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(stopped.pid, number)
    done = finish(stopped)
    assert done.returncode == 128 + number, done.stderr
    assert f"stopped by signal {int(number)}; the same command goes on" in done.stderr
    assert trial_states(tmp_path / "a") == ["WAITING"]
    saved = whole_steps(tmp_path / "a/trial0000")
    again = finish(start("sweep", *flags))
    assert again.returncode == 0, again.stderr
    assert f"resuming from step {max(saved)}" in again.stderr
    assert trial_states(tmp_path / "a") == ["COMPLETE"]


def whole_steps(run: Path) -> list[int]:
    """The steps of the checkpoints that are written to their end."""
    return [int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()]


def trial_states(folder: Path) -> list[str]:
    """The states of a study's trials, read past Optuna."""
    with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as connection:
        return [row[0] for row in connection.execute("SELECT state FROM trials ORDER BY number")]


@pytest.mark.stress
def test_two_workers_one_of_them_killed_finish_sixteen_trials(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    training = ["--config.num_steps=60", "--config.eval_every=20", "--config.checkpoint_every=5"]
    training += ["--config.data.num_train=256", "--config.data.num_validation=128"]
    training += ["--config.data.num_test=512"]
    flags = [f"--workdir={folder}", "--trials=16", "--stale_seconds=5", "--workers=2"]
    # The loss, as its differences are larger than chance after so few steps.
    flags += ["--objective=loss:min", "--space=optimizer.learning_rate=log:1e-4:1e-1"]
    space = ["--space=model.recurrent_features=16,32,64"]
    swept = start("sweep", MOVING_SHAPES, *training, *flags, *space)
    killed = kill_in_the_middle(swept.pid, folder)
    lines = succeed(swept).splitlines()
    assert any("ended with exit code 137" in line for line in lines)
    assert "16 trials: 16 complete" in lines
    assert trial_states(folder) == ["COMPLETE"] * 16
    runs = find_runs(folder)
    assert [run.name for run in runs] == [f"trial{number:04d}" for number in range(16)]
    assert {run.state for run in runs} == {"finished"}
    for run in runs:
        steps = [record["step"] for record in run.records if record["split"] == "validation"]
        assert steps == [20, 40, 60]
    log = (folder / "sweep.log").read_text()
    assert f"trial {killed}: its worker is gone" in log
    assert "resuming from step" in log
    default = tmp_path / "default"
    judged = ["--config.best_metric=loss", "--config.best_mode=min"]
    succeed(start("train", MOVING_SHAPES, *training, *judged, f"--workdir={default}"))
    best = min(runs, key=lambda run: run.best or float("inf"))
    assert best.best is not None
    [there] = find_runs(tmp_path / "default")
    assert there.best is not None
    assert best.best < there.best
    # On clips by which nothing was chosen, too.
    losses = []
    for workdir in (folder / best.name, default):
        out = tmp_path / "test.json"
        succeed(start("evaluate", f"--workdir={workdir}", "--split=test", f"--out={out}"))
        losses.append(json.loads(out.read_text())["loss"])
    assert losses[0] < losses[1]


def kill_in_the_middle(parent: int, folder: Path) -> int:
    """Kills a worker in a trial that has saved a checkpoint; the trial's number."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(0.1)
        workers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for place in folder.glob("trial000[4-9]"):
            if not whole_steps(place):
                continue
            number = int(place.name.removeprefix("trial"))
            holder = (place / "lock.holder").read_text().split()[1]
            if holder in workers and trial_states(folder)[number] == "RUNNING":
                os.kill(int(holder), signal.SIGKILL)
                return number
    raise AssertionError("no trial was seen in its middle")
