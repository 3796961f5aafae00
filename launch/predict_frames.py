"""Continuation of videos and fields by a run that predicts frames, for ``launch.predict``."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from flaxnets.inference.frame_files import name_files
from flaxnets.inference.trained_forecaster import TrainedForecaster
from flaxnets.inference.trained_model import TrainedModel
from launch import program

FRAMES = flags.DEFINE_integer(
    "frames",
    None,
    "Frames of a continuation, of a run that predicts frames; default: as in training.",
    lower_bound=1,
)
OUT = program.define_path("out", None, "Folder of the continuations, made if there is none.")


def refuse_frames(received: str) -> None:
    """Refuses ``--frames`` and ``--out`` with a model that predicts no frames.

    Args:
      received: words for the model.

    Raises:
      ValueError: one of the flags is set.
    """
    for flag in (FRAMES, OUT):
        if flag.value is not None:
            raise ValueError(
                f"--{flag.name}: expected with --workdir of a run that predicts frames, as "
                f"experiments/conv_lstm.py, received {received}"
            )


def continue_files(
    model: TrainedModel, paths: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """Yields each path with the files of its continuation, or the reason for none.

    Raises:
      ValueError: ``--out`` is not set.
    """
    if OUT.value is None:
        raise ValueError(
            "--out: expected the folder into which continuations are written, since the run "
            "predicts frames, received none"
        )
    forecaster = TrainedForecaster(model)
    num_inputs, num_outputs = forecaster.config.horizon
    num_outputs = FRAMES.value or num_outputs
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for path, name in zip(paths, name_files(paths), strict=True):
        try:
            files = forecaster.continue_file(path, num_outputs, folder, name)
        except Exception as error:  # One bad file must not stop the others.
            if not _is_of_file(error, path):
                raise
            yield path, str(error).removeprefix(f"{path}: ")
            continue
        yield path, {"inputs": num_inputs, "frames": num_outputs, **files}


def _is_of_file(error: Exception, path: str) -> bool:
    """Returns True for an error that names the file, as those of readers do."""
    return str(error).startswith(f"{path}: ")
