"""Sweeps that train: trials as runs, their values, pruning, folds, retries, the page."""

import contextlib
import json
import re
import shlex
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import pytest

from flaxnets.training.config import Config
from flaxnets.training.loop import Outcome
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.workdir import Workdir
from launch.program import load_experiment
from launch.reports.run_table import find_runs
from launch.sweeps import trial as trial_module
from launch.sweeps.page import build_page, ranked, summarize
from launch.sweeps.plan import Plan, make_plan
from launch.sweeps.study import Database, current_trials, open_study
from launch.sweeps.trial import Runner
from launch.sweeps.worker import work
from tests.launch.reports.pages import Page

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

TINY = "tests/flaxnets/training/tiny.py"
RATE = "optimizer.learning_rate=log:1e-3:1e-1"


class Folded(Config):
    """Experiment with three folds, whose training is replaced."""

    fold = 0

    def set_fold(self, fold: int) -> None:
        if not 1 <= fold <= 3:
            raise ValueError(f"fold: expected 1 to 3, received {fold}")
        self.fold = fold


def make(config: Config, **options: Any) -> Plan:
    settings = {"space": [RATE], "sampler": "random", "pruner": "none", **options}
    return make_plan(TINY, config, **settings)


def sweep(folder: Path, plan: Plan, *, stale_seconds: int = 60) -> Any:
    """Runs all trials of a sweep in this process, and returns its study."""
    address = f"sqlite:///{folder / 'study.db'}"
    with contextlib.closing(Database(address, stale_seconds=stale_seconds)) as database:
        study = open_study(database, "tiny", plan.settings, trials=plan.trials, cells=plan.cells)
        work(database, study, plan.settings, Runner(plan, folder), poll_seconds=0.02)
        return study


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Config, int], Any]], None]:
    """Replaces training by a function that gives the metrics of an evaluation after a step."""

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

        monkeypatch.setattr(trial_module, "train", train)

    return use


@pytest.mark.slow
def test_a_trial_is_a_run_whose_value_is_its_best_evaluation(tmp_path: Path) -> None:
    config = load_experiment(TINY)
    config.strategy = "single"
    plan = make(config, trials=1, objectives=["accuracy", "loss:min", "step_seconds"])
    study = sweep(tmp_path, plan)
    [trial] = study.get_trials()
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


@pytest.mark.parametrize(
    ("field", "values", "nearest"),
    [
        ("model.recurrent.cell", "lstm,lstn", "'lstn'; did you mean 'lstm'?"),
        ("optimizer.name", "adam,adamm", "'adamm'; did you mean 'adam'?"),
        ("optimizer.schedule", "cosine,cosin", "'cosin'; did you mean 'cosine'?"),
        ("model.encoder.name", "small_cnn,smal_cnn", "'smal_cnn'; did you mean 'small_cnn'?"),
    ],
)
def test_a_misspelt_name_is_refused_before_the_first_trial(
    field: str, values: str, nearest: str
) -> None:
    config = load_experiment("experiments/moving_shapes.py:smoke")
    with pytest.raises(ValueError, match=re.escape(f"space: {field}: unknown {nearest}")):
        make(config, space=[f"{field}={values}"])
    assert make(config, space=["model.recurrent.cell=lstm,gru"]).trials > 1


def test_folds_and_seeds_give_the_mean_and_the_spread(tmp_path: Path, made_up: Any) -> None:
    made_up(lambda config, step: {"accuracy": config.fold + 0.5 * config.seed - step / 1e6})
    config = Folded(num_steps=4, eval_every=2)
    study = sweep(tmp_path, make(config, trials=1, folds=3, seeds=[0, 1]))
    [trial] = study.get_trials()
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
    page = build_page(study, tmp_path)
    assert "2.25 ± 0.94" in page
    with pytest.raises(ValueError, match="fold: expected 1 to 3, received 4"):
        make(Folded(), folds=4)


