"""Chooses the beam search of a reader of lines or speech: language model's weight and bonus.

    python -m launch.tune_search --workdir=runs/lines --report=test
    python -m launch.tune_search --workdir=runs/lines --report=half

The network reads ``--split`` (the validation split) once; then a beam of ``--width`` prefixes with
the character n-gram model of the training texts is tried with each weight and bonus. The search of
the best ``best_metric`` goes to ``chosen.json`` in the workdir, from which ``launch.evaluate`` and
``launch.read`` take it by default; ``--config.search.width=0`` or ``--beam_width=0`` is greedy
again, and a deleted ``chosen.json`` restores the run's own search.

What was chosen on lines is optimistic about them, so give it others to be reported on:
``--report=test``, or without a test split ``--report=half``: chosen on every second line of the
split, reported on the rest. The checkpoint was selected on the validation split all the same.

``--config.search.lexicon=FILE`` or ``=training`` restricts the words in all trials, and stays to be
given afterwards. Prints one JSON object.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence

from absl import flags

from flaxnets.inference.search_tuning import BONUSES, WEIGHTS, SearchTuning, tune_search
from flaxnets.inference.trained_model import TrainedModel
from launch import program

WORKDIR = program.define_run()
SPLIT = flags.DEFINE_string("split", "validation", "Split on which the search is chosen.")
REPORT = flags.DEFINE_string(
    "report", "", "Split that is reported; half: every second line of --split; empty: none."
)
WIDTH = flags.DEFINE_integer("width", 10, "Prefixes of the beam search.", lower_bound=1)
WEIGHTS_FLAG = flags.DEFINE_list(
    "weights", [str(value) for value in WEIGHTS], "Weights of the language model that are tried."
)
BONUSES_FLAG = flags.DEFINE_list(
    "bonuses", [str(value) for value in BONUSES], "Bonuses for a character that are tried, nats."
)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
SAVE = flags.DEFINE_bool("save", True, "Writes the choice into the workdir.")

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> None:
    """Chooses, writes and prints."""
    program.refuse_arguments(argv)
    weights = _numbers("weights", WEIGHTS_FLAG.value)
    bonuses = _numbers("bonuses", BONUSES_FLAG.value)
    with program.open_workdir(WORKDIR.value, writes=SAVE.value) as workdir:
        config = program.recorded_config(workdir)
        tuning = tune_search(
            TrainedModel(config, workdir, STEP.value),
            SPLIT.value,
            report=REPORT.value,
            width=WIDTH.value,
            weights=weights,
            bonuses=bonuses,
        )
        values = {
            f"search.{name}": getattr(tuning.search, name)
            for name in ("width", "language_model_weight", "character_bonus")
        }
        if SAVE.value:
            workdir.write_chosen(values)
    for line in describe(tuning, config.best_metric, SPLIT.value, REPORT.value):
        logger.info("%s", line)
    print(json.dumps({"split": SPLIT.value, "chosen": values, **_plain(tuning)}))


def describe(tuning: SearchTuning, metric: str, split: str, report: str) -> list[str]:
    """Returns lines of a table: the metric of each search and its milliseconds for a line."""
    half = report == "half"
    titles = [f"{split}, every second line" if half else split]
    if tuning.reported_on:
        titles.append("the other lines" if half else report)
    lines = [f"{metric}: {' | '.join(titles)} | ms a line"]
    for name, chosen in tuning.chosen_on.items():
        values = [chosen[metric]]
        if tuning.reported_on:
            values.append(tuning.reported_on[name][metric])
        shown = " | ".join(f"{value:.5f}" for value in values)
        lines.append(f"  {name:8}{shown} | {1e3 * tuning.seconds_per_line[name]:.2f}")
    lines.append(f"  the network takes {1e3 * tuning.seconds_per_line['network']:.2f} ms a line")
    if not tuning.reported_on:
        lines.append(
            f"  chosen and measured on the same lines of {split}: optimistic; give "
            "--report=test, or --report=half where there is no test split"
        )
    return lines


def _plain(tuning: SearchTuning) -> Mapping[str, object]:
    values = dataclasses.asdict(tuning)
    del values["search"]
    return values


def _numbers(name: str, texts: Sequence[str]) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise ValueError(
            f"--{name}: expected numbers with commas between, received {','.join(texts)}"
        ) from None


if __name__ == "__main__":
    program.run(main)
