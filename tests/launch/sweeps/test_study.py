"""Studies and their workers: no trial lost or run twice, retries after kills, joins, failures."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flaxnets.training.config import Config
from flaxnets.training.preemption import SIGNALS
from launch.sweeps.plan import Plan, make_plan
from launch.sweeps.space import draw
from launch.sweeps.study import (
    Database,
    current_trials,
    import_optuna,
    load_study,
    make_sampler,
    open_study,
    run_number,
)
from launch.sweeps.trial import Interrupted, report
from launch.sweeps.worker import (
    MAX_ATTEMPTS,
    TooManyFailures,
    error_of,
    is_done,
    raise_signals,
    work,
)

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

Train = Callable[[Any, int], Sequence[float]]


class Killed(BaseException):
    """Ends a worker in the middle of a trial, as SIGKILL does."""


@pytest.fixture(autouse=True)
def _ignore_experimental() -> None:
    import_optuna()


def make(**options: Any) -> Plan:
    settings = {"space": ["seed=0:1000"], "sampler": "random", "pruner": "none", **options}
    return make_plan("x.py", Config(), **settings)


@contextlib.contextmanager
def connect(folder: Path, **options: Any) -> Iterator[Database]:
    with contextlib.closing(Database(f"sqlite:///{folder / 'study.db'}", **options)) as database:
        yield database


def join(folder: Path, plan: Plan) -> Any:
    """Opens the study and returns it."""
    with connect(folder) as database:
        return open_study(database, "s", plan.settings, trials=plan.trials, cells=plan.cells)


def run(folder: Path, plan: Plan, train: Train, *, stale_seconds: int = 60, **options: Any) -> Any:
    """Works on the study until it is done, and returns it."""
    with connect(folder, stale_seconds=stale_seconds) as database:
        study = open_study(database, "s", plan.settings, trials=plan.trials, cells=plan.cells)
        work(database, study, plan.settings, train, poll_seconds=0.02, **options)
        assert is_done(study)
        return study


def kill(folder: Path, plan: Plan, train: Train | None = None) -> None:
    """Has a worker take the first waiting trial and die in it."""

    def die(trial: Any, number: int) -> Sequence[float]:
        if train is not None:
            train(trial, number)
        raise Killed

    with pytest.raises(Killed):
        run(folder, plan, die, stale_seconds=1)


def states(study: Any) -> Counter[str]:
    return Counter(trial.state.name for trial in current_trials(study))


def value(trial: Any, plan: Plan) -> list[float]:
    return [float(draw(trial, plan.dimensions, None)["seed"])]


def test_many_workers_run_every_trial_once_and_create_one_study(tmp_path: Path) -> None:
    plan, done, lock = make(trials=12), [], threading.Lock()
    start = threading.Barrier(3)

    def train(trial: Any, number: int) -> list[float]:
        with lock:
            done.append(number)
        return value(trial, plan)

    def worker() -> None:
        start.wait()  # All create the study at once.
        run(tmp_path, plan, train)

    workers = [threading.Thread(target=worker) for _ in range(3)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert sorted(done) == list(range(12))
    study = join(tmp_path, plan)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 12
    # The values depend on the trial's number and not on the worker.
    drawn = [trial.params["seed"] for trial in study.get_trials()]
    assert len(set(drawn)) > 10
    for number, seed in enumerate(drawn):
        alone = optuna.create_study(sampler=make_sampler(plan.settings, number))
        assert value(alone.ask(), plan) == [seed]


def test_a_grid_runs_each_cell_once(tmp_path: Path) -> None:
    plan = make(sampler="grid", space=["seed=1,2,3", "optimizer.name=sgd,adam"])
    assert plan.trials == 6
    study = run(tmp_path, plan, lambda trial, _: [float(len(draw(trial, plan.dimensions, None)))])
    cells = {tuple(trial.params.values()) for trial in study.get_trials()}
    assert len(study.get_trials()) == 6
    assert cells == {(seed, name) for seed in (1, 2, 3) for name in ("sgd", "adam")}


def test_a_killed_workers_trial_is_retried_with_its_values(tmp_path: Path) -> None:
    plan, drawn = make(trials=2), []

    def begin(trial: Any, number: int) -> list[float]:
        drawn.append((number, *value(trial, plan)))
        trial.report(0.5, 1)
        return []

    def train(trial: Any, number: int) -> list[float]:
        drawn.append((number, *value(trial, plan)))
        report(trial, 0.25, 1)  # Reported before: neither an error nor another value.
        report(trial, 0.75, 2)
        return [1.0]

    kill(tmp_path, plan, begin)
    study = run(tmp_path, plan, train, stale_seconds=1)
    assert [number for number, _ in drawn] == [0, 1, 0]
    assert drawn[2] == drawn[0]
    assert states(study) == {"COMPLETE": 2}
    first, lost = current_trials(study)[0], study.get_trials()[0]
    assert (first.number, run_number(first)) == (2, 0)
    assert first.intermediate_values == {1: 0.5, 2: 0.75}
    assert (lost.state.name, run_number(lost)) == ("FAIL", 0)
    # A longer sweep counts no retries.
    more = dataclasses.replace(plan, trials=4)
    assert states(join(tmp_path, more)) == {"COMPLETE": 2, "WAITING": 2}


@pytest.mark.parametrize("reports", [False, True])
def test_a_worker_that_was_only_slow_counts_no_more(reports: bool, tmp_path: Path) -> None:
    plan, done = make(trials=1), []

    def slow(trial: Any, number: int) -> list[float]:
        # Taken for dead and retried by another worker, before it is done itself.
        trial.storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        other = threading.Thread(target=run, args=(tmp_path, plan, lambda *_: [1.0]))
        other.start()
        other.join()
        if reports:
            trial.report(9.0, 1)
        done.append(number)
        return [9.0]

    study = run(tmp_path, plan, slow)
    assert done == ([] if reports else [0])
    assert [trial.value for trial in current_trials(study)] == [1.0]
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_a_living_workers_trial_is_not_retried(tmp_path: Path) -> None:
    plan, started = make(trials=1), threading.Event()

    def train(trial: Any, number: int) -> list[float]:
        started.set()
        time.sleep(4)
        return [1.0]

    worker = threading.Thread(target=run, args=(tmp_path, plan, train), kwargs={"stale_seconds": 2})
    worker.start()
    started.wait()
    study = run(tmp_path, plan, lambda *_: [2.0], stale_seconds=2)
    worker.join()
    assert [trial.value for trial in study.get_trials()] == [1.0]


@pytest.mark.slow
def test_a_trial_in_which_workers_die_fails(tmp_path: Path) -> None:
    plan = make(trials=1)
    for _ in range(MAX_ATTEMPTS):
        kill(tmp_path, plan)
    study = run(tmp_path, plan, lambda *_: [1.0], stale_seconds=1)
    [trial] = current_trials(study)
    assert trial.state.name == "FAIL"
    assert error_of(trial) == f"its worker died {MAX_ATTEMPTS} times"
    assert len(study.get_trials()) == MAX_ATTEMPTS


def test_an_interrupted_trial_waits_for_the_next_worker(tmp_path: Path) -> None:
    plan, signals = make(trials=2), iter([Interrupted(15), KeyboardInterrupt()])

    def train(trial: Any, number: int) -> list[float]:
        if number == 1:
            raise next(signals)
        return [1.0]

    for number in (15, 2):
        with pytest.raises(Interrupted) as error:
            run(tmp_path, plan, train)
        assert error.value.signal == number
        assert states(join(tmp_path, plan)) == {"COMPLETE": 1, "WAITING": 1}
    study = run(tmp_path, plan, lambda *_: [2.0])
    assert [trial.value for trial in study.get_trials()] == [1.0, 2.0]


def test_an_outage_of_the_database_is_no_failure_of_the_trial(tmp_path: Path) -> None:
    plan = make(trials=1)
    outages = iter([optuna.exceptions.StorageInternalError("database is locked")])

    def train(trial: Any, number: int) -> list[float]:
        for outage in outages:
            raise outage
        return [1.0]

    study = run(tmp_path, plan, train)
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL", "COMPLETE"]
    assert states(study) == {"COMPLETE": 1}


def test_failures_are_recorded_and_many_in_a_row_end_the_sweep(tmp_path: Path) -> None:
    plan = make(trials=12)

    def train(trial: Any, number: int) -> list[float]:
        if number % 3 == 2 or number > 5:
            raise RuntimeError(f"no luck in {number}")
        return [1.0]

    with pytest.raises(TooManyFailures, match=r"last 3 trials failed, .* trial 7: RuntimeError"):
        run(tmp_path, plan, train, max_failures=3)
    study = join(tmp_path, plan)
    assert states(study) == {"COMPLETE": 4, "FAIL": 4, "WAITING": 4}
    assert study.get_trials()[2].user_attrs["error"] == "RuntimeError: no luck in 2"
    # Earlier failures do not end a sweep that is joined again.
    with pytest.raises(TooManyFailures):
        run(tmp_path, plan, train, max_failures=2)
    study = run(tmp_path, plan, lambda *_: [1.0], max_failures=1)
    assert "WAITING" not in states(study)


def test_a_value_that_is_not_finite_fails_the_trial(tmp_path: Path) -> None:
    study = run(tmp_path, make(trials=2), lambda _, number: [float(("nan", "inf")[number])])
    assert states(study) == {"FAIL": 2}
    assert "nan" in study.get_trials()[0].user_attrs["error"]


def test_bad_trials_are_pruned(tmp_path: Path) -> None:
    def rising(trial: Any, number: int) -> list[float]:
        for step in (1, 2, 3):
            if report(trial, step if number < 6 else 0.0, step):
                raise optuna.TrialPruned
        return [3.0]

    study = run(tmp_path, make(trials=8, pruner="median"), rising)
    assert states(study) == {"COMPLETE": 6, "PRUNED": 2}
    hyperband = make(trials=9, pruner="hyperband")
    config = hyperband.settings.config
    config.eval_every, config.num_steps = 1, 9

    def falling(trial: Any, number: int) -> list[float]:
        for step in range(1, 10):
            if report(trial, -float(number), step):
                raise optuna.TrialPruned
        return [-float(number)]

    assert states(run(tmp_path / "hyperband", hyperband, falling))["PRUNED"] >= 3


def test_a_study_of_another_sweep_is_refused_with_the_difference(tmp_path: Path) -> None:
    join(tmp_path, make(trials=4))
    config = Config(batch_size=64, log_every=3)
    for plan, line in (
        (make(trials=4, space=["seed=0:99"]), "space: seed=0:1000 there, seed=0:99 now"),
        (make(trials=3), "trials: 4 there, 3 now"),
        (make(trials=4, sampler="tpe"), "sampler: random there, tpe now"),
        (make(trials=4, seeds=[1, 2], space=["batch_size=1:9"]), "seeds: none there, 1 2 now"),
        (make(trials=4, objectives=["loss:min"]), "best_metric: 'accuracy' there, 'loss' now"),
    ):
        with pytest.raises(ValueError, match=r"study: s is of another sweep; name") as error:
            join(tmp_path, plan)
        assert f"\n  {line}" in str(error.value)
    other = make_plan("x.py", config, space=["seed=0:1000"], sampler="random", pruner="none")
    with pytest.raises(ValueError, match="of another sweep") as error:
        join(tmp_path, dataclasses.replace(other, trials=4))
    assert str(error.value).splitlines()[1:] == ["  batch_size: 32 there, 64 now"]
    # More trials are added.
    assert states(join(tmp_path, make(trials=7))) == {"WAITING": 7}


def test_a_study_that_is_missing_or_foreign_is_refused(tmp_path: Path) -> None:
    with connect(tmp_path) as database:
        with pytest.raises(ValueError, match="study: no study given in sqlite"):
            load_study(database, None)
        optuna.create_study(storage=database.storage, study_name="foreign").add_trial(
            optuna.create_trial(value=1.0)
        )
        with pytest.raises(ValueError, match=r"study: no study x in .*; there are foreign"):
            load_study(database, "x")
        with pytest.raises(ValueError, match=r"foreign in .* was not made by launch\.sweep"):
            load_study(database, None)
        with pytest.raises(ValueError, match=r"study: foreign was not made by launch\.sweep"):
            open_study(database, "foreign", make().settings, trials=1)


def test_samplers_and_pruners_that_cannot_be_used_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make(sampler="tpe").settings
    assert isinstance(make_sampler(settings, 0), optuna.samplers.TPESampler)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="sampler gp needs PyTorch, which is not installed"):
        make(sampler="gp")
    with pytest.raises(ValueError, match="sampler: unknown 'tpee'; did you mean 'tpe'"):
        make(sampler="tpee")
    with pytest.raises(ValueError, match="pruner: expected none with several objectives"):
        make(pruner="median", objectives=["accuracy", "step_seconds"])


def test_of_several_signals_to_a_worker_the_prevailing_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests may run under nohup.
    plan = make(trials=1)

    def send(*numbers: int) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    def train(trial: Any, number: int) -> list[float]:
        send(signal.SIGINT)
        raise AssertionError("the signal raises")

    try:
        raise_signals()
        with connect(tmp_path) as database:
            study = open_study(database, "s", plan.settings, trials=1, cells=plan.cells)
            give_back = study._storage.set_trial_state_values

            def interrupted(*arguments: Any, **options: Any) -> Any:
                if optuna.trial.TrialState.WAITING in arguments:
                    send(signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
                return give_back(*arguments, **options)

            monkeypatch.setattr(study._storage, "set_trial_state_values", interrupted)
            with pytest.raises(Interrupted) as error:
                work(database, study, plan.settings, train, poll_seconds=0.02)
            assert error.value.signal == signal.SIGUSR1
            assert states(study) == {"WAITING": 1}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
