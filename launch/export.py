"""Exports a trained model to a folder that runs without flaxnets, Flax and the training code.

    python -m launch.export --workdir=runs/mine --out=exported
    python exported/run.py clip.mp4

The folder holds the best checkpoint, or that of ``--step``, as functions in StableHLO for CPUs,
CUDA GPUs and TPUs, the parameters, labels, vocabulary or alphabet, preprocessing, the card and the
code that reads files (``flaxnets/inference/exporting.py``). ``flaxnets.load`` and ``--model`` of
the programs take it, too. ``--model`` exports a stored folder or a shipped model in place of a run.

``--onnx`` also writes the functions as ONNX, where jax2onnx takes them (extra ``onnx``): each file
is compared with JAX in onnxruntime first, and what the converter refuses is told. Of a reader it is
``logits.onnx``, for lines or spectrograms filled up to ``--onnx_columns``, without the search.

``--part=encoder --out=FILE.safetensors`` writes only the encoder's variables, with PyTorch's names
and layouts, which ``flaxnets.encoders.pretrained.load_pretrained`` and torchvision read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from flaxnets.encoders.config import EncoderConfig, describe_features
from flaxnets.encoders.encoder import Encoder
from flaxnets.inference import export, exporting
from flaxnets.inference.exporting import check_empty, export_model
from flaxnets.inference.loading import load, model_folder
from flaxnets.inference.onnx_conversion import check_installed
from flaxnets.inference.store import read_assets, read_description
from flaxnets.training.checkpoint import restore_variables
from flaxnets.training.workdir import Workdir
from launch import program

WORKDIR = program.define_run(required=False)
MODEL = program.define_path(
    "model", None, "Stored folder or name of a shipped model, in place of --workdir."
)
OUT = program.define_path(
    "out",
    None,
    "Folder of the export, new or empty; with --part=encoder FILE.safetensors.",
    required=True,
)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
ONNX = flags.DEFINE_boolean("onnx", False, "Also writes the functions as ONNX, by jax2onnx.")
ONNX_COLUMNS = flags.DEFINE_integer(
    "onnx_columns",
    exporting.ONNX_COLUMNS,
    "With --onnx of a reader: width of its inputs, columns or frames.",
    lower_bound=1,
)
PART = flags.DEFINE_enum("part", "model", ("model", "encoder"), "Part of the model.")


def main(argv: Sequence[str]) -> None:
    """Writes the folder or file and prints its size."""
    program.refuse_arguments(argv)
    out = Path(OUT.value)
    if (WORKDIR.value is None) == (MODEL.value is None):
        raise ValueError("--workdir: expected one of --workdir and --model, received both or none")
    if PART.value == "encoder":
        if ONNX.value:
            raise ValueError("--onnx: expected --part=model, received --part=encoder")
        _export_encoder(out)
        return
    if out.suffix == ".safetensors":
        raise ValueError(
            f"--out: expected a folder, received {out}; only --part=encoder writes a file"
        )
    check_empty(out)  # Before anything takes time.
    if ONNX.value:
        check_installed()
    folder = model_folder(WORKDIR.value or MODEL.value)
    allowed = bool(flags.FLAGS.allow_code)
    model = load(folder, step=STEP.value, allow_code=allowed)
    sizes = export_model(
        model,
        read_description(folder),
        out,
        assets=read_assets(folder),
        onnx=bool(ONNX.value),
        onnx_columns=ONNX_COLUMNS.value,
    )
    for name, size in sizes.items():
        print(f"{size / 1e6:8.3f} MB  {name}")
    if ONNX.value:
        _report_onnx(read_description(out)["export"]["onnx"])
    print(f"{sum(sizes.values()) / 1e6:8.3f} MB in {out}; python {out / 'run.py'} FILE runs it")


def _report_onnx(described: Mapping[str, Any]) -> None:
    for function in described["functions"].values():
        size = function["batch_size"] or "any"
        print(
            f"{function['file']}: batch size {size}, differs from JAX by at most "
            f"{function['difference']:.1e} in onnxruntime {described['onnxruntime']} "
            f"(tolerance {described['tolerance']:.0e})"
        )
    for name, reason in described["refused"].items():
        print(f"{name}.onnx: not written, since jax2onnx refuses it ({reason})")


def _export_encoder(out: Path) -> None:
    if WORKDIR.value is None:
        raise ValueError("--part=encoder: expected --workdir, received --model")
    workdir = Workdir(WORKDIR.value)
    config = program.recorded_config(workdir)
    step, variables = restore_variables(workdir, STEP.value)
    frozen = getattr(getattr(config, "model", None), "encoder", None)
    if "encoder" not in variables["params"] and isinstance(frozen, EncoderConfig):
        raise ValueError(
            "--part=encoder: expected a model with an encoder, received one that reads "
            f"{describe_features(frozen)}"
        )
    config.load_assets(workdir.path)
    encoder = getattr(config.make_model(), "encoder", None)
    if not isinstance(encoder, Encoder):
        raise ValueError(
            "--part=encoder: expected a model with an encoder that has PyTorch's names, received "
            f"{type(encoder).__name__}"
        )
    tensors = export.to_encoder_tensors(encoder, variables)
    metadata = {"experiment": str(workdir.read_config()["experiment"]), "step": str(step)}
    export.write_safetensors(out, tensors, metadata)
    size = sum(tensor.size for tensor in tensors.values())
    print(f"{len(tensors)} arrays of {size:,} numbers from step {step} in {out}")


if __name__ == "__main__":
    program.run(main)
