"""Table of the runs in a folder: experiment, state, progress and best metric of each."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.workdir import is_in_use
from launch.reports.charts import make_charts
from launch.reports.run_page import HREF, data_name, duration, name_of
from launch.reports.statistics import speed_of

RUNNING, FINISHED, EARLY, STOPPED, EMPTY = (
    "running",
    "finished",
    "stopped early",
    "unfinished",
    "not begun",
)
COLUMNS = ("run", "best", "at step", "state", "step", "time", "experiment", "differs in")
"""Columns of the table; the metric stands second, where a phone shows it."""
MOST_VALUE = 24
"""Characters of a value in the last column."""
MOST_DIFFERENCES = 120
"""Characters of the last column in the table on the terminal; the page has all."""


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """Summary of one run.

    Attributes:
      name: path of the workdir, relative to the searched folder.
      experiment: ``FILE[:variant]``.
      state: ``running``, ``finished``, ``stopped early`` (by ``patience``), ``unfinished`` or
        ``not begun`` (no records).
      step: number of finished steps.
      num_steps: steps of the whole training.
      metric: metric that ranks the checkpoints.
      sign: 1 if larger values are better, -1 if smaller ones are.
      best: best value of the metric; None without an evaluation.
      best_step: step of the best value.
      seconds: training time, without evaluations and checkpoints.
      records: records of ``metrics.jsonl``.
      split: split that chooses the best checkpoint.
      config: all values of the configuration, by path.
      link: address of the run's report, or of its folder, from the searched folder.
    """

    name: str
    experiment: str
    state: str
    step: int
    num_steps: int
    metric: str
    sign: int
    best: float | None
    best_step: int | None
    seconds: float
    records: Sequence[Mapping[str, Any]]
    split: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    link: str = ""

    @property
    def task(self) -> str:
        """The experiment and its data, without the variant: what runs must share in a chart."""
        return name_of(self.experiment.partition(":")[0], self.config)


def find_runs(folder: Path) -> list[RunSummary]:
    """Returns the runs in a folder, at any depth, sorted by name.

    Raises:
      FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with workdirs of runs")
    found = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if "config.json" not in files:
            continue
        summary = summarize(Path(parent), os.path.relpath(parent, folder))
        if summary is not None:
            folders.clear()
            found.append(summary)
    return sorted(found, key=lambda run: run.name)


def summarize(workdir: Path, name: str) -> RunSummary | None:
    """Returns the summary of a workdir; None if its ``config.json`` is not that of a run."""
    try:
        recorded = json.loads((workdir / "config.json").read_text())
        experiment, config = recorded["experiment"], recorded["config"]
        metric, split, num_steps = config["best_metric"], config["eval_split"], config["num_steps"]
    except (ValueError, KeyError, TypeError):
        return None
    records = read_metrics(workdir)
    sign = -1 if config["best_mode"] == "min" else 1
    scored = [r for r in records if r["split"] == split and r.get(metric) is not None]
    best = max(scored, key=lambda record: sign * record[metric], default=None)
    step = max((record["step"] for record in records), default=0)
    later = sum(best is not None and record["step"] > best["step"] for record in scored)
    patience = config.get("patience", 0)
    if is_in_use(workdir):
        state = RUNNING
    elif step >= num_steps:
        state = FINISHED
    elif patience and later >= patience:
        state = EARLY
    else:
        state = STOPPED if records else EMPTY
    speed = speed_of(records)
    return RunSummary(
        name=name,
        experiment=experiment,
        state=state,
        step=step,
        num_steps=num_steps,
        metric=metric,
        sign=sign,
        best=None if best is None else best[metric],
        best_step=None if best is None else best["step"],
        seconds=0.0 if speed is None else speed.seconds,
        records=records,
        split=split,
        config=config,
        link=f"{name}/report.html" if (workdir / "report.html").is_file() else name,
    )


def overlay(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Returns the evaluations of all runs as records whose ``split`` is the run's name.

    Runs without an evaluation contribute their training records instead.
    """
    records: list[dict[str, Any]] = []
    for run in runs:
        evaluated = [record for record in run.records if record["split"] == run.split]
        records += [{**record, "split": run.name} for record in evaluated or run.records]
    return records


def ranked(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Returns runs sorted by metric, then the best first; runs without an evaluation last."""

    def key(run: RunSummary) -> tuple[str, bool, float, str]:
        best = 0.0 if run.best is None else -run.sign * run.best
        return run.metric, run.best is None, best, run.name

    return sorted(runs, key=key)


def row_of(run: RunSummary, runs: Sequence[RunSummary] = ()) -> dict[str, str]:
    """Returns a run as a row of the table, by column; ``runs`` are those it is compared with."""
    data = data_name(run.config)
    return {
        "run": run.name,
        "best": "–" if run.best is None else f"{run.metric} {run.best:.4g}",
        "at step": "–" if run.best_step is None else f"{run.best_step:,}",
        "state": run.state,
        "step": f"{run.step:,} of {run.num_steps:,}",
        "time": duration(run.seconds) if run.seconds else "–",
        "experiment": f"{run.experiment} on {data}" if data else run.experiment,
        "differs in": ", ".join(f"{n}={v}" for n, v in differing(run, runs).items()) or "–",
    }


def differing(run: RunSummary, runs: Sequence[RunSummary]) -> dict[str, str]:
    """Returns the values of a run's fields that differ among the runs of its task.

    Names are the flags without ``--config.``; values are cut to ``MOST_VALUE`` characters.
    """
    group = [dict(_leaves(other.config)) for other in runs if other.task == run.task]
    own = dict(_leaves(run.config))
    found = {}
    for name, value in own.items():
        if any(other.get(name) != value for other in group):
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            found[name] = text if len(text) <= MOST_VALUE else f"{text[: MOST_VALUE - 1]}…"
    return found


def shorten(text: str, most: int) -> str:
    """Returns the first of ``NAME=VALUE, …`` in about ``most`` characters, and how many follow.

    >>> shorten("a=[1, 2], bb=2, ccc=3", 15)
    'a=[1, 2], bb=2 and 1 more'
    """
    fields = re.split(r", (?=[\w.]+=)", text)
    kept = len(fields)
    while kept > 1 and len(", ".join(fields[:kept])) > most:
        kept -= 1
    more = f" and {len(fields) - kept} more" if kept < len(fields) else ""
    return ", ".join(fields[:kept]) + more


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns the rows as text, with columns two spaces apart; the last one is cut."""
    last = COLUMNS[-1]
    rows = [{**row, last: shorten(row[last], MOST_DIFFERENCES)} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in COLUMNS}
    lines: list[Mapping[str, str]] = [{name: name for name in COLUMNS}, *rows]
    return "\n".join(
        "  ".join(line[name].ljust(widths[name]) for name in COLUMNS).rstrip() for line in lines
    )


def build_runs_page(folder: str, runs: Sequence[RunSummary], *, base: str = "") -> str:
    """Returns the table and the curves of the runs as a self-contained HTML page.

    Args:
      folder: the searched folder, as the page names it.
      runs: its runs, in the order of the table.
      base: address of the folder from the page, for links; empty: the page lies in the folder.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tasks = []
    for metric, task in dict.fromkeys((run.metric, run.task) for run in runs):
        members = [run for run in runs if (run.metric, run.task) == (metric, task)]
        if charts := make_charts(overlay(members), metric):
            tasks.append((task, charts))
    rows = [{**row_of(run, runs), HREF: quote(os.path.join(base, run.link))} for run in runs]
    return environment.get_template("runs.html.jinja").render(
        folder=folder, columns=COLUMNS, rows=rows, tasks=tasks
    )
