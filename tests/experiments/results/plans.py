"""Planned hours of the ledger's rows: their trainings traced with stand-ins for the data.

    python -m tests.experiments.results.plans jsb_lstm …

writes the column ``planned_hours`` of the named rows, or of all: hours of all steps of a row's
trainings on one H100 by the roofline of ``launch.plan``, matmuls and convolutions alone at 30 % of
the peak, without evaluations, frozen encoders whose features are cached, and the input pipeline. It
is a lower bound, and a loose one for small networks, which wait for kernels to start. Shapes are
those of the data sets: their own sizes, or the mean length where batches are filled by steps.
"""

import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from data.captions.vocabulary import Vocabulary
from data.text_lines.alphabet import Alphabet
from experiments.captioning.config import VOCABULARY, CaptionConfig
from experiments.classification.sound_clips import SoundClipClassification
from experiments.classification.video_clips import ClipClassification
from experiments.frames.config import FRAMES_FILE, FramePredictionConfig
from experiments.results.sequence_table import problem_of
from experiments.sequences.config import PROBLEM_FILE, Problem, SequenceExperiment
from experiments.transcription.config import ALPHABET, TranscriptionConfig
from flaxnets.encoders.config import EncoderConfig, make_encoder
from flaxnets.models.crnn import pool_over_space
from flaxnets.training.cost import estimate_cost
from flaxnets.training.evaluation import close_batches
from launch.ledger.reproduction import commands_of
from launch.ledger.rows import Row, read_ledger, write_ledger
from launch.plan_report import dtype_of, find_device
from tests.experiments import grid

LEDGER = Path(__file__).parents[3] / "experiments" / "results" / "ledger.csv"
DEVICE, UTILIZATION = "h100", 0.3
NUM_FRAMES = 16
"""Of the clips of ``moving_shapes``."""
WORDS = {"flickr8k": 2_552, "karpathy": 9_487}
"""Sizes of caption vocabularies; they differ little with the version of the data."""
LENGTHS = {"jsb": 60, "nottingham": 254, "basic_motions": 100, "japanese_vowels": 29}
"""Mean lengths of piano rolls, lengths of the sets of the UEA archive."""
UNPLANNED = (
    *("scst.py", "image_", "video_classification", "sound_events.py", "ut_interaction"),
    *("frozen=False", "experiments.benchmarks"),
)
"""Parts of the commands that have no stand-in here: their networks follow from their data."""
CLASSES = {"ucf101": 101, "hmdb51": 51, "sports1m": 487, "lrw": 500}
"""Classes of the data sets of videos, by the folder in the commands."""
CHARACTERS = {"fraktur": 102, "paper": 36, "spoken_digits": 10, "full": 28}
"""Characters of readers, by variant."""


def planned_hours(row: Row) -> float | None:
    """Returns the hours of a row's trainings; None: one of them has no stand-in here."""
    hours = 0.0
    trainings = 0
    for words in commands_of(row, workdir="/runs", root="/data", seed=0):
        spec = next((w.partition("=")[2] for w in words if w.startswith("--config=")), "")
        if not spec:
            continue
        trainings += 1
        config = grid.parse(
            spec.removeprefix("experiments/"), *[w for w in words if w.startswith("--config.")]
        )
        cost = plan(config, spec)
        if cost is None:
            return None
        folds = 3 if "--folds=1,2,3" in words else 1
        peak = find_device(DEVICE).peak[dtype_of(config)]
        hours += folds * config.num_steps * cost.train.products / (UTILIZATION * peak) / 3600
    return hours if trainings else None


def plan(config: Any, spec: str) -> Any:
    """Returns the cost of a training step of an experiment, without its data.

    Args:
      config: with all overrides.
      spec: ``FILE[:variant]``.

    Returns:
      ``flaxnets.training.cost.Cost``; None: the experiment has no stand-in here.
    """
    file, _, variant = Path(spec).name.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        batch = stand_in(config, file, variant, Path(folder))
        return None if batch is None else estimate_cost(config, batch, memory=False)


