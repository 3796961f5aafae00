"""Self-contained HTML page of a sweep: best configuration, Optuna's plots, all trials."""

import json
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
LOW, HIGH = (210, 95, 20), (59, 125, 234)
"""Colours of the least and of the greatest value: red, green and blue in [0,255]."""

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
      ValueError: Plotly is not installed; ``launch.program.ForeignCode``: the study names an
        experiment that may not be run.
    """
    script = _plotly_script()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(reports.__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings = study.user_attrs[SETTINGS]
    trials = current_trials(study)
    figures = _figures(study, settings["objectives"])
    return environment.get_template("sweep.html.jinja").render(
        study=study.study_name,
        settings=settings,
        counts=_count_states(trials),
        objectives=settings["objectives"],
        best=[_best(trial, settings, workdir, allowed) for trial in best_trials(study)[:MAX_BEST]],
        parameters=list(dict.fromkeys(name for trial in trials for name in trial.params)),
        trials=[_row(trial) for trial in trials],
        titles=list(figures),
        # "</script>" or "<!--" in a name must not end or extend the script.
        figures=json.dumps([json.loads(each.to_json()) for each in figures.values()]).replace(
            "<", "\\u003c"
        ),
        plotly=script,
    )


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


def _plotly_script() -> str:
    """Returns the source of Plotly's JavaScript library."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the page of a sweep needs the package {error.name}; install the extra: "
            "pip install -e '.[sweep]'"
        ) from None
    return get_plotlyjs()


def _best(
    trial: "FrozenTrial", settings: Mapping[str, Any], workdir: Path, allowed: Sequence[str]
) -> dict[str, Any]:
    return {
        **_row(trial),
        "overrides": trial.user_attrs.get("overrides", {}),
        "command": shlex.join(command(trial, settings, workdir, allowed)),
    }


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


def _figures(study: "Study", objectives: Sequence[str]) -> dict[str, Any]:
    """Returns Plotly's figures by title, those for which there are enough trials."""
    optuna = import_optuna()
    plots = optuna.visualization
    names = [objective.rpartition(":")[0] for objective in objectives]
    complete = _complete_trials(study)
    if not complete:
        return {}
    varying, figures = _varying(complete), {}
    if len(names) in (2, 3):
        figures["Pareto front"] = plots.plot_pareto_front(study, target_names=names)
    for place, name in enumerate(names):
        target = None if len(names) == 1 else _value_at(place)
        options: dict[str, Any] = {"target": target, "target_name": name}
        figures[f"History of {name}"] = plots.plot_optimization_history(study, **options)
        if len(varying) > 1 and len({trial.values[place] for trial in complete}) > 1:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            figure = plots.plot_param_importances(
                study, evaluator=evaluator, params=varying, **options
            )
            figures[f"Importance for {name}"] = figure.update_yaxes(title=None)
        if varying:
            figure = plots.plot_parallel_coordinate(study, params=varying, **options)
            _restyle_parallel(figure, name, varying)
            figures[f"Parallel coordinates, {name}"] = figure
    if len(names) == 1 and any(trial.intermediate_values for trial in complete):
        figures[f"Course of {names[0]}"] = plots.plot_intermediate_values(study)
    for figure in figures.values():
        # The page sets the titles and the background.
        figure.update_layout(
            title=None, template="none", margin={"l": 70, "r": 50, "t": 40, "b": 60}, height=360
        )
    return figures


def _restyle_parallel(figure: Any, name: str, parameters: Sequence[str]) -> None:
    """Shortens the names of parallel coordinates, and sets colours for any background.

    Long names would be cut, so only their last part is shown. Optuna's lines fade to white.
    """
    figure.layout.xaxis.ticktext = [name, *(p.rpartition(".")[2] for p in sorted(parameters))]
    for trace in figure.data:
        if trace.mode == "lines":
            # The first axis is the objective, from 0 to 1.
            share = min(max(float(trace.y[0]), 0.0), 1.0)
            red, green, blue = (
                round(low + share * (high - low)) for low, high in zip(LOW, HIGH, strict=True)
            )
            trace.line.color = f"rgb({red},{green},{blue})"
            trace.opacity = 0.8
        else:
            scale = [[0, f"rgb{LOW}"], [1, f"rgb{HIGH}"]]
            trace.marker.update(colorscale=scale, reversescale=False)


def _varying(trials: Sequence["FrozenTrial"]) -> list[str]:
    """Returns the parameters that every trial has and that differ between trials."""
    shared = [n for n in trials[0].params if all(n in trial.params for trial in trials)]
    return [n for n in shared if len({str(trial.params[n]) for trial in trials}) > 1]


def _value_at(place: int) -> Callable[["FrozenTrial"], float]:
    """Returns a function that gives a trial's value of one objective."""

    def target(trial: "FrozenTrial") -> float:
        return trial.values[place] if trial.values else math.nan

    return target
