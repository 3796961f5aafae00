"""Self-contained HTML page of a sweep: best configuration, charts, all trials."""

import itertools
import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from flaxnets.training.config import flatten, update
from flaxnets.training.workdir import write_text_atomically
from launch import reports
from launch.program import check_experiment, load_experiment
from launch.reports.charts import Chart, make_charts, make_scatter
from launch.reports.run_page import duration
from launch.sweeps.space import apply, flag
from launch.sweeps.study import (
    SETTINGS,
    current_trials,
    import_optuna,
    run_number,
)
from launch.sweeps.worker import error_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

PAGE = "sweep.html"
MAX_BEST = 10
"""Number of configurations of a Pareto front whose commands are shown."""
MAX_COURSES = 16
"""Number of trials, the best ones, whose course over the steps is drawn."""
logger = logging.getLogger(__name__)


def write_page(study: "Study", workdir: Path, allowed: Sequence[str] = ()) -> Path:
    """Writes ``sweep.html`` into the sweep's workdir; returns its path.

    Raises:
      ValueError: as ``build_page``.
    """
    path = workdir / PAGE
    # Several workers may write it at once, when the last trials end.
    write_text_atomically(path, build_page(study, workdir, allowed))
    return path


def build_page(study: "Study", workdir: Path, allowed: Sequence[str] = ()) -> str:
    """Returns the page as HTML text; runs the file of the experiment.

    Args:
      study: made by ``open_study``.
      workdir: workdir of the sweep, which the commands name.
      allowed: files outside of the repository that may be run.

    Raises:
      launch.program.ForeignCode: the study names an experiment that may not be run.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(reports.__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings = study.user_attrs[SETTINGS]
    trials = current_trials(study)
    return environment.get_template("sweep.html.jinja").render(
        study=study.study_name,
        settings=settings,
        counts=_count_states(trials),
        objectives=settings["objectives"],
        best=[_best(trial, settings, workdir, allowed) for trial in best_trials(study)[:MAX_BEST]],
        parameters=list(dict.fromkeys(name for trial in trials for name in trial.params)),
        trials=[_row(trial) for trial in ranked(trials, settings["objectives"])],
        charts=_charts(study, settings["objectives"]),
        importances=_importances(study, settings["objectives"]),
    )


def ranked(trials: Sequence["FrozenTrial"], objectives: Sequence[str]) -> list["FrozenTrial"]:
    """Returns the complete trials, the best of the first objective first, then the others."""
    sign = -1 if objectives[0].endswith(":max") else 1

    def key(trial: "FrozenTrial") -> tuple[bool, float, int]:
        done = trial.state.name == "COMPLETE" and bool(trial.values)
        return not done, sign * trial.values[0] if done else 0.0, run_number(trial)

    return sorted(trials, key=key)


def best_trials(study: "Study") -> list["FrozenTrial"]:
    """Returns the best trial, or the Pareto front of several objectives, of complete trials."""
    if not _complete_trials(study):
        return []
    return [study.best_trial] if len(study.directions) == 1 else study.best_trials


def summarize(study: "Study", workdir: Path, allowed: Sequence[str] = ()) -> str:
    """Returns lines of text: trials by state, the best trials, and the commands that train them."""
    settings, trials = study.user_attrs[SETTINGS], current_trials(study)
    counts = ", ".join(f"{count} {state}" for state, count in _count_states(trials).items())
    lines = [f"{len(trials)} trials: {counts}"]
    for trial in best_trials(study)[:MAX_BEST]:
        values = zip(settings["objectives"], _row(trial)["values"], strict=True)
        reached = ", ".join(f"{name} {value}" for name, value in values)
        lines.append(f"best: trial {run_number(trial)}, {reached}")
        lines.append("  " + shlex.join(command(trial, settings, workdir, allowed)))
    return "\n".join(lines)


def command(
    trial: "FrozenTrial",
    settings: Mapping[str, Any],
    workdir: Path,
    allowed: Sequence[str] = (),
) -> list[str]:
    """Returns the words of the command that trains a trial's configuration."""
    experiment = check_experiment(settings["experiment"], workdir / "study.db", allowed)
    base, config = load_experiment(experiment), load_experiment(experiment)
    update(config, settings["config"])
    apply(config, trial.user_attrs.get("overrides", {}))
    default = dict(flatten(base))
    changed = [flag(name, value) for name, value in flatten(config) if value != default[name]]
    head = ["python", "-m", "launch.train", f"--config={settings['experiment']}"]
    return [*head, f"--workdir={workdir / 'best'}", *changed]


def _best(
    trial: "FrozenTrial", settings: Mapping[str, Any], workdir: Path, allowed: Sequence[str]
) -> dict[str, Any]:
    return {
        **_row(trial),
        "overrides": {n: _short(v) for n, v in trial.user_attrs.get("overrides", {}).items()},
        "command": lines_of(command(trial, settings, workdir, allowed)),
    }