def stand_in(config: Any, file: str, variant: str, folder: Path) -> Mapping[str, np.ndarray] | None:
    """Returns a batch of zeros, and gives the configuration what it would keep of its data.

    Args:
      config: of the experiment, changed in place.
      file: of the experiment.
      variant: of the experiment.
      folder: for the files that a run keeps; they are read at once.
    """
    rows = config.batch_size
    if isinstance(config, SequenceExperiment):
        problem, steps, channels = sequences(config, file, variant)
        (folder / PROBLEM_FILE).write_text(json.dumps(problem.to_json()))
        config.load_assets(folder)
        rows = max(1, config.batch_steps // steps) if config.batch_steps else rows
        return sequence_batch(problem, rows, steps, channels)
    if isinstance(config, CaptionConfig):
        own = config.data.kind not in WORDS
        if own or getattr(config, "self_critical", False) or not config.model.encoder.frozen:
            return None  # Words, the rewards' n-grams and sizes of images are those of the data.
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = map("".join, itertools.product(letters, repeat=3))
        count = WORDS[config.data.kind]
        Vocabulary(tuple(itertools.islice(words, count))).save(folder / VOCABULARY)
        config.load_assets(folder)
        return {
            "features": zeros(rows, 9, 9, 1280, dtype=np.float16),
            "tokens": zeros(rows, 1, 12, dtype=np.int32),
            "token_lengths": zeros(rows, 1, dtype=np.int32),
            **common(rows),
        }
    if isinstance(config, TranscriptionConfig):
        characters = [chr(ord("A") + n) for n in range(CHARACTERS[variant.partition("_by")[0]])]
        alphabet = Alphabet(characters)
        (folder / ALPHABET).write_text(json.dumps(alphabet.to_json()), encoding="utf-8")
        config.load_assets(folder)
        lines, data = file == "crnn_text_lines.py", cast(Any, config.data)
        width = 928 if lines else 400
        rows = data.batch_width // width
        inputs = (
            {"image": zeros(rows, data.height, width, 1, dtype=np.uint8)}
            if lines
            else {"spectrogram": zeros(rows, width, data.num_mels)}
        )
        return {
            **inputs,
            "lengths": zeros(rows, dtype=np.int32),
            "tokens": zeros(rows, 50 if lines else 5, dtype=np.int32),
            "token_lengths": zeros(rows, dtype=np.int32),
            **common(rows),
        }
    if isinstance(config, FramePredictionConfig):
        (folder / FRAMES_FILE).write_text(json.dumps({"frame_shape": [64, 64, 1]}))
        config.load_assets(folder)
        frames = config.data.num_inputs + config.data.num_outputs
        return {"frames": zeros(rows, frames, 64, 64, 1, dtype=np.uint8), **common(rows)}
    if isinstance(config, SoundClipClassification):
        return first_batch(config)
    if isinstance(config, ClipClassification) and "ut_interaction" not in variant:
        return clips(config, folder)
    if file == "moving_shapes.py":
        frames = 1 if variant == "frame" else NUM_FRAMES
        return {"video": zeros(rows, frames, 64, 64, 3, dtype=np.uint8), **labelled(rows)}
    return None


def clips(config: ClipClassification, folder: Path) -> Mapping[str, np.ndarray]:
    """Returns a batch of videos, or of the features that the network reads in their place."""
    data: Any = config.data
    if config.embedded:
        return first_batch(config)
    (folder / "checkpoints").mkdir()
    names = [f"class{n}" for n in range(CLASSES[Path(data.root).name])]
    record = {"class_names": names, "preprocessing": {}, "splits": {}, "evaluated": {}}
    (folder / "data.json").write_text(json.dumps(record))
    config.load_assets(folder)
    rows, size = config.batch_size, data.crop_size
    if config.encodes_frames:
        video = zeros(rows, data.num_frames, size, size, 3, dtype=np.uint8)
        return {"video": video, **labelled(rows)}
    encoders = {
        name: config.stream_encoder(stream, level)
        for name, (stream, level) in config.inputs.items()
    } or {"features": config.model.encoder}
    features = {
        name: zeros(rows, data.num_frames, *encoded_shape(encoder, size, config.pool))
        for name, encoder in encoders.items()
    }
    return {**features, **labelled(rows)}


def first_batch(config: Any) -> Mapping[str, np.ndarray]:
    """Returns a batch of generated training examples."""
    batches = config.make_data("train").batches()
    first: Mapping[str, np.ndarray] = next(batches)
    close_batches(batches)
    return first


def encoded_shape(config: EncoderConfig, size: int, pool: str) -> tuple[int, ...]:
    """Returns the shape of what a frozen encoder makes of an image."""
    network, image = make_encoder(config), zeros(1, size, size, 3, dtype=np.uint8)

    def encode() -> Any:
        result: Any = network.init_with_output(jax.random.key(0), image, train=False)[0]
        maps = next(iter(result.values())) if isinstance(result, Mapping) else result
        return pool_over_space(maps, pool)

    shape: tuple[int, ...] = jax.eval_shape(encode).shape
    return shape[1:]


def sequences(config: SequenceExperiment, file: str, variant: str) -> tuple[Problem, int, int]:
    """Returns problem, steps of a sequence and channels of an experiment on sequences."""
    task = variant.partition(",")[0]
    data: Any = getattr(config, "data", None)
    if file in ("char_rnn.py", "penn_treebank.py") or task == "characters":
        tokens = 10_000 if file == "penn_treebank.py" else 65 if file == "char_rnn.py" else 50
        return Problem("stream", tokens, tokens), data.window, 0
    if file in ("lstnet.py", "series.py"):
        channels = 8 if file == "lstnet.py" else 7
        outputs = channels * len(config.steps_ahead)  # type: ignore[attr-defined]
        problem = Problem("regression", outputs, forecast_channels=tuple(range(channels)))
        return problem, data.window, channels
    if file == "remaining_life.py":
        return Problem("regression", 1), data.window, 24
    if file == "deep_conv_lstm.py" and task == "csv":
        return Problem("classification", 18), 24, 113
    problem, channels = problem_of(task)
    return problem, LENGTHS.get(task, 784 if "mnist" in task else 0) or data.length, channels


def sequence_batch(problem: Problem, rows: int, steps: int, channels: int) -> dict[str, np.ndarray]:
    """Returns a batch of zeros for a problem."""
    if problem.objective == "steps" and problem.num_tokens:
        steps += 20  # Copy memory: the symbols before and behind the delay.
    tokens = zeros(rows, steps, dtype=np.int32)
    inputs = {"inputs": zeros(rows, steps, channels)} if channels else {"tokens": tokens}
    if problem.objective == "classification":
        return {**inputs, **labelled(rows)}
    pooled = problem.objective == "regression"
    if pooled:
        shape: tuple[int, ...] = (rows, problem.num_outputs)
    else:
        shape = (rows, steps) + ((channels,) if channels else ())
    return {
        **inputs,
        "targets": zeros(*shape, dtype=np.float32 if channels else np.int32),
        "target_mask": zeros(*(shape if pooled else shape[:2]), dtype=bool),
        "lengths": zeros(rows, dtype=np.int32),
        **common(rows),
    }


def labelled(rows: int) -> dict[str, np.ndarray]:
    """Returns what stands beside sequences with one class each."""
    return {
        "lengths": zeros(rows, dtype=np.int32),
        "label": zeros(rows, dtype=np.int32),
        **common(rows),
    }


def common(rows: int) -> dict[str, np.ndarray]:
    """Returns what every batch has."""
    return {"mask": zeros(rows, dtype=bool), "index": zeros(rows, dtype=np.int32)}


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Returns zeros that need no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def format_hours(hours: float | None) -> str:
    """Returns two digits, 0.01 at the least; empty: not planned."""
    return "" if hours is None else f"{max(hours, 0.01):.2g}"


if __name__ == "__main__":
    rows = read_ledger(LEDGER)
    names, known = sys.argv[1:], dict[str, str]()
    for i, row in enumerate(rows):
        if names and row.name not in names:
            continue
        if row.command not in known:
            known[row.command] = format_hours(planned_hours(row))
            sys.stdout.write(f"{row.name}: {known[row.command]}\n")
            sys.stdout.flush()
        rows[i] = dataclasses.replace(row, planned_hours=known[row.command])
    write_ledger(LEDGER, rows)
