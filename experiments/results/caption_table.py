r"""Table of captioners from the files of their runs.

    python -m launch.evaluate --workdir=runs/show_attend_tell --split=validation \
        --out=runs/show_attend_tell/validation.json
    python -m experiments.results.caption_table --split=validation --out=runs/flickr8k.md \
        runs/show_and_tell runs/show_attend_tell

Each workdir gives a row and must hold SPLIT.json, which ``launch.evaluate`` writes for the best
checkpoint. Minutes are those between the first and the last line of the run's log, evaluations
included.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from flaxnets.configuration import local_path
from flaxnets.training.workdir import write_text_atomically

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")

_SPLIT = flags.DEFINE_string("split", "validation", "Split that was evaluated.")
_OUT = flags.DEFINE_string("out", None, "File for the table, Markdown.", required=True)


def make_row(workdir: Path, split: str) -> list[str]:
    """Returns name, metrics in %, step of the best checkpoint and minutes of training.

    Raises:
      FileNotFoundError: no workdir, or one without an evaluation of the split.
    """
    if not (workdir / "config.json").is_file():
        raise FileNotFoundError(f"{workdir}: expected the workdir of a run, received none")
    if not (workdir / f"{split}.json").is_file():
        raise FileNotFoundError(
            f"{workdir}: expected {split}.json, received none; first run: python -m "
            f"launch.evaluate --workdir={workdir} --split={split} --out={workdir}/{split}.json"
        )
    config = json.loads((workdir / "config.json").read_text())["config"]
    scores = json.loads((workdir / f"{split}.json").read_text())
    figures = [f"{100 * scores[name]:.1f}" if name in scores else "–" for name in METRICS]
    name = config["name"].rpartition(", ")[0] or config["name"]  # Without the variant.
    decoder = config["model"]["decoder"]["name"]
    if decoder.endswith("_attention") and "self_critical" not in config:
        name += f", {decoder.replace('_', ' ')}"
    if config["initialize_from"] and config["sampling_increase"]:
        name += ", then scheduled sampling"
    if config["data"]["num_neighbours"]:
        name += ", with neighbours' captions"
    minutes = training_minutes((workdir / "log.txt").read_text())
    return [name, *figures, f"{scores['step']:,}", f"{minutes:.0f}"]


def training_minutes(log: str) -> float:
    """Returns the minutes from the first to the last line of a log with timestamps in ISO 8601."""
    times = []
    for line in log.splitlines():
        try:
            times.append(datetime.datetime.fromisoformat(line[:19]))
        except ValueError:
            continue  # a further line of a message
    return (times[-1] - times[0]).total_seconds() / 60


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns the table in Markdown."""
    header = ["model", *METRICS, "step", "minutes"]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Writes the table."""
    try:
        rows = [make_row(Path(workdir), _SPLIT.value) for workdir in argv[1:]]
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from error
    write_text_atomically(local_path("out", _OUT.value), format_table(rows))


if __name__ == "__main__":
    app.run(main)
