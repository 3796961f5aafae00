"""Runs as a table of text and as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from launch.report_figures import make_charts
from launch.report_page import duration
from launch.run_list import RunSummary, overlay

COLUMNS = ("run", "experiment", "state", "step", "best", "at step", "time")


def ranked(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """By metric, then the best first; those without an evaluation last."""

    def key(run: RunSummary) -> tuple[str, bool, float, str]:
        best = 0.0 if run.best is None else -run.sign * run.best
        return run.metric, run.best is None, best, run.name

    return sorted(runs, key=key)


def row_of(run: RunSummary) -> dict[str, str]:
    """A run as a row of the table, by column."""
    return {
        "run": run.name,
        "experiment": run.experiment,
        "state": run.state,
        "step": f"{run.step:,} of {run.num_steps:,}",
        "best": "–" if run.best is None else f"{run.metric} {run.best:.4g}",
        "at step": "–" if run.best_step is None else f"{run.best_step:,}",
        "time": duration(run.seconds) if run.seconds else "–",
    }


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Columns of text, two spaces apart."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in COLUMNS}
    lines: list[Mapping[str, str]] = [{name: name for name in COLUMNS}, *rows]
    return "\n".join(
        "  ".join(line[name].ljust(widths[name]) for name in COLUMNS).rstrip() for line in lines
    )


def build_page(folder: str, runs: Sequence[RunSummary]) -> str:
    """The table and the curves as one self-contained page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = []
    for metric in dict.fromkeys(run.metric for run in runs):
        charts += make_charts(overlay([run for run in runs if run.metric == metric]), metric)
    return environment.get_template("runs.html.jinja").render(
        folder=folder, columns=COLUMNS, rows=[row_of(run) for run in runs], charts=charts
    )
