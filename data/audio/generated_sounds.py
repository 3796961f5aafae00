"""Embedded set of sounds: tones, sweeps, bursts and rhythms, generated on demand.

The classes come in pairs whose spectra, averaged over time, are alike: a sweep that rises and one
that falls, two tones low–high and high–low, a burst that swells and one that fades. So a network
must read the order of the frames.
"""

import operator
from typing import Any

import numpy as np

from data.audio.digit_strings import draw_noise
from data.audio.log_mel import LogMel
from data.audio.sources import make_labelled
from data.batches import SoundExample

CLASSES = ("rising", "falling", "low_high", "high_low", "swelling", "fading")
SPLIT_SIZES = {"train": 2_000, "validation": 300, "test": 600}
"""Split -> default number of examples."""
LOG_MEL = LogMel(8_000, window=0.032, hop=0.016, num_mels=32, low=64.0, high=4_000.0)
SECONDS = 1.0

_MARGIN = 0.15  # seconds at either end within which the sound begins and ends


class GeneratedSounds:
    """One split of the embedded set.

    Example ``i`` depends only on (seed, split, ``i``), not on the number of examples.

    Args:
        split: "train", "validation" or "test".
        num_examples: number of sounds, at least 0; None takes that of ``SPLIT_SIZES``.
        seed: of the whole set, at least 0.

    Raises:
        ValueError: the split is unknown, or ``num_examples`` or ``seed`` is negative.
    """

    class_names: tuple[str, ...] = CLASSES

    def __init__(self, split: str = "train", num_examples: int | None = None, seed: int = 0):
        if split not in SPLIT_SIZES:
            raise ValueError(f"split: expected one of {', '.join(SPLIT_SIZES)}, received {split!r}")
        self.split = split
        self.num_examples = SPLIT_SIZES[split] if num_examples is None else num_examples
        self.seed = seed
        if self.num_examples < 0 or seed < 0:
            raise ValueError(
                f"num_examples, seed: expected at least 0, received {num_examples} and {seed}"
            )

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"GeneratedSounds({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON."""
        return {
            "class_names": list(self.class_names),
            "split": self.split,
            "num_examples": self.num_examples,
            "sound_seed": self.seed,
        }

    def __getitem__(self, index: int, /) -> SoundExample:
        """Returns example ``index``: ``spectrogram`` (63,32) float32, ``label`` in 0..5, ….

        Raises:
            IndexError: the index is out of range.
        """
        samples, label = self.waveform(index)
        return make_labelled(LOG_MEL(samples), label, index, LOG_MEL.num_mels)

    def waveform(self, index: int) -> tuple[np.ndarray, int]:
        """Returns the samples, (8000,) float32 in [-1,1], and the label of example ``index``."""
        number = operator.index(index)
        if not 0 <= number < self.num_examples:
            raise IndexError(f"index: expected 0..{self.num_examples - 1}, received {number}")
        stream = (tuple(SPLIT_SIZES).index(self.split), number)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))
        label = int(rng.integers(len(CLASSES)))
        rate = LOG_MEL.sample_rate
        count = round(SECONDS * rate)
        begin = rng.uniform(0, _MARGIN)
        end = SECONDS - rng.uniform(0, _MARGIN)
        # 0 at the begin of the sound, 1 at its end.
        progress = (np.arange(count) / rate - begin) / (end - begin)
        inside = (progress >= 0) & (progress < 1)
        sound = _CLASSES[label // 2](np.clip(progress, 0, 1), bool(label % 2), rng)
        gain = rng.uniform(0.1, 0.5)
        noise = rng.uniform(0.001, 0.02) * draw_noise(count, rng, pink=bool(rng.integers(2)))
        return (gain * inside * sound + noise).clip(-1, 1).astype(np.float32), label


def _sweep(progress: np.ndarray, backwards: bool, rng: np.random.Generator) -> np.ndarray:
    low, high = rng.uniform(200, 600), rng.uniform(1200, 3000)
    frequency = low * (high / low) ** (1 - progress if backwards else progress)
    return np.sin(2 * np.pi * np.cumsum(frequency) / LOG_MEL.sample_rate)


def _two_tones(progress: np.ndarray, backwards: bool, rng: np.random.Generator) -> np.ndarray:
    low, high = rng.uniform(200, 600), rng.uniform(1200, 3000)
    first = (progress < 0.5) != backwards
    frequency = np.where(first, low, high)
    return np.sin(2 * np.pi * np.cumsum(frequency) / LOG_MEL.sample_rate)


def _burst(progress: np.ndarray, backwards: bool, rng: np.random.Generator) -> np.ndarray:
    envelope = (1 - progress if backwards else progress) ** rng.uniform(1, 3)
    return envelope * draw_noise(len(progress), rng)


_CLASSES = (_sweep, _two_tones, _burst)
