"""Figures of a study's results: means, spreads, who is best, and the sentences that say so."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from launch.comparison.order_probes import PROBES
from launch.comparison.study import Study, StudyTask
from launch.reports.charts import Chart, is_share, make_lines

Results = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Row:
    """Figures of one family on one rung of a task, over its seeds.

    Attributes:
      family: of the network.
      rung: value of the ladder; None without one.
      values: of the metric, by seed, averaged over the folds of a cross-validation, without the
        seeds that diverged.
      diverged: number of seeds with a training whose loss or metric was not finite.
      parameters: of the network.
      flops: multiplications and additions of an evaluated example.
      step_seconds: of a training step, the median over the seeds; None: not recorded.
      memory: bytes of a training step; None: not known.
      steps: mean number of training steps.
      probes: mean metric of each order probe.
    """

    family: str
    rung: Any
    values: tuple[float, ...]
    diverged: int
    parameters: int
    flops: float
    step_seconds: float | None
    memory: int | None
    steps: float
    probes: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN if all diverged."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 of one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Place:
    """A family's place on one task, its hardest rung.

    Attributes:
      task: the task.
      row: the family's figures.
      best: those of the best family.
      ahead: whether no family is better by more than the spreads of both together.
    """

    task: StudyTask
    row: Row
    best: Row
    ahead: bool


def rows_of(task: StudyTask, study: Study, results: Results) -> list[Row]:
    """Returns the rows of a task, rung by rung, families in the study's order."""
    rows = []
    for rung in task.ladder:
        for family in study.families:
            found = [
                result
                for result in results
                if (result["task"], result["family"], result["rung"]) == (task.name, family, rung)
            ]
            by_seed: dict[int, list[float]] = {}
            for result in found:
                value = math.nan if result["value"] is None else result["value"]
                by_seed.setdefault(result["seed"], []).append(value)
            means = [
                statistics.fmean(of_folds)
                for of_folds in by_seed.values()
                if len(of_folds) == len(task.folds)
            ]
            if not means:
                continue
            values = tuple(mean for mean in means if math.isfinite(mean))
            seconds = [r["step_seconds"] for r in found if r["step_seconds"]]
            ended = [r for r in found if r["value"] is not None and math.isfinite(r["value"])]
            names = [n for n in PROBES if ended and all(n in r["probes"] for r in ended)]
            rows.append(
                Row(
                    family,
                    rung,
                    values,
                    len(means) - len(values),
                    found[0]["parameters"],
                    found[0]["flops"],
                    statistics.median(seconds) if seconds else None,
                    found[0]["memory"],
                    statistics.fmean(result["steps"] for result in found),
                    {n: statistics.fmean(r["probes"][n] for r in ended) for n in names},
                )
            )
    return rows


def places_of(study: Study, results: Results) -> dict[str, list[Place]]:
    """Returns the places of each family on the tasks that all its families have ended.

    A family of which a seed diverged is the best of none where another has all its seeds.
    """
    places: dict[str, list[Place]] = {family: [] for family in study.families}
    for task in study.tasks:
        last = [row for row in rows_of(task, study, results) if row.rung == task.ladder[-1]]
        if len(last) < len(task.variants):
            continue
        learnt = [row for row in last if row.values]
        if not learnt:
            continue
        stable = [row for row in learnt if not row.diverged]
        best = max(stable or learnt, key=lambda row: task.sign * row.mean)
        for row in last:
            gap = task.sign * (best.mean - row.mean)  # NaN is not ahead.
            ahead = gap <= best.spread + row.spread and (not row.diverged or not stable)
            places[row.family].append(Place(task, row, best, ahead))
    return places


def describe_families(study: Study, results: Results) -> dict[str, list[str]]:
    """Returns the sentences of each family: when to take it, and the figures that say so."""
    places = places_of(study, results)
    return {family: _describe(family, places[family], study, results) for family in study.families}


def _describe(family: str, places: Sequence[Place], study: Study, results: Results) -> list[str]:
    if not places:
        return ["No task has been ended by all families yet."]
    sentences = []
    unlearnt = [place for place in places if _is_at_baseline(place)]
    ahead = [place for place in places if place.ahead and place not in unlearnt]
    behind = [place for place in places if not place.ahead and place not in unlearnt]
    if ahead:
        shown = "; ".join(f"{p.task.title} ({format_value(p.task, p.row)})" for p in ahead)
        sentences.append(
            f"Take it where the task is like one of these, on which no family is better by more "
            f"than the seeds differ: {shown}."
        )
    if behind:
        shown = "; ".join(
            f"{p.task.title} ({format_value(p.task, p.row)}, {study.families[p.best.family]} "
            f"{format_value(p.task, p.best)})"
            for p in behind
        )
        sentences.append(f"Take another where it is like these: {shown}.")
    if unlearnt:
        shown = "; ".join(
            f"{p.task.title} ({format_value(p.task, p.row)}, {p.task.baseline_name} "
            f"{format_number(p.task, p.task.baseline(p.row.rung) or 0.0)})"
            for p in unlearnt
        )
        sentences.append(
            "It is not better, by more than its seeds differ, than what needs no network on: "
            f"{shown}."
        )
    ratios = [
        p.row.step_seconds / other
        for p in places
        if p.row.step_seconds and (other := _fastest(p.task, study, results))
    ]
    if ratios:
        ratio = math.exp(statistics.fmean(map(math.log, ratios)))
        sentences.append(
            f"A training step takes {ratio:.1f} times as long as the fastest family's "
            f"(geometric mean over the tasks)."
        )
    return sentences


