"""Predicts the classes of files of video or sound, or the continuation of series, as JSON lines.

    python -m launch.predict CLIP.avi …                        # with the shipped recogniser
    python -m launch.predict --workdir=runs/lrcn CLIP.avi …
    python -m launch.predict --model=FOLDER CLIP.avi …

A line is ``{"path": …, "predictions": [{"label": …, "probability": …}, …]}``, most probable class
first, under the names of the classes in training (the data are not needed), or
``{"path": …, "error": REASON}`` for a file that is missing or cannot be decoded; then the exit code
is 1. ``CLIP`` may be a folder of frames where a training reads these. ``--model`` is an exported
folder, a shipped model's name, or a workdir, whose experiment then is not run; classifiers of
images read image files. A run of ``experiments/series.py`` or another one that forecasts reads
tables; a line is ``{"path": …, "after": TIME, "forecast": [{"step": 1, "values": {CHANNEL: VALUE,
…}}, …]}``, in the series' units.

A run that predicts frames, as of ``experiments/conv_lstm.py``, continues videos, or fields in NPZ,
NumPy or Zarr, from their last frames on::

    python -m launch.predict --workdir=runs/conv_lstm --frames=20 --out=continued CLIP.avi …

``--frames`` may be more than in training. A line is ``{"path": …, "inputs": 10, "frames": 20,
"mp4": …, "gif": …, "png": …, "npz": …}`` with the paths of the files written: the frames to play,
as a strip, and as arrays.

``--stream=SOURCE`` classifies a stream step by step instead (``predict_stream.py``).
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from flaxnets.inference.loading import load
from flaxnets.inference.token_sampling import SamplesText
from flaxnets.inference.trained_forecaster import ContinuesFrames
from flaxnets.inference.trained_model import (
    DescribesPredictions,
    PredictsFiles,
    TrainedModel,
)
from flaxnets.training.workdir import Workdir
from launch import predict_frames, predict_stream, program

WORKDIR = program.define_run(required=False)
MODEL = program.define_path(
    "model", None, "Exported folder, workdir, or name of a shipped model, in place of --workdir."
)
SHIPPED = "ut_interaction"
"""The shipped model that is used without --workdir and --model."""
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
TOP = flags.DEFINE_integer("top", 5, "Number of classes on each line.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
    """Predicts and prints the classes of each file; returns the exit code."""
    if predict_stream.STREAM.value is not None:
        program.refuse_arguments(argv)
        predict_frames.refuse_frames("--stream")
        return predict_stream.predict_stream(_load(), TOP.value)
    if not argv:
        raise ValueError("expected paths of video files after the flags, received none")
    # Folders are frames or an array of Zarr; what a run cannot read, its reader tells.
    missing = [path for path in argv if not Path(path).exists()]
    if len(missing) == len(argv):  # Rather a wrong folder; single ones are told line by line.
        raise FileNotFoundError(
            f"{len(missing)} of {len(argv)} files do not exist: {', '.join(missing[:3])}"
        )
    failed = 0
    for path, found in _predict(list(argv)):
        if isinstance(found, str):
            failed += 1
            print(json.dumps({"path": path, "error": found}), flush=True)
        else:
            found = {"predictions": found} if isinstance(found, list) else found
            print(json.dumps({"path": path, **found}), flush=True)
    if failed:
        print(f"error: {failed} of {len(argv)} files could not be read", file=sys.stderr)
    return int(failed > 0)


def _load() -> Any:
    """Returns the model of ``--workdir`` or ``--model``, or the shipped one."""
    if WORKDIR.value is None:
        return program.load_model(MODEL.value, SHIPPED, "predict")
    if MODEL.value is not None:
        raise ValueError("--model: expected without --workdir, received both")
    return load(WORKDIR.value, step=STEP.value)


def _predict(
    paths: list[str],
) -> Iterator[tuple[str, list[dict[str, Any]] | Mapping[str, Any] | str]]:
    """Yields each path with its most probable classes or forecast, or the reason for none."""
    if WORKDIR.value is None:
        received = "--model" if MODEL.value else "neither --workdir nor --model"
        predict_frames.refuse_frames(received)
        yield from _predict_by(program.load_model(MODEL.value, SHIPPED, "predict"), paths)
        return
    if MODEL.value is not None:
        raise ValueError("--model: expected without --workdir, received both")
    workdir = Workdir(WORKDIR.value)
    config = program.recorded_config(workdir)
    if isinstance(config, ContinuesFrames):
        model = TrainedModel(config, workdir, STEP.value)
        yield from predict_frames.continue_files(model, paths)
        return
    predict_frames.refuse_frames(f"one of {config.name!r}")
    if not isinstance(config, PredictsFiles) and (workdir.path / "model.json").exists():
        yield from _predict_by(load(workdir.path, step=STEP.value), paths)
        return
    if not isinstance(config, PredictsFiles):
        other = "launch.sample continues texts" if isinstance(config, SamplesText) else ""
        raise ValueError(
            f"--workdir: expected a run whose model reads files, received one of {config.name!r}; "
            f"{other or 'launch.evaluate applies it to a split of its data'}"
        )
    model = TrainedModel(config, workdir, STEP.value)
    names = model.class_names
    for record in model.predict(paths):
        path = paths[record["index"]]
        if "error" in record:
            yield path, record["error"].removeprefix(f"{path}: ")
            continue
        if isinstance(config, DescribesPredictions):
            yield path, config.describe_prediction(record)
            continue
        if "probabilities" not in record:
            raise ValueError(
                f"--workdir: expected a run of a classifier, received one of {config.name!r}; "
                "launch.read reads lines and speech, launch.caption captions images"
            )
        probabilities = record["probabilities"]
        order = sorted(range(len(probabilities)), key=lambda k: -probabilities[k])
        yield (
            path,
            [
                {"label": names[k] if names else f"class {k}", "probability": probabilities[k]}
                for k in order[: TOP.value]
            ],
        )


def _predict_by(model: Any, paths: list[str]) -> Iterator[tuple[str, list[dict[str, Any]] | str]]:
    for path, found in zip(paths, model.predict_each(paths), strict=True):
        if isinstance(found, OSError):
            yield path, str(found).removeprefix(f"{path}: ")
        else:
            yield (
                path,
                [
                    {"label": label.label, "probability": round(label.probability, 6)}
                    for label in found.top(TOP.value)
                ],
            )


if __name__ == "__main__":
    program.run(main)
