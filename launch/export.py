"""Exports the variables of a run's best checkpoint, or of ``--step``, to one safetensors file.

    python -m launch.export --workdir=runs/smoke --out=smoke.safetensors

The file holds parameters and batch statistics, but no optimizer state, so no training can resume
from it. Names are the paths of the variables, as ``params.classifier.scores.kernel``, and layouts
are Flax's. ``--part=encoder`` writes only the encoder, with PyTorch's names and layouts, which
``flaxnets.encoders.pretrained.load_pretrained`` and torchvision read. A run on cached features has
no encoder: the program then says which one made them, and so does the file's metadata ``inputs``.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flaxnets.encoders.config import EncoderConfig, describe_features
from flaxnets.encoders.encoder import Encoder
from flaxnets.inference import export
from flaxnets.training.checkpoint import restore_variables
from flaxnets.training.workdir import Workdir
from launch import program

WORKDIR = program.define_run()
OUT = program.define_path("out", None, "Output file, FILE.safetensors.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
PART = flags.DEFINE_enum("part", "all", ("all", "encoder"), "Variables to export.")


def main(argv: Sequence[str]) -> None:
    """Writes the file and prints its size."""
    program.refuse_arguments(argv)
    workdir, out = Workdir(WORKDIR.value), Path(OUT.value)
    config = program.recorded_config(workdir)
    step, variables = restore_variables(workdir, STEP.value)
    frozen = getattr(getattr(config, "model", None), "encoder", None)
    features = ""
    if "encoder" not in variables["params"] and isinstance(frozen, EncoderConfig):
        features = describe_features(frozen)
    if PART.value == "encoder" and features:
        raise ValueError(
            f"--part=encoder: expected a model with an encoder, received one that reads {features}"
        )
    if PART.value == "encoder":
        config.load_assets(workdir.path)
        encoder = getattr(config.make_model(), "encoder", None)
        if not isinstance(encoder, Encoder):
            raise ValueError(
                "--part=encoder: expected a model with an encoder that has PyTorch's names, "
                f"received {type(encoder).__name__}"
            )
        tensors = export.to_encoder_tensors(encoder, variables)
    else:
        tensors = export.to_tensors(variables)
    metadata = {"experiment": str(workdir.read_config()["experiment"]), "step": str(step)}
    if features:
        metadata["inputs"] = features
    export.write_safetensors(out, tensors, metadata)
    size = sum(tensor.size for tensor in tensors.values())
    print(f"{len(tensors)} arrays of {size:,} numbers from step {step} in {out}")
    if features:
        print(f"the model reads {features}; the encoder is not in the file")


if __name__ == "__main__":
    program.run(main)
