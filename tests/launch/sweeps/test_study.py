"""Studies and their trials: none lost, none doubled, taken up after a kill, joined or refused."""

import dataclasses
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flaxnets.training.config import Config
from launch.sweeps.plan import Plan, make_plan
from launch.sweeps.study import (
    Database,
    load_study,
    make_sampler,
    open_study,
)
from launch.sweeps.trial import (
    Interrupted,
    Result,
    draw,
    report,
)
from launch.sweeps.worker import (
    MAX_DEATHS,
    Queue,
    TooManyFailures,
    work,
)

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

State = optuna.trial.TrialState


def make(**options: Any) -> Plan:
    settings = {"space": ["seed=0:1000"], "sampler": "random", "pruner": "none", **options}
    return make_plan("x.py", Config(), **settings)


def connect(folder: Path) -> Database:
    return Database(f"sqlite:///{folder / 'study.db'}")


def join(folder: Path, plan: Plan, **options: Any) -> Queue:
    database = connect(folder)
    study = open_study(database, "s", plan.settings, trials=plan.trials, cells=plan.cells)
    return Queue(database, study, plan.settings, **options)


def states(queue: Queue) -> Counter[str]:
    return Counter(trial.state.name for trial in queue.study.get_trials())


def value(trial: Any, plan: Plan) -> Result:
    return Result([float(draw(trial, plan.dimensions, None)["seed"])])


