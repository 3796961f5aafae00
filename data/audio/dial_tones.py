"""Embedded set of dialled numbers: the pairs of tones of telephone keys, generated on demand.

Each key sounds as two sines, one of its row and one of its column of the keypad (dual-tone
multi-frequency signalling, ITU-T Recommendation Q.23). A number is a string of keys with gaps,
level and noise drawn, its text the keys between blanks, as "3 5 7".
"""

import operator
from typing import Any

import numpy as np

from data.audio.digit_strings import SPLITS, draw_noise
from data.audio.log_mel import TELEPHONE, LogMel
from data.audio.sources import make_transcript
from data.batches import TranscriptExample
from data.text_lines.alphabet import Alphabet

KEYS = ("123", "456", "789", "*0#")
ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)
"""Hz."""
ALPHABET = Alphabet.from_texts([" ", *KEYS])

_FREQUENCIES = {
    key: (row, column)
    for row, keys in zip(ROWS, KEYS, strict=True)
    for column, key in zip(COLUMNS, keys, strict=True)
}
_TONE, _GAP = (0.1, 0.2), (0.06, 0.2)  # seconds


class DialTones:
    """One split of the embedded numbers; picklable.

    Number ``i`` depends only on (seed, split, ``i``), not on the number of examples.

    >>> numbers = DialTones("train", 3)
    >>> numbers.text(0), numbers[0]["spectrogram"].shape == (numbers.lengths()[0], 40)
    ('0 1 4', True)

    Args:
        split: "train", "validation" or "test".
        num_examples: number of strings, at least 1.
        seed: of the whole set, at least 0.
        min_keys: least number of keys in a string, at least 1.
        max_keys: greatest number.
        log_mel: parameters of the spectrograms.

    Raises:
        ValueError: an unknown split, or a number out of its range.
    """

    def __init__(
        self,
        split: str = "train",
        num_examples: int = 2_000,
        seed: int = 0,
        *,
        min_keys: int = 2,
        max_keys: int = 5,
        log_mel: LogMel = TELEPHONE,
    ):
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, received {split!r}")
        if num_examples < 1 or seed < 0:
            raise ValueError(
                f"num_examples, seed: expected at least 1 and 0, received {num_examples} and {seed}"
            )
        if not 1 <= min_keys <= max_keys:
            raise ValueError(
                "min_keys, max_keys: expected 1 <= min_keys <= max_keys, received "
                f"{min_keys} and {max_keys}"
            )
        self.split, self.num_examples, self.seed = split, num_examples, seed
        self.min_keys, self.max_keys, self.log_mel = min_keys, max_keys, log_mel

    alphabet: Alphabet = ALPHABET

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"DialTones({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON."""
        return {
            "split": self.split,
            "num_examples": self.num_examples,
            "tone_seed": self.seed,
            "min_keys": self.min_keys,
            "max_keys": self.max_keys,
            "log_mel": self.log_mel.describe(),
        }

    def text(self, index: int) -> str:
        """Returns the keys of number ``index`` between blanks."""
        return " ".join(self._draw(index)[0])

    def __getitem__(self, index: int, /) -> TranscriptExample:
        """Returns number ``index``.

        ``spectrogram`` (T,M) float32, ``lengths`` () int32 = T, ``tokens`` (L,) int32 in 1..K,
        ``token_lengths``, ``mask`` () bool = True, ``index``.

        Raises:
            IndexError: the index is out of range.
        """
        tokens = ALPHABET.encode(self.text(index))
        spectrogram = self.log_mel(self.waveform(index))
        return make_transcript(spectrogram, tokens, index, self.log_mel.num_mels)

    def waveform(self, index: int) -> np.ndarray:
        """Returns the samples of number ``index``, (S,) float32 in [-1,1]."""
        keys, tones, gaps, rng = self._draw(index)
        level = rng.uniform(0.1, 0.4)
        parts = [np.zeros(gaps[0])]
        for key, tone, gap in zip(keys, tones, gaps[1:], strict=True):
            turns = 2 * np.pi * np.arange(tone) / self.log_mel.sample_rate
            row, column = _FREQUENCIES[key]
            parts += [level * (np.sin(row * turns) + np.sin(column * turns)), np.zeros(gap)]
        samples = np.concatenate(parts)
        noise = rng.uniform(0.001, 0.05) * draw_noise(len(samples), rng, pink=bool(rng.integers(2)))
        return np.clip(samples + noise, -1, 1).astype(np.float32)

    def lengths(self) -> np.ndarray:
        """Returns the frames of each spectrogram, (N,) int32 >= 1, without generating any."""
        sizes = [sum(map(sum, self._draw(index)[1:3])) for index in range(len(self))]
        return np.array([self.log_mel.num_frames(int(size)) for size in sizes], np.int32)

    def token_lengths(self) -> np.ndarray:
        """Returns the number of characters of each text, (N,) int32."""
        return np.array([len(self.text(index)) for index in range(len(self))], np.int32)

    def _draw(self, index: int) -> tuple[list[str], np.ndarray, np.ndarray, np.random.Generator]:
        """Returns the keys, the samples of each tone and gap, and the generator of the rest."""
        number = operator.index(index)
        if not 0 <= number < self.num_examples:
            raise IndexError(f"index: expected 0..{self.num_examples - 1}, received {number}")
        stream = (SPLITS.index(self.split), number)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))
        count = int(rng.integers(self.min_keys, self.max_keys + 1))
        keys = [list(_FREQUENCIES)[k] for k in rng.integers(len(_FREQUENCIES), size=count)]
        rate = self.log_mel.sample_rate
        tones = np.round(rng.uniform(*_TONE, count) * rate).astype(np.int64)
        gaps = np.round(rng.uniform(*_GAP, count + 1) * rate).astype(np.int64)
        return keys, tones, gaps, rng
