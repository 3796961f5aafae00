"""Small models for tests of the page: their results are computed from the pixels they are given."""

import time

import numpy as np

from flaxnets.inference.runtime.columns import LinePreprocessing, SoundPreprocessing
from flaxnets.inference.runtime.functions import Captions, Carry, Clips, Texts
from flaxnets.inference.runtime.models import (
    CAPTIONING,
    IMAGE,
    SOUND,
    VIDEO,
    Captioner,
    Classifier,
)
from flaxnets.inference.runtime.preprocessing import ClipPreprocessing, ImagePreprocessing
from flaxnets.inference.runtime.readers import TRANSCRIPTION, Reader
from flaxnets.inference.runtime.words import Words

HOSTILE = "<img src=x onerror=alert(1)>"
"""HTML in names, labels and words, which must stay text."""
LABELS = ("dark", f"bright {HOSTILE}", "neither")
WORDS = ("a", "dog", HOSTILE, "over", "grass", "snow", "sand")
FIRST = 4
"""Id of the first word."""


class Brightness:
    """Functions of a classifier into dark and bright, at each step and for the whole clip."""

    causal = False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def classify(self, frames: np.ndarray, lengths: np.ndarray) -> Clips:
        time.sleep(self.seconds)
        value = frames.mean(axis=tuple(range(2, frames.ndim))) / 255  # (B,T)
        steps = np.stack([0.9 * (1 - value), 0.9 * value, np.full_like(value, 0.1)], axis=-1)
        steps = steps.astype(np.float32)
        valid = np.arange(frames.shape[1]) < lengths[:, None]
        mean = (steps * valid[..., None]).sum(axis=1) / lengths[:, None]
        return Clips(mean.astype(np.float32), steps)

    def start(self, batch_size: int) -> Carry:
        raise NotImplementedError

    def step(self, carry: Carry, frames: np.ndarray) -> tuple[Carry, np.ndarray, np.ndarray]:
        raise NotImplementedError


class Sentences:
    """Functions of a captioner: up to three captions, with attention that moves to the right."""

    def caption(
        self, images: np.ndarray, num_captions: int = 1, *, attention: bool = False
    ) -> Captions:
        if num_captions > 3:
            raise ValueError(f"num_captions: expected at most 3, received {num_captions}")
        count, length = len(images), 6
        tokens = np.zeros((count, num_captions, length), np.int32)
        lengths = np.full((count, num_captions), length, np.int32)
        for k in range(num_captions):
            tokens[:, k, :5] = FIRST + np.asarray([0, 1, 2, 3, 4 + k])
            tokens[:, k, 5] = 2 if k != 1 else FIRST  # The second caption does not end.
        rows, columns = np.mgrid[0:7, 0:7]
        maps = np.stack([np.exp(-((rows - 3) ** 2 + (columns - n) ** 2) / 3) for n in range(6)])
        maps /= maps.sum(axis=(1, 2), keepdims=True)
        weights = np.broadcast_to(maps.astype(np.float32), (count, num_captions, 6, 7, 7))
        scores = -3.0 - np.arange(num_captions, dtype=np.float32)
        scores = np.broadcast_to(scores, (count, num_captions))
        return Captions(tokens, lengths, scores, weights if attention else None)


class Strokes:
    """Functions of a reader: a character for each half of the input, ``<`` or ``>`` by its mean."""

    beam_width, stride, obstacle, context = 0, 4, "a test", (0, 0)

    def read(self, inputs: np.ndarray, lengths: np.ndarray, beam_width: int) -> Texts:
        rows = len(inputs)
        axis = 2 if inputs.ndim == 4 else 1
        tokens = np.ones((rows, 2), np.int32)
        confidences = np.full((rows, 2), 0.9, np.float32)
        ends = np.zeros((rows, 2), np.int32)
        for row, length in enumerate(lengths):
            halves = np.array_split(inputs[row].take(range(length), axis - 1), 2, axis - 1)
            tokens[row] = [1 + (half.mean() > 128) for half in halves]
            ends[row] = [length // 8, length // 4]
        confidences[:, 1] = 0.4
        starts = np.concatenate([np.zeros((rows, 1), np.int32), ends[:, :1]], axis=1)
        counts = np.full(rows, 2, np.int32)
        return Texts(tokens, counts, confidences[:, 0], confidences, starts, ends)

    def start(self) -> Carry:
        raise NotImplementedError

    def step(self, carry: Carry, *arguments: object) -> tuple[Carry, np.ndarray, None]:
        raise NotImplementedError


def reader(speech: bool = False) -> Reader:
    """Returns a reader of lines or speech whose characters and name hold HTML."""
    return Reader(
        name=f"strokes {HOSTILE}",
        alphabet=("<", ">"),
        preprocessing=SoundPreprocessing(8_000, 0.032, 0.01, 16, 0.0, 4_000.0)
        if speech
        else LinePreprocessing(16),
        functions=Strokes(),
    )


def classifier(kind: str = VIDEO, seconds: float = 0.0) -> Classifier:
    """Returns a classifier whose name, labels and card hold HTML."""
    preprocessing = {
        VIDEO: ClipPreprocessing((16, 16), num_frames=8, sampler="uniform", short_side=32),
        IMAGE: ImagePreprocessing(size=32),
        SOUND: SoundPreprocessing(8_000, 0.032, 0.01, 16, 0.0, 4_000.0),
    }[kind]
    card = f"# A card\n\n<script>document.title='owned'</script> {HOSTILE}"
    return Classifier(
        name=f"brightness {HOSTILE}",
        kind=kind,
        labels=LABELS,
        preprocessing=preprocessing,
        functions=Brightness(seconds),
        card=card,
    )


def captioner() -> Captioner:
    """Returns a captioner whose words hold HTML."""
    return Captioner(
        name=f"sentences {HOSTILE}",
        words=Words(WORDS),
        preprocessing=ImagePreprocessing(size=224),
        functions=Sentences(),
    )


def all_models() -> list[Classifier | Captioner | Reader]:
    """Returns a model of each kind."""
    models: list[Classifier | Captioner | Reader] = [
        captioner(),
        classifier(VIDEO),
        classifier(IMAGE),
        classifier(SOUND),
        reader(),
        reader(speech=True),
    ]
    kinds = [CAPTIONING, VIDEO, IMAGE, SOUND, TRANSCRIPTION, TRANSCRIPTION]
    assert [model.kind for model in models] == kinds
    return models
