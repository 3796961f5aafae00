r"""Table of the video papers' networks on UT-Interaction: trains what is missing, then writes it.

    python -m experiments.results.video_papers --root=…/ut_interaction/set1 --workdir=runs/video \
        --seeds=0,1,2 --out=video_papers.md

Each network is cross-validated by ``launch.crossvalidate`` in ``WORKDIR/NAME``, one after the other
in processes of their own; finished folds and seeds are kept, so the same command resumes. The first
row is the shipped recipe, and the linear baselines are those of its inputs
(``experiments/ut_interaction.py``). All figures of the table are read from ``crossvalidation.json``
and the workdirs.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flaxnets.configuration import local_path
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.workdir import write_text_atomically

ROOT = Path(__file__).parents[2]
PAPERS = {
    "shipped": "lrcn_ucf101.py:ut_interaction",
    "snippets_lstm": "beyond_short_snippets.py:ut_interaction",
    "snippets_conv_pooling": "beyond_short_snippets.py:conv_pooling,ut_interaction",
    "gru_rcn": "gru_rcn.py:ut_interaction",
    "gru_rcn_stacked": "gru_rcn.py:stacked,ut_interaction",
    "gru_rcn_bidirectional": "gru_rcn.py:bidirectional,ut_interaction",
    "percepts_lstm": "unsupervised_lstm_classifier.py:ut_interaction",
    "ts_lstm": "ts_lstm.py:ut_interaction",
    "two_stream_thirds": "two_stream_lrcn.py:ut_interaction",
    "two_stream_halves": "two_stream_lrcn.py:halves,ut_interaction",
    "crnn_3d": "crnn_3d.py:ut_interaction",
}
"""Experiment and variant of each network, by the name of its folder."""
SHIPPED = "shipped"

Correct = dict[str, dict[str, dict[str, list[bool]]]]
"""``crossvalidation.json``: name → fold → seed → whether each test clip was right."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      name: of the network or baseline.
      experiment: its file and variant; empty for a baseline.
      hits: fold → seed → whether each test clip was right.
      seconds: median wall time of the training of a fold, of the steps alone; None: not recorded.
    """

    name: str
    experiment: str
    hits: dict[str, dict[str, list[bool]]]
    seconds: float | None = None

    def accuracies(self) -> list[float]:
        """Returns the accuracy of each seed over all test clips, in %."""
        seeds = sorted(next(iter(self.hits.values())), key=int)
        clips = [[hit for fold in self.hits.values() for hit in fold[seed]] for seed in seeds]
        return [100 * statistics.mean(map(float, each)) for each in clips]


def read_correct(folder: Path) -> Correct:
    """Returns what ``launch.crossvalidate`` wrote into a folder; empty if it has not finished."""
    path = folder / "crossvalidation.json"
    if not path.is_file():
        return {}
    correct: Correct = json.loads(path.read_text())
    return correct


def is_complete(correct: Correct, folds: Sequence[int], seeds: Sequence[int]) -> bool:
    """Returns whether the network has been tested on all folds with all seeds."""
    if not correct:
        return False
    hits = next(iter(correct.values()))
    return all(str(seed) in hits.get(str(fold), {}) for fold in folds for seed in seeds)


def select(
    hits: dict[str, dict[str, list[bool]]], folds: Sequence[int], seeds: Sequence[int]
) -> dict[str, dict[str, list[bool]]]:
    """Returns the hits of the given folds and seeds; a baseline has those of its only seed."""
    chosen = {}
    for fold in map(str, folds):
        wanted = {str(seed): hits[fold][str(seed)] for seed in seeds if str(seed) in hits[fold]}
        chosen[fold] = wanted or dict(hits[fold])
    return chosen


def read_rows(workdir: Path, folds: Sequence[int], seeds: Sequence[int]) -> list[Row]:
    """Returns the finished networks in the order of ``PAPERS``, then the baselines.

    A network's row has those of the seeds that are finished on all folds.
    """
    rows, baselines = [], []
    for name, experiment in PAPERS.items():
        correct = read_correct(workdir / name)
        done = [seed for seed in seeds if is_complete(correct, folds, [seed])]
        if not done:
            continue
        (network, hits), *others = correct.items()
        title = f"{network} (shipped recipe)" if name == SHIPPED else network
        seconds = training_seconds(workdir / name, folds, done)
        rows.append(Row(title, experiment, select(hits, folds, done), seconds))
        baselines += [Row(title, "", select(hits, folds, done)) for title, hits in others]
    return rows + baselines


def training_seconds(folder: Path, folds: Sequence[int], seeds: Sequence[int]) -> float | None:
    """Returns the median wall time of a training's steps, from its metrics; None without any."""
    times = []
    for fold in folds:
        for seed in seeds:
            records = read_metrics(folder / f"fold{fold:02d}_seed{seed}")
            trained = [r for r in records if r["split"] == "train" and r.get("steps_per_second")]
            before = 0
            total = 0.0
            for record in trained:
                total += (record["step"] - before) / record["steps_per_second"]
                before = record["step"]
            if trained:
                times.append(total)
    return statistics.median(times) if times else None


