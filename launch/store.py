r"""Stores a trained model in a folder of a few megabytes, which ``flaxnets.load`` reads.

    python -m launch.store --workdir=runs/captions --out=experiments/models/captioner \
        --dtype=int8 --card=CARD.md --split=validation

The folder has the parameters of the best checkpoint or of ``--step``, the labels, vocabulary or
alphabet, a reader's search with its language model and lexicon, the preprocessing and the card.
ImageNet weights that come with the extra ``pretrained`` are not stored. ``--split`` measures what
the smaller numbers of ``--dtype`` cost: the metrics of the split with the parameters as trained and
as stored, which needs the data. Folders under ``experiments/models`` are shipped, and named by
their last part: ``flaxnets.load("captioner")``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from flaxnets.inference import store
from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.workdir import Workdir, describe_model
from launch import program

WORKDIR = program.define_run()
OUT = program.define_path("out", None, "Folder of the stored model; new or empty.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", store.STORED_DTYPES, "Numbers of the stored parameters."
)
CARD = program.define_path("card", None, "Model card, a Markdown file; it becomes README.md.")
SPLIT = flags.DEFINE_string("split", None, "Split whose metrics are compared; default: none.")


def main(argv: Sequence[str]) -> None:
    """Writes the folder, prints its size and the metrics."""
    program.refuse_arguments(argv)
    workdir, out = Workdir(WORKDIR.value), Path(OUT.value)
    config = program.recorded_config(workdir)
    config.load_assets(workdir.path)
    inference = config.describe_inference()
    if inference is None:
        raise ValueError(
            f"--workdir={workdir.path}: expected a classifier, captioner or reader of files, "
            f"received {config.name!r}, which describes no inference"
        )
    size = store.save_run(
        workdir,
        out,
        described=describe_model(inference),
        step=STEP.value,
        dtype=DTYPE.value,
        card=Path(CARD.value).read_text(encoding="utf-8") if CARD.value else "",
        words=getattr(config, "lexicon_words", ()),
    )
    print(f"{size / 1e6:.2f} MB in {out}")
    if SPLIT.value:
        model = TrainedModel(config, workdir, STEP.value)
        # The trained one last: its predictions stay in the workdir.
        trained, stored = model.variables, store.read_variables(out / store.VARIABLES)
        if set(stored["params"]) == {"encoder", "network"} != set(trained["params"]):
            stored = {n: tree["network"] for n, tree in stored.items() if "network" in tree}
        metrics: dict[str, Mapping[str, Any]] = {}
        for name, variables in (("stored", stored), ("trained", trained)):
            model.variables = variables
            metrics[name] = model.evaluate(SPLIT.value)
        for name, value in metrics["trained"].items():
            stored_value = metrics["stored"][name]
            print(f"{SPLIT.value} {name}: {value:.6g} as trained, {stored_value:.6g} as stored")


if __name__ == "__main__":
    program.run(main)
