"""Lists the runs in a folder: experiment, step, best metric, state, time.

    python -m launch.runs runs [--out=runs.html]

Runs of the same metric stand together, the best first. With ``--out`` their curves are laid over
each other in one self-contained page as well; ``--match`` keeps those whose name contains a text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from absl import flags

from launch import program
from launch.report_figures import make_charts
from launch.report_page import duration
from launch.run_list import RunSummary, find_runs, overlay

OUT = flags.DEFINE_string("out", None, "A page with the runs' curves.")
MATCH = flags.DEFINE_string("match", "", "Only runs whose name contains this.")

COLUMNS = ("run", "experiment", "state", "step", "best", "at step", "time")


def main(argv: Sequence[str]) -> None:
    """Prints the table; writes the page."""
    if len(argv) != 1:
        raise ValueError(f"expected one folder, received {' '.join(argv) or 'none'}")
    folder = Path(argv[0])
    runs = [run for run in find_runs(folder) if MATCH.value in run.name]
    if not runs:
        raise ValueError(
            f"{folder}: expected workdirs of runs"
            + (f" whose name contains {MATCH.value!r}" if MATCH.value else "")
            + ", found none"
        )
    runs = ranked(runs)
    print(format_table([row_of(run) for run in runs]))
    if OUT.value:
        Path(OUT.value).write_text(build_page(str(folder), runs), encoding="utf-8")
        print(OUT.value)


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


if __name__ == "__main__":
    program.run(main)