def format_table(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown.

    Raises:
      ValueError: no rows, or rows of different test clips.
    """
    if not rows:
        raise ValueError("rows: expected at least one finished network, received none")
    folds = list(rows[0].hits)
    sizes = {name: len(next(iter(hits.values()))) for name, hits in rows[0].hits.items()}
    for row in rows:
        found = {name: len(next(iter(hits.values()))) for name, hits in row.hits.items()}
        if found != sizes:
            raise ValueError(
                f"rows: expected {sizes} test clips by fold for all, received {found} of {row.name}"
            )
    clips = sum(sizes.values())
    lines = [
        f"Accuracy in % on {clips} test clips of {len(folds)} folds; ± is the standard deviation "
        f"over seeds, one clip is {100 / clips:.1f} points. Seconds: median of a training's steps.",
        "",
        "| network | experiment | accuracy | seeds | worst fold | s a training |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = row.accuracies()
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        worst = min(
            statistics.mean([float(hit) for each in hits.values() for hit in each])
            for hits in row.hits.values()
        )
        cells = [
            row.name,
            f"`{row.experiment}`" if row.experiment else "linear baseline",
            f"{statistics.mean(values):.1f}{spread}",
            str(len(values)) if row.experiment else "–",
            f"{100 * worst:.0f}",
            "–" if row.seconds is None else f"{row.seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def command(
    name: str, root: str, workdir: Path, folds: Sequence[int], seeds: Sequence[int]
) -> list[str]:
    """Returns the command that cross-validates a network."""
    return [
        *(sys.executable, "-m", "launch.crossvalidate"),
        f"--config={ROOT / 'experiments' / PAPERS[name]}",
        f"--workdir={workdir / name}",
        f"--config.data.root={root}",
        f"--config.data.cache={workdir / 'features'}",
        f"--folds={','.join(map(str, folds))}",
        f"--seeds={','.join(map(str, seeds))}",
    ]


if __name__ == "__main__":
    from absl import app, flags

    DATA = flags.DEFINE_string("root", None, "Folder of UT-Interaction's set 1.", required=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
    FOLDS = flags.DEFINE_list("folds", [str(fold) for fold in range(1, 11)], "Numbers of folds.")
    SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each fold.")
    NETWORKS = flags.DEFINE_list("networks", list(PAPERS), "Networks to train, of the table.")
    OUT = flags.DEFINE_string("out", None, "File for the table; else WORKDIR/video_papers.md.")

    def main(argv: Sequence[str]) -> None:
        """Trains what is missing and writes the table of what is finished."""
        workdir = Path(local_path("workdir", WORKDIR.value)).absolute()
        folds, seeds = [int(fold) for fold in FOLDS.value], [int(seed) for seed in SEEDS.value]
        for name in NETWORKS.value:
            if name not in PAPERS:
                raise app.UsageError(f"--networks: unknown {name!r}; expected {', '.join(PAPERS)}")
        root = str(Path(local_path("root", DATA.value)).absolute())
        for name in NETWORKS.value:
            if not is_complete(read_correct(workdir / name), folds, seeds):
                run = command(name, root, workdir, folds, seeds)
                if code := subprocess.run(run, cwd=ROOT, check=False).returncode:
                    raise SystemExit(code)
        table = format_table(read_rows(workdir, folds, seeds))
        out = local_path("out", OUT.value) if OUT.value else workdir / "video_papers.md"
        write_text_atomically(out, table)
        print(table)

    app.run(main)
