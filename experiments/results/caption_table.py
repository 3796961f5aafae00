"""A table of captioners from the files of their runs.

    python -m launch.evaluate --workdir=runs/show_attend_tell --split=validation \
        --out=runs/show_attend_tell/validation.json
    python -m experiments.results.caption_table --split=validation --out=runs/flickr8k.md \
        runs/show_and_tell runs/show_attend_tell

A row for each workdir that holds SPLIT.json, what ``launch.evaluate`` wrote of the best checkpoint.
Minutes are those from the first to the last line of the run's log, evaluations included.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")

_SPLIT = flags.DEFINE_string("split", "validation", "The split that was evaluated.")
_OUT = flags.DEFINE_string("out", None, "The file of the table, Markdown.", required=True)


def make_row(workdir: Path, split: str) -> list[str]:
    """Name, scores in %, steps of the best checkpoint, minutes of training."""
    config = json.loads((workdir / "config.json").read_text())["config"]
    scores = json.loads((workdir / f"{split}.json").read_text())
    figures = [f"{100 * scores[name]:.1f}" if name in scores else "–" for name in METRICS]
    name = config["name"].rpartition(", ")[0] or config["name"]  # Without the variant.
    if config.get("attention"):
        name += f", {config['attention']} attention"
    if config.get("initialize_from") and config.get("sampling_increase"):
        name += ", then scheduled sampling"
    if config.get("data", {}).get("num_neighbours"):
        name += ", with neighbours' captions"
    minutes = training_minutes((workdir / "log.txt").read_text())
    return [name, *figures, f"{scores['step']:,}", f"{minutes:.0f}"]


def training_minutes(log: str) -> float:
    """From the first line of a log to its last; lines begin with ``2026-11-24 20:01:40``."""
    times = []
    for line in log.splitlines():
        try:
            times.append(datetime.datetime.fromisoformat(line[:19]))
        except ValueError:
            continue  # The continuation of a message.
    return (times[-1] - times[0]).total_seconds() / 60


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    header = ["model", *METRICS, "step", "minutes"]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Writes the table."""
    rows = [make_row(Path(workdir), _SPLIT.value) for workdir in argv[1:]]
    Path(_OUT.value).write_text(format_table(rows))


if __name__ == "__main__":
    app.run(main)
