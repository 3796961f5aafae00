"""Self-contained HTML page of a study: what to take when, table, ladders, order probes."""

from pathlib import Path
from typing import Any

import jinja2

from flaxnets.training.workdir import write_text_atomically
from launch import reports
from launch.comparison.order_probes import PROBES
from launch.comparison.study import Study
from launch.comparison.summary import (
    Results,
    charts_of,
    costs,
    describe_families,
    format_markdown,
    format_number,
    format_value,
    rows_of,
)

PAGE, TABLE = "comparison.html", "comparison.md"


def write_page(study: Study, results: Results, folder: Path) -> Path:
    """Writes ``comparison.html`` and ``comparison.md``; returns the path of the page."""
    write_text_atomically(folder / TABLE, format_markdown(study, results))
    write_text_atomically(folder / PAGE, build_page(study, results))
    return folder / PAGE


def build_page(study: Study, results: Results) -> str:
    """Returns the page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(reports.__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("comparison.html.jinja").render(
        study=study,
        done=len(results),
        cells=len(study.cells()),
        sentences=describe_families(study, results),
        tasks=[_task(study, results, number) for number in range(len(study.tasks))],
        probes=PROBES,
    )


def _task(study: Study, results: Results, number: int) -> dict[str, Any]:
    task = study.tasks[number]
    rows = rows_of(task, study, results)
    shown = []
    for row in rows:
        others = [other.step_seconds for other in rows if other.rung == row.rung]
        fastest = min((seconds for seconds in others if seconds), default=None)
        shown.append(
            {
                "family": study.families[row.family],
                "rung": "" if row.rung is None else str(row.rung),
                "value": format_value(task, row),
                "costs": costs(row, fastest),
                "steps": f"{row.steps:,.0f}",
                "probes": [format_number(task, row.probes[n]) for n in PROBES if n in row.probes],
            }
        )
    return {
        "title": task.title,
        "question": task.question,
        "metric": task.metric.replace("_", " "),
        "better": "more is better" if task.mode == "max" else "less is better",
        "rung": task.ladder_field.rpartition(".")[2] if len(task.ladder) > 1 else "",
        "rows": shown,
        "probed": any(row["probes"] for row in shown),
        "baseline": "; ".join(
            f"{task.baseline_name}{f' at {rung}' if rung else ''}: {format_number(task, baseline)}"
            for rung, baseline in task.baselines.items()
            if not rung or rung in map(str, task.ladder)
        ),
        "charts": charts_of(task, rows, study),
    }