def _is_at_baseline(place: Place) -> bool:
    """Returns True if a family is not better than the baseline by more than its seeds differ."""
    baseline = place.task.baseline(place.row.rung)
    if baseline is None:
        return False
    return place.task.sign * (place.row.mean - baseline) <= place.row.spread


def _fastest(task: StudyTask, study: Study, results: Results) -> float:
    last = [row for row in rows_of(task, study, results) if row.rung == task.ladder[-1]]
    return min((row.step_seconds for row in last if row.step_seconds), default=0.0)


def order_sentence(task: StudyTask, rows: Sequence[Row], study: Study) -> str:
    """Returns what the order probes say of a task; empty without them."""
    probed = [row for row in rows if row.probes and row.rung == task.ladder[-1]]
    parts = []
    for row in probed:
        shown = ", ".join(
            f"{PROBES[name]} {format_number(task, value)}" for name, value in row.probes.items()
        )
        parts.append(
            f"{study.families[row.family]}: as it is {format_number(task, row.mean)}, {shown}"
        )
    return "; ".join(parts)


def format_number(task: StudyTask, value: float) -> str:
    """Returns a value of the task's metric as text, shares in percent."""
    return f"{100 * value:.1f} %" if is_share(task.metric) else f"{value:.4g}"


def format_value(task: StudyTask, row: Row) -> str:
    """Returns mean ± spread over seeds as text, and how many of them diverged."""
    if not row.values:
        return "diverged"
    if len(row.values) == 1:
        text = format_number(task, row.mean)
    elif is_share(task.metric):
        text = f"{100 * row.mean:.1f} ± {100 * row.spread:.1f} %"
    else:
        text = f"{row.mean:.4g} ± {row.spread:.2g}"
    seeds = len(row.values) + row.diverged
    return f"{text}, {row.diverged} of {seeds} seeds diverged" if row.diverged else text


def charts_of(task: StudyTask, rows: Sequence[Row], study: Study) -> list[Chart]:
    """Returns the chart of a task's ladder, and of its order probes."""
    charts = []
    if len(task.ladder) > 1:
        series = {
            study.families[family]: [
                (float(row.rung), row.mean) for row in rows if row.family == family and row.values
            ]
            for family in study.families
        }
        series = {name: points for name, points in series.items() if points}
        if series:
            name = task.ladder_field.rpartition(".")[2]
            charts.append(make_lines(f"{task.title}: {task.metric}", series, x_name=name))
    return charts


def format_markdown(study: Study, results: Results) -> str:
    """Returns the table of a study and the sentences, as Markdown."""
    lines = [
        f"Budget {study.budget}; mean ± standard deviation over {len(study.seeds)} seeds.",
        "",
        "| task | metric | family | value | parameters | operations | step, relative | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in study.tasks:
        for row in rows_of(task, study, results):
            cells = [
                _title(task, row.rung),
                task.metric,
                study.families[row.family],
                format_value(task, row),
                *costs(row, _fastest_of(rows_of(task, study, results), row.rung)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        for rung in task.ladder:
            if (baseline := task.baseline(rung)) is not None:
                name = _title(task, rung)
                value = format_number(task, baseline)
                lines.append(f"| {name} | {task.metric} | {task.baseline_name} | {value} | | | | |")
    for family, sentences in describe_families(study, results).items():
        lines += ["", f"**{study.families[family]}.** {' '.join(sentences)}"]
    probed = [(t, order_sentence(t, rows_of(t, study, results), study)) for t in study.tasks]
    if any(text for _, text in probed):
        lines += ["", "Order: the test with sequences that are changed.", ""]
        lines += [f"- {task.title}, {task.metric}: {text}" for task, text in probed if text]
    if study.left_out:
        lines += ["", "Left out: " + "; ".join(f"{n}: {w}" for n, w in study.left_out.items())]
    return "\n".join(lines) + "\n"


def _title(task: StudyTask, rung: Any) -> str:
    """Returns the title of a task with a rung of its ladder."""
    return (
        task.title
        if rung is None
        else f"{task.title}, {task.ladder_field.rpartition('.')[2]} {rung}"
    )


def _fastest_of(rows: Sequence[Row], rung: Any) -> float | None:
    return min((r.step_seconds for r in rows if r.rung == rung and r.step_seconds), default=None)


def costs(row: Row, fastest: float | None) -> list[str]:
    """Returns parameters, operations, step time relative to ``fastest``, and memory, as text."""
    relative = f"{row.step_seconds / fastest:.2f}" if row.step_seconds and fastest else "–"
    memory = f"{row.memory / 2**20:.1f} MiB" if row.memory else "–"
    return [f"{row.parameters:,}", f"{row.flops / 1e6:.3g} M", relative, memory]