def lines_of(words: Sequence[str]) -> str:
    r"""Returns a command with each flag on a line of its own, to be copied as a whole.

    >>> print(lines_of(["python", "-m", "launch.train", "--config=a b.py", "--workdir=runs/a"]))
    python -m launch.train \
        '--config=a b.py' \
        --workdir=runs/a
    """
    first = next((n for n, word in enumerate(words) if word.startswith("--")), len(words))
    head, flags = shlex.join(words[:first]), [shlex.quote(word) for word in words[first:]]
    return " \\\n    ".join([head, *flags])


def _row(trial: "FrozenTrial") -> dict[str, Any]:
    """Returns a trial as text, for the table."""
    spread = trial.user_attrs.get("spread", [])
    values = [f"{value:.4g}" for value in trial.values or ()]
    seconds = None if trial.duration is None else trial.duration.total_seconds()
    return {
        "number": run_number(trial),
        "state": trial.state.name.lower(),
        "values": [
            f"{value} ± {deviation:.2g}" for value, deviation in zip(values, spread, strict=True)
        ]
        if len(spread) == len(values)
        else values,
        "params": {name: _short(value) for name, value in trial.params.items()},
        "time": "–" if seconds is None else duration(seconds),
        "error": error_of(trial),
    }


def _complete_trials(study: "Study") -> list["FrozenTrial"]:
    return [trial for trial in current_trials(study) if trial.state.name == "COMPLETE"]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _count_states(trials: Sequence["FrozenTrial"]) -> dict[str, int]:
    """Returns the number of trials in each state that occurs."""
    names = [trial.state.name.lower() for trial in trials]
    return {name: names.count(name) for name in dict.fromkeys(sorted(names))}


def _charts(study: "Study", objectives: Sequence[str]) -> list[Chart]:
    """Returns the charts for which there are enough trials."""
    complete = sorted(_complete_trials(study), key=run_number)
    if not complete:
        return []
    names = [objective.rpartition(":")[0] for objective in objectives]
    charts = []
    if len(names) == 2:
        points = [(t.values[0], t.values[1], _tooltip(t)) for t in complete]
        front = sorted((t.values[0], t.values[1]) for t in best_trials(study))
        title = f"{names[1]} over {names[0]}; the line is the Pareto front"
        charts.append(make_scatter(title, points, x_name=names[0], best=front))
    for place, (name, objective) in enumerate(zip(names, objectives, strict=True)):
        better = max if objective.endswith(":max") else min
        values = [trial.values[place] for trial in complete]
        numbers = [run_number(trial) for trial in complete]
        points = [(n, v, _tooltip(t)) for n, v, t in zip(numbers, values, complete, strict=True)]
        best = list(zip(numbers, itertools.accumulate(values, better), strict=True))
        title = f"{name} of each trial"
        charts.append(make_scatter(title, points, x_name="trial", best=best, integers=True))
        for parameter in _varying(complete):
            where = [(trial.params[parameter], trial) for trial in complete]
            if all(isinstance(x, int | float) and not isinstance(x, bool) for x, _ in where):
                points = [(float(x), t.values[place], _tooltip(t)) for x, t in where]
                charts.append(make_scatter(f"{name} over {parameter}", points, x_name=parameter))
    if len(names) == 1:
        records = [
            {"step": step, "split": f"trial {run_number(trial)}", names[0]: value}
            for trial in ranked(complete, objectives)[:MAX_COURSES]
            for step, value in trial.intermediate_values.items()
        ]
        charts += [c for c in make_charts(records, names[0]) if len(records) > len(complete)]
    return charts


def _tooltip(trial: "FrozenTrial") -> str:
    values = ", ".join(f"{value:.4g}" for value in trial.values)
    params = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
    return f"trial {run_number(trial)}: {values}; {params}"


def _importances(study: "Study", objectives: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """Returns the share of each varying parameter in an objective's variance, largest first."""
    complete, found = _complete_trials(study), {}
    varying = _varying(complete) if complete else []
    for place, objective in enumerate(objectives):
        if len(varying) < 2 or len({trial.values[place] for trial in complete}) < 2:
            continue
        importance = import_optuna().importance
        shares = importance.get_param_importances(
            study,
            evaluator=importance.FanovaImportanceEvaluator(seed=0),
            params=varying,
            target=None if len(objectives) == 1 else _value_at(place),
        )
        found[objective.rpartition(":")[0]] = sorted(shares.items(), key=lambda item: -item[1])
    return found


def _varying(trials: Sequence["FrozenTrial"]) -> list[str]:
    """Returns the parameters that every trial has and that differ between trials."""
    shared = [n for n in trials[0].params if all(n in trial.params for trial in trials)]
    return [n for n in shared if len({str(trial.params[n]) for trial in trials}) > 1]


def _value_at(place: int) -> Callable[["FrozenTrial"], float]:
    """Returns a function that gives a trial's value of one objective."""

    def target(trial: "FrozenTrial") -> float:
        return trial.values[place] if trial.values else math.nan

    return target
