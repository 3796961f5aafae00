"""Writes the parameters and statistics of a run's best checkpoint, or of ``--step``, to one file.

    python -m launch.export --workdir=runs/smoke --out=smoke.safetensors

All variables are called by their path, as ``params.classifier.scores.kernel``, in Flax's layout.
With ``--part=encoder``, the encoder alone is written with PyTorch's names and layout, as
``flaxnets.encoders.pretrained.load_pretrained`` and torchvision read them. Without an optimizer's
state, no training goes on from such a file.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from flaxnets.encoders.encoder import Encoder
from flaxnets.inference import export
from flaxnets.training.checkpoint import restore_variables
from flaxnets.training.workdir import Workdir
from launch import program
from launch.program import config_of

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run.", required=True)
OUT = flags.DEFINE_string("out", None, "The file, FILE.safetensors.", required=True)
STEP = flags.DEFINE_integer("step", None, "The checkpoint's step; by default the best.")
PART = flags.DEFINE_enum("part", "all", ("all", "encoder"), "Which variables.")


def main(argv: Sequence[str]) -> None:
    """Reads, writes, and says how much."""
    if argv:
        raise ValueError(f"unexpected arguments: {' '.join(argv)}; flags are --name=value")
    workdir, out = Workdir(WORKDIR.value), Path(OUT.value)
    config = config_of(workdir)
    step, variables = restore_variables(workdir, STEP.value)
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
    export.write_safetensors(out, tensors, metadata)
    size = sum(tensor.size for tensor in tensors.values())
    print(f"{len(tensors)} arrays of {size:,} numbers from step {step} in {out}")


if __name__ == "__main__":
    program.run(main)