def test_many_workers_do_every_trial_once_and_make_one_study(tmp_path: Path) -> None:
    plan, done, lock = make(trials=12), [], threading.Lock()
    start = threading.Barrier(3)

    def worker() -> None:
        start.wait()  # All make the study at once.
        queue = join(tmp_path, plan)

        def objective(trial: Any) -> Result:
            with lock:
                done.append(trial.number)
            return value(trial, plan)

        work(queue, objective, poll_seconds=0.01)

    workers = [threading.Thread(target=worker) for _ in range(3)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert sorted(done) == list(range(12))
    queue = join(tmp_path, plan)
    assert states(queue) == {"COMPLETE": 12}
    # What a trial draws depends on its number alone, not on who did it.
    drawn = [trial.params["seed"] for trial in queue.study.get_trials()]
    assert len(set(drawn)) > 10
    for number, seed in enumerate(drawn):
        study = optuna.create_study(sampler=make_sampler(plan.settings, number))
        assert value(study.ask(), plan).values == [seed]


def test_a_grid_does_each_cell_once(tmp_path: Path) -> None:
    plan = make(sampler="grid", space=["seed=1,2,3", "optimizer.name=sgd,adam"])
    assert plan.trials == 6
    queue = join(tmp_path, plan)
    work(queue, lambda trial: Result([float(len(draw(trial, plan.dimensions, None)))]))
    cells = {tuple(trial.params.values()) for trial in queue.study.get_trials()}
    assert cells == {(seed, name) for seed in (1, 2, 3) for name in ("sgd", "adam")}


def test_a_trial_whose_worker_is_gone_is_taken_up_with_its_values(tmp_path: Path) -> None:
    plan = make(trials=2)
    dead, alive = (join(tmp_path, plan, stale_seconds=0.2) for _ in range(2))
    lost = dead.claim()
    assert lost is not None
    seed = draw(lost.trial, plan.dimensions, None)["seed"]
    lost.trial.report(0.5, 1)
    taken = []

    def objective(trial: Any) -> Result:
        taken.append((trial.number, draw(trial, plan.dimensions, None)["seed"]))
        report(trial, 0.25, 1)  # Reported before: neither an error nor another value.
        report(trial, 0.75, 2)
        return Result([1.0])

    work(alive, objective, poll_seconds=0.02)
    assert [number for number, _ in taken] == [1, 0]
    assert taken[1] == (0, seed)
    # It was only slow: what it says now counts no more.
    assert not dead.finish(lost, [9.0])
    first = alive.study.get_trials()[0]
    assert (first.value, first.intermediate_values) == (1.0, {1: 0.5, 2: 0.75})
    assert states(alive) == {"COMPLETE": 2}


def test_a_trial_is_not_taken_from_who_shows_signs_or_uses_its_folder(tmp_path: Path) -> None:
    plan = make(trials=1)
    one = join(tmp_path, plan, stale_seconds=0.3)
    other = join(tmp_path, plan, stale_seconds=0.3)
    claim = one.claim()
    assert claim is not None
    with one.signs(claim):
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert other.claim() is None
            time.sleep(0.05)
    asked = []

    def uses(number: int) -> bool:
        asked.append(number)
        return True

    busy = join(tmp_path, plan, stale_seconds=0.1, is_in_use=uses)
    busy.claim()
    time.sleep(0.2)
    assert busy.claim() is None
    assert asked == [0]
    assert one.finish(claim, [1.0])


def test_a_trial_in_which_workers_die_fails(tmp_path: Path) -> None:
    queue = join(tmp_path, make(trials=1), stale_seconds=0.05)
    for _ in range(MAX_DEATHS):
        assert queue.claim() is not None
        assert queue.claim() is None
        time.sleep(0.1)
    assert queue.claim() is None
    [trial] = queue.study.get_trials()
    assert trial.state == State.FAIL
    assert trial.user_attrs["error"] == f"its worker died {MAX_DEATHS} times"


def test_an_interrupted_trial_waits_for_the_next_worker(tmp_path: Path) -> None:
    plan = make(trials=2)
    queue = join(tmp_path, plan)

    def objective(trial: Any) -> Result:
        if trial.number == 1:
            raise Interrupted(15)
        return Result([1.0])

    with pytest.raises(Interrupted):
        work(queue, objective)
    assert states(queue) == {"COMPLETE": 1, "WAITING": 1}
    work(join(tmp_path, plan), lambda trial: Result([2.0]))
    assert [trial.value for trial in queue.study.get_trials()] == [1.0, 2.0]


def test_failures_are_recorded_and_many_in_a_row_end_the_sweep(tmp_path: Path) -> None:
    plan = make(trials=12)
    queue = join(tmp_path, plan)

    def objective(trial: Any) -> Result:
        if trial.number % 3 == 2 or trial.number > 5:
            raise RuntimeError(f"no luck in {trial.number}")
        return Result([1.0])

    with pytest.raises(TooManyFailures, match=r"last 3 trials failed, .* trial 7: RuntimeError"):
        work(queue, objective, max_failures=3)
    assert states(queue) == {"COMPLETE": 4, "FAIL": 4, "WAITING": 4}
    assert queue.study.get_trials()[2].user_attrs["error"] == "RuntimeError: no luck in 2"
    # Joined again, what failed before does not end it.
    with pytest.raises(TooManyFailures):
        work(queue, objective, max_failures=2)
    work(queue, lambda trial: Result([1.0]), max_failures=1)
    assert "WAITING" not in states(queue)


def test_a_value_that_is_no_number_fails_the_trial(tmp_path: Path) -> None:
    queue = join(tmp_path, make(trials=1))
    work(queue, lambda trial: Result([float("nan")]))
    assert states(queue) == {"FAIL": 1}
    assert "nan" in queue.study.get_trials()[0].user_attrs["error"]


def test_bad_trials_are_pruned(tmp_path: Path) -> None:
    plan = make(trials=8, pruner="median")
    queue = join(tmp_path, plan)

    def objective(trial: Any) -> Result:
        good = trial.number < 6
        for step in (1, 2, 3):
            if report(trial, step if good else 0.0, step):
                return Result(None)
        return Result([3.0])

    work(queue, objective)
    assert states(queue) == {"COMPLETE": 6, "PRUNED": 2}
    hyperband = make(trials=9, pruner="hyperband")
    config = hyperband.settings.config
    config.eval_every, config.num_steps = 1, 9
    other = join(tmp_path / "hyperband", hyperband)

    def falling(trial: Any) -> Result:
        for step in range(1, 10):
            if report(trial, -float(trial.number), step):
                return Result(None)
        return Result([-float(trial.number)])

    work(other, falling)
    assert states(other)["PRUNED"] >= 3


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


def test_a_study_that_is_not_there_is_told(tmp_path: Path) -> None:
    database = connect(tmp_path)
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


def test_samplers_and_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make(sampler="tpe").settings
    assert isinstance(make_sampler(settings, 0), optuna.samplers.TPESampler)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="sampler gp needs PyTorch, which is not installed"):
        make(sampler="gp")
    with pytest.raises(ValueError, match="sampler: unknown 'tpee'; did you mean 'tpe'"):
        make(sampler="tpee")
    with pytest.raises(ValueError, match="pruner: expected none with several objectives"):
        make(pruner="median", objectives=["accuracy", "step_seconds"])