@pytest.mark.slow
def test_a_retry_goes_on_in_the_folder_of_the_first_trial(tmp_path: Path, made_up: Any) -> None:
    class Killed(BaseException):
        """Ends the worker in the middle of its trial."""

    rates: list[float] = []
    busy = filelock.FileLock(tmp_path / "trial0000/lock", thread_local=False)

    def evaluate(config: Config, step: int) -> dict[str, float]:
        rates.append(config.optimizer.learning_rate)
        if len(rates) == 2:
            raise Killed
        return {"accuracy": step / 100}

    made_up(evaluate)
    plan = make(Folded(num_steps=4, eval_every=2), trials=2)
    with pytest.raises(Killed):
        sweep(tmp_path, plan, stale_seconds=1)
    # Another process uses the folder, as a worker that was only slow would.
    busy.acquire()
    timer = threading.Timer(4.0, busy.release)
    timer.start()
    study = sweep(tmp_path, plan, stale_seconds=1)
    timer.join()
    assert [run.name for run in find_runs(tmp_path)] == ["trial0000", "trial0001"]
    assert len(rates) == 6
    assert rates[4:] == rates[:2]
    assert [trial.number for trial in current_trials(study)] == [2, 1]
    assert summarize(study, tmp_path).startswith("2 trials: 2 complete\nbest: trial 1")
    assert "trials 2 complete 2 best" in Page(build_page(study, tmp_path)).text


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
    study = sweep(tmp_path, plan)
    trials = study.get_trials()
    assert [trial.state.name for trial in trials] == (
        ["COMPLETE"] * 3 + ["FAIL"] * 2 + ["COMPLETE"] * 2 + ["PRUNED"] * 3
    )
    assert trials[3].user_attrs["error"] == "RuntimeError: no <memory>"
    assert "gave a finite accuracy; there are accuracy" in trials[4].user_attrs["error"]
    page = Page(build_page(study, tmp_path))
    assert "RuntimeError: no <memory>" in page.text
    assert "best: trial 0, accuracy:max 0.1" in summarize(study, tmp_path)


def test_the_page_has_the_plots_and_the_command(tmp_path: Path, made_up: Any) -> None:
    made_up(lambda config, step: {"accuracy": config.optimizer.learning_rate, "loss": step + 1.0})
    config = load_experiment(TINY)
    config.batch_size = 4
    space = [RATE, "num_steps=8,12", "optimizer.name=sgd,adam"]
    study = sweep(tmp_path, make(config, trials=6, space=space))
    best = study.best_trial
    text = build_page(study, tmp_path)
    for title in ("accuracy of each trial", "accuracy over optimizer.learning_rate", "Accuracy"):
        assert f"<h3>{title}</h3>" in text
    assert "Importance for accuracy" in text
    page = Page(text)
    words = shlex.split(summarize(study, tmp_path).splitlines()[-1])
    [shown] = [each for each in page.texts if each.startswith("python -m launch.train")]
    assert shlex.split(shown.replace("\\\n", " ")) == words
    assert words[:4] == ["python", "-m", "launch.train", f"--config={TINY}"]
    assert set(words[5:]) == {
        "--config.batch_size=4",
        f"--config.optimizer.learning_rate={best.params['optimizer.learning_rate']}",
        *([] if best.params["num_steps"] == 12 else ["--config.num_steps=8"]),
        *([] if best.params["optimizer.name"] == "adam" else ["--config.optimizer.name=sgd"]),
    }
    # It runs no script, and its size is that of its charts.
    assert "<script" not in text
    assert len(text) < 100_000
    values = [trial.values[0] for trial in ranked(study.trials, ["accuracy:max"])]
    assert values == sorted(values, reverse=True)
    two = make(config, trials=3, objectives=["accuracy:max", "loss:min"])
    front = build_page(sweep(tmp_path / "two", two), tmp_path)
    assert "<h3>loss over accuracy; the line is the Pareto front</h3>" in front
    assert "<h2>Pareto front" in front


def test_settings_by_which_no_trial_can_be_judged_are_refused() -> None:
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
