r"""Table of captioners from the files of their runs.

    python -m launch.evaluate --workdir=runs/show_attend_tell --split=validation \
        --out=runs/show_attend_tell/validation.json
    python -m experiments.results.caption_table --split=validation --out=runs/flickr8k.md \
        --previous=experiments/results/flickr8k.md runs/show_and_tell runs/show_attend_tell \
        "ensemble of both=runs/both.json"

Each workdir gives a row and must hold SPLIT.json, which ``launch.evaluate`` writes for the best
checkpoint. Minutes are those between the first and the last line of the run's log, evaluations
included. ``NAME=FILE`` gives the row of an ensemble, ``launch.evaluate`` of several workdirs. Rows
of ``--previous`` stay unless a run has their name.
"""

import collections
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import app, flags

from experiments.results.write_results import format_rows, read_previous
from flaxnets.configuration import local_path
from flaxnets.training.workdir import write_text_atomically

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
HEADER = ("model", *METRICS, "step", "minutes")
DECODERS = {"att2in": "Att2in", "up_down": "Up-Down"}
"""Names of decoders that self-critical training has, but for soft attention, its default."""

_SPLIT = flags.DEFINE_string("split", "validation", "Split that was evaluated.")
_OUT = flags.DEFINE_string("out", None, "File for the table, Markdown.", required=True)
_PREVIOUS = flags.DEFINE_string("previous", None, "Page or table with the rows of earlier runs.")


def read_row(argument: str, split: str) -> list[str]:
    """Returns the row of an argument: a workdir, or ``NAME=FILE`` of an ensemble's evaluation.

    Raises:
      FileNotFoundError: no such file, or as ``make_row``.
    """
    name, _, path = argument.rpartition("=")
    if not name or (Path(argument) / "config.json").is_file():
        return make_row(Path(argument), split)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{argument}: expected NAME=FILE of an evaluation that exists")
    return [name, *format_metrics(json.loads(Path(path).read_text())), "–", "–"]


def format_metrics(scores: Mapping[str, float]) -> list[str]:
    """Returns the metrics of an evaluation in %, a dash for one that it lacks."""
    return [f"{100 * scores[name]:.1f}" if name in scores else "–" for name in METRICS]


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
    name = config["name"].rpartition(", ")[0] or config["name"]  # Without the variant.
    decoder = config["model"]["decoder"]["name"]
    if config.get("self_critical"):
        name += f", {DECODERS[decoder]}" if decoder in DECODERS else ""
    elif decoder.endswith("_attention"):
        name += f", {decoder.replace('_', ' ')}"
    if config["initialize_from"] and config["sampling_increase"]:
        name += ", then scheduled sampling"
    if config["data"]["num_neighbours"]:
        name += ", with neighbours' captions"
    minutes = training_minutes((workdir / "log.txt").read_text())
    return [name, *format_metrics(scores), f"{scores['step']:,}", f"{minutes:.0f}"]


def training_minutes(log: str) -> float:
    """Returns the minutes from the first to the last line of a log with timestamps in ISO 8601."""
    times = []
    for line in log.splitlines():
        try:
            times.append(datetime.datetime.fromisoformat(line[:19]))
        except ValueError:
            continue  # a further line of a message
    return (times[-1] - times[0]).total_seconds() / 60


def format_table(rows: Sequence[list[str]], previous: Sequence[list[str]] = ()) -> str:
    """Returns the table in Markdown.

    Args:
      rows: of the runs.
      previous: rows of an earlier table, which stay where they are; a row of the same name is
        replaced, other rows follow.

    Raises:
      ValueError: two rows of one name.
    """
    for name, count in collections.Counter(row[0] for row in rows).items():
        if count > 1:
            raise ValueError(f"expected one run of each model, received {count} of {name!r}")
    table = {row[0]: row for row in (*previous, *rows)}
    return format_rows(HEADER, list(table.values()))


def main(argv: Sequence[str]) -> None:
    """Writes the table."""
    try:
        rows = [read_row(argument, _SPLIT.value) for argument in argv[1:]]
        table = format_table(rows, read_previous(_PREVIOUS.value, HEADER))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    write_text_atomically(local_path("out", _OUT.value), table)


if __name__ == "__main__":
    app.run(main)
