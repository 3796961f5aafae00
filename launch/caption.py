"""Captions image files; prints one JSON line per file.

    python -m launch.caption PHOTO.jpg …                       # with the shipped captioner
    python -m launch.caption --model=FOLDER PHOTO.jpg …
    python -m launch.caption --workdir=runs/show_attend_tell PHOTO.jpg …

A line is ``{"path": …, "caption": …, "log_probability": …, "ended": …}``. ``--num_captions`` adds
``captions``, several per image, best first. ``--attention=FOLDER`` adds ``attention``, the path of
a drawing of the attention weights at each word. A file that cannot be decoded gives
``{"path": …, "error": …}``; then the exit code is 1. Several workdirs decode as an ensemble:
``--workdir=A --workdir=B``.

``--model`` is an exported folder, a shipped model's name, or a workdir whose experiment is not run.
It searches as the model's description says: the flags of the search need ``--workdir``.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import flags

from flaxnets.decoders.search import METHODS, SearchOptions
from flaxnets.inference.runtime.media import read_image
from flaxnets.inference.trained_captioner import Caption, TrainedCaptioner
from flaxnets.inference.trained_model import TrainedModel
from flaxnets.tasks.captioning import Captioning
from flaxnets.training.config import Config, UndefinedMethod
from flaxnets.training.workdir import Workdir
from launch import program
from launch.reports.captions import draw_attention

WORKDIR = program.define_run(
    "Folder of the run; several runs decode as an ensemble", several=True, required=False
)
MODEL = program.define_path(
    "model", None, "Exported folder, workdir, or name of a shipped model, in place of --workdir."
)
SHIPPED = "captioner"
"""The shipped model that is used without --workdir and --model."""
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the best.")
ATTENTION = program.define_path("attention", None, "Folder for drawings of the attention weights.")
NUM_CAPTIONS = flags.DEFINE_integer(
    "num_captions", 1, "Most captions of each image.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images per batch; default: as in training.", lower_bound=1
)
MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", None, "Images with more pixels are not read; default: the run's.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Random seed of --method=sample.", lower_bound=0)
# Search options that are not given come from the run's configuration.
METHOD = flags.DEFINE_enum("method", None, METHODS, "Search method; default: the run's.")
BEAM_SIZE = flags.DEFINE_integer("beam_size", None, "Hypotheses of the beam search.", lower_bound=1)
MAX_STEPS = flags.DEFINE_integer("max_steps", None, "Most tokens of a caption.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", None, "Temperature of the softmax when sampling.")
TOP_K = flags.DEFINE_integer("top_k", None, "Sample from the k most probable words; 0: from all.")
TOP_P = flags.DEFINE_float(
    "top_p", None, "Sample from the most probable words with total probability p."
)

OF_METHOD = {"beam_size": "beam", "temperature": "sample", "top_k": "sample", "top_p": "sample"}
"""Method that reads each flag; the other methods refuse it."""


@runtime_checkable
class ShowsImages(Protocol):
    """Configuration of a captioner of image files, whose attention can be drawn."""

    def read_image(self, path: str) -> np.ndarray:
        """Returns an image file, (H,W,3) uint8."""

    def crop_image(self, image: np.ndarray) -> np.ndarray:
        """Returns the part of an image (H,W,3) uint8 that the model sees."""


def main(argv: Sequence[str]) -> int:
    """Captions each image and prints its line; returns the exit code."""
    if not argv:
        raise ValueError("expected paths of image files after the flags, received none")
    missing = [path for path in argv if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(argv)} images do not exist: {', '.join(missing[:3])}"
        )
    folder = Path(ATTENTION.value) if ATTENTION.value else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if not WORKDIR.value:
        return _caption_by_model(list(argv), folder)
    if MODEL.value is not None:
        raise ValueError("--model: expected without --workdir, received both")
    captioner, config = _restore()
    names = _drawing_names(argv)
    failed = 0
    for found in captioner.caption_files(list(argv), attention=folder is not None):
        path = argv[found.index]
        if not found.captions:
            failed += 1
            reason = found.problem.removeprefix(f"{path}: ")
            print(json.dumps({"path": path, "error": reason}), flush=True)
            continue
        best, *_ = captions = found.captions[: NUM_CAPTIONS.value]
        line = {"path": path, **_describe(best)}
        if NUM_CAPTIONS.value > 1:
            line["captions"] = [_describe(caption) for caption in captions]
        if folder is not None:
            drawing = folder / names[found.index]
            if not isinstance(config, ShowsImages):
                raise UndefinedMethod(config, "read_image")
            _draw(config.crop_image(config.read_image(path)), best, drawing)
            line["attention"] = str(drawing)
        print(json.dumps(line), flush=True)
    if failed:
        print(f"error: {failed} of {len(argv)} images could not be decoded", file=sys.stderr)
    return int(failed > 0)


def _caption_by_model(paths: list[str], folder: Path | None) -> int:
    """Captions images with ``--model`` or the shipped captioner; returns the exit code."""
    searches = (METHOD, BEAM_SIZE, MAX_STEPS, TEMPERATURE, TOP_K, TOP_P, STEP, BATCH_SIZE)
    given = [flag.name for flag in searches if flag.value is not None]
    if given:
        raise ValueError(f"--{given[0]}: expected with --workdir, received without")
    model = program.load_model(MODEL.value, SHIPPED, "caption")
    limits = model.limits
    if MAX_PIXELS.value is not None:
        limits = dataclasses.replace(limits, max_pixels=MAX_PIXELS.value)
        model = dataclasses.replace(model, limits=limits)
    names, failed = _drawing_names(paths), 0
    captioned = model.caption_each(
        paths, num_captions=NUM_CAPTIONS.value, attention=folder is not None
    )
    for path, name, found in zip(paths, names, captioned, strict=True):
        if isinstance(found, OSError):
            failed += 1
            reason = str(found).removeprefix(f"{path}: ")
            print(json.dumps({"path": path, "error": reason}), flush=True)
            continue
        line = {"path": path, **_describe(found[0])}
        if NUM_CAPTIONS.value > 1:
            line["captions"] = [_describe(caption) for caption in found]
        if folder is not None:
            image = model.preprocessing.crop(read_image(path, limits))
            _draw(image, found[0], folder / name)
            line["attention"] = str(folder / name)
        print(json.dumps(line), flush=True)
    if failed:
        print(f"error: {failed} of {len(paths)} images could not be decoded", file=sys.stderr)
    return int(failed > 0)


def _restore() -> tuple[TrainedCaptioner, Config]:
    """Returns the captioner of all workdirs and the configuration of the first."""
    workdirs = [Workdir(path) for path in WORKDIR.value]
    if STEP.value is not None and len(workdirs) > 1:
        raise ValueError("--step: expected a single --workdir, received several")
    configs = [program.recorded_config(workdir) for workdir in workdirs]
    for config in configs:
        config.batch_size = BATCH_SIZE.value or configs[0].batch_size
        if MAX_PIXELS.value is not None:
            data: Any = getattr(config, "data", None)
            if not hasattr(data, "max_pixels"):
                raise ValueError(
                    f"--max_pixels: expected a captioner of images, received {config.name!r}"
                )
            data.max_pixels = MAX_PIXELS.value
    models = [
        TrainedModel(config, workdir, STEP.value)
        for config, workdir in zip(configs, workdirs, strict=True)
    ]
    task = configs[0].make_prediction_task()
    options = _override(task.options) if isinstance(task, Captioning) else None
    return TrainedCaptioner(models, options, seed=SEED.value), configs[0]


def _override(options: SearchOptions) -> SearchOptions:
    """Returns the search options of a run, overridden by the flags.

    Raises:
      ValueError: a flag that the method does not read, or more captions than the method finds.
    """
    given: dict[str, Any] = {
        flag.name: flag.value
        for flag in (METHOD, BEAM_SIZE, MAX_STEPS, TEMPERATURE, TOP_K, TOP_P)
        if flag.value is not None
    }
    options = dataclasses.replace(options, **given)
    for name, method in OF_METHOD.items():
        if name in given and options.method != method:
            raise ValueError(
                f"--{name}: expected with --method={method}, received with {options.method}"
            )
    count = NUM_CAPTIONS.value
    if options.method == "sample":
        return dataclasses.replace(options, num_samples=count)
    if options.method == "greedy" and count > 1:
        raise ValueError(f"--num_captions: expected 1 with greedy search, received {count}")
    if options.method == "beam" and count > options.beam_size:
        if "beam_size" in given:
            raise ValueError(
                f"--num_captions: expected at most the beam_size {options.beam_size}, received "
                f"{count}"
            )
        options = dataclasses.replace(options, beam_size=count)
    return options


def _describe(caption: Caption) -> dict[str, Any]:
    return {
        "caption": caption.text,
        "log_probability": round(caption.log_probability, 6),
        "ended": caption.ended,
    }


def _draw(image: np.ndarray, caption: Caption, drawing: Path) -> None:
    """Draws the attention over an image (H,W,3) uint8 into a file."""
    attention = caption.attention
    if attention is None or attention.ndim != 3:
        raise ValueError(
            "--attention: expected a model with attention over a grid of image positions"
        )
    draw_attention(image, caption.words, attention).save(drawing, quality=90)


def _drawing_names(paths: Sequence[str]) -> list[str]:
    """Returns a unique file name for each path; paths may have the same name in several folders."""
    names: dict[str, int] = {}
    for index, path in enumerate(paths):
        stem, number = Path(path).name, 1
        name = f"{stem}.attention.jpg"
        while name in names:
            number += 1
            name = f"{stem}.{number}.attention.jpg"
        names[name] = index
    return list(names)


if __name__ == "__main__":
    program.run(main)
