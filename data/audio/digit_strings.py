"""Strings of spoken digits, joined from recordings of single digits.

The text of a string are its digits between blanks, as "3 5 7", not spelled words: what counts is
the word error, and so each wrong character is a wrong word and nothing else is; and a spoken digit
may be 0.14 s short, which are too few steps for CTC to spell "three".
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from data.audio.log_mel import TELEPHONE, LogMel
from data.audio.sources import Waveforms, make_transcript
from data.batches import TranscriptExample
from data.datasets.labelled_files import LabelledFiles
from data.datasets.splits import make_split
from data.text_lines.alphabet import Alphabet

SPLITS = ("train", "validation", "test")
_TO_AMPLITUDE = np.log(10) / 20  # dB to nats


def split_digits(
    files: LabelledFiles,
    *,
    held_out: str = "",
    seed: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.1,
) -> LabelledFiles:
    """Returns recordings of digits with a split each, in proportion for each digit and speaker.

    Args:
        files: recordings with the digit as class and the speaker as group (``read_sounds``).
        held_out: speaker whose recordings are the test split, for the error on a new voice; empty:
            all speakers are in all splits.
        seed: of the draw.
        validation_share: share of the recordings, in (0,1).
        test_share: share of the recordings, in (0,1), where no speaker is held out.

    Raises:
        ValueError: an unknown speaker, or as ``make_split``.
    """
    speakers = sorted(set(files.groups))
    if held_out and held_out not in speakers:
        raise ValueError(
            f"held_out: expected a speaker of {', '.join(speakers)}, received {held_out!r}"
        )
    cells = list(zip(files.labels, files.groups, strict=True))
    names = sorted(set(cells))
    splits = ["test" if group == held_out else "train" for group in files.groups]
    # Each digit of each speaker is a class, and no group keeps the recordings together.
    made = make_split(
        replace(
            files,
            labels=tuple(names.index(cell) for cell in cells),
            class_names=tuple(f"{files.class_names[label]} {group}" for label, group in names),
            groups=("",) * len(files),
            splits=tuple(splits) if held_out else ("",) * len(files),
        ),
        seed=seed,
        validation_share=validation_share,
        test_share=test_share,
    )
    position = {name: index for index, name in enumerate(files.names)}
    kept = files.take([position[name] for name in made.names])
    return replace(kept, splits=made.splits, notes=files.notes)


@dataclass(frozen=True)
class StringPlan:
    """Random choices for one string, all but its noise.

    Attributes:
        recordings: (n,) positions among the recordings, one speaker's.
        gaps: (n + 1,) samples of silence before, between and behind them.
        level: gain of the recordings, dB.
        snr: power of the recordings over that of the noise, dB.
        pink: True for noise with a power of 1/f, False for white noise.
    """

    recordings: np.ndarray
    gaps: np.ndarray
    level: float
    snr: float
    pink: bool


@dataclass(frozen=True)
class DigitStrings:
    """Random access to strings of digits of one speaker each, drawn on demand; picklable.

    String i depends only on (seed, split, i) and the recordings of the split: training takes a
    large ``num_examples`` and so hardly sees a string twice; a test is fixed. A string never joins
    recordings of two splits or two speakers. Speakers, digits and the recordings of a digit are
    drawn uniformly; a recording is scaled by the level of its string, silence joins it to the next,
    and noise lies over the whole.

    Attributes:
        files: recordings with the digit as class, the speaker as group, and a split each.
        split: "train", "validation" or "test".
        num_examples: number of strings, at least 1.
        seed: of all strings, at least 0.
        min_digits: least number of digits in a string, at least 1.
        max_digits: greatest number.
        max_gap: greatest length of a silence, seconds; its least is 0.
        levels: least and greatest gain of the recordings, dB.
        snrs: least and greatest power of the recordings over that of the noise, dB.
        log_mel: parameters of the spectrograms.

    Raises:
        ValueError: a number out of its range, or a split without recordings.
    """

    files: LabelledFiles
    split: str
    num_examples: int
    seed: int = 0
    min_digits: int = 3
    max_digits: int = 7
    max_gap: float = 0.3
    levels: tuple[float, float] = (-12.0, 6.0)
    snrs: tuple[float, float] = (10.0, 40.0)
    log_mel: LogMel = TELEPHONE

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, received {self.split!r}")
        if self.num_examples < 1 or self.seed < 0 or self.max_gap < 0:
            raise ValueError(
                "num_examples, seed, max_gap: expected at least 1, 0 and 0, received "
                f"{self.num_examples}, {self.seed} and {self.max_gap}"
            )
        if not 1 <= self.min_digits <= self.max_digits:
            raise ValueError(
                "min_digits, max_digits: expected 1 <= min_digits <= max_digits, received "
                f"{self.min_digits} and {self.max_digits}"
            )
        for name in ("levels", "snrs"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name}: expected (least, greatest) dB, received {(low, high)}")
        if not self.files.indices(self.split):
            raise ValueError(
                f"split: expected one with recordings, received {self.split!r}, which has none"
            )

    def __len__(self) -> int:
        return self.num_examples

    def __getstate__(self) -> dict[str, Any]:
        # Without the recordings, which another process decodes again.
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"DigitStrings({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the strings, for JSON."""
        drawn = ("split", "num_examples", "min_digits", "max_digits", "max_gap")
        return {
            **self.files.take(self.files.indices(self.split)).describe(),
            **{name: getattr(self, name) for name in drawn},
            "string_seed": self.seed,
            "levels": list(self.levels),
            "snrs": list(self.snrs),
            "log_mel": self.log_mel.describe(),
        }

    @functools.cached_property
    def alphabet(self) -> Alphabet:
        """The digits and the blank."""
        return Alphabet.from_texts([" ", *self.files.class_names])

    def plan(self, index: int) -> StringPlan:
        """Returns the choices for string ``index``.

        Raises:
            IndexError: the index is out of range.
        """
        return self._draw(index)[0]

    def text(self, index: int) -> str:
        """Returns the digits of string ``index`` between blanks, as "3 5 7"."""
        return self._text(self.plan(index).recordings)

    def __getitem__(self, index: int, /) -> TranscriptExample:
        """Returns string ``index``.

        ``spectrogram`` (T,M) float32, ``lengths`` () int32 = T, ``tokens`` (L,) int32 in 1..K,
        ``token_lengths``, ``mask`` () bool = True, ``index``.
        """
        plan, rng = self._draw(index)
        spectrogram = self.log_mel(self._join(plan, rng))
        tokens = self.alphabet.encode(self._text(plan.recordings))
        return make_transcript(spectrogram, tokens, index, self.log_mel.num_mels)

    def waveform(self, index: int) -> np.ndarray:
        """Returns the samples of string ``index``, (S,) float32 in [-1,1]."""
        return self._join(*self._draw(index))

    def lengths(self) -> np.ndarray:
        """Returns the frames of each string, (N,) int32 >= 1, without joining any."""
        return self._lengths.copy()

    def token_lengths(self) -> np.ndarray:
        """Returns the number of characters of each text, (N,) int32."""
        widths = np.array([len(name) for name in self.files.class_names])
        labels = np.asarray(self.files.labels)
        plans = (self.plan(index).recordings for index in range(len(self)))
        return np.array([widths[labels[p]].sum() + len(p) - 1 for p in plans], np.int32)

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        sizes = self._waveforms.sizes()
        plans = (self.plan(index) for index in range(len(self)))
        samples = (int(sizes[plan.recordings].sum() + plan.gaps.sum()) for plan in plans)
        return np.array([self.log_mel.num_frames(count) for count in samples], np.int32)

    @functools.cached_property
    def _waveforms(self) -> Waveforms:
        return Waveforms(self.files.paths, self.log_mel.sample_rate)

    @functools.cached_property
    def _pools(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Positions of the usable recordings of the split, by speaker and digit."""
        usable = [i for i in self.files.indices(self.split) if self._waveforms.sizes()[i]]
        cells: dict[str, dict[int, list[int]]] = {}
        for position in usable:
            digits = cells.setdefault(self.files.groups[position], {})
            digits.setdefault(self.files.labels[position], []).append(position)
        if not cells:
            raise ValueError(
                f"split: expected recordings that can be decoded, received none in {self.split!r}"
            )
        return tuple(
            tuple(tuple(found) for _, found in sorted(digits.items()))
            for _, digits in sorted(cells.items())
        )

    def _draw(self, index: int) -> tuple[StringPlan, np.random.Generator]:
        """Returns the choices for a string, and the generator of its noise."""
        number = operator.index(index)
        if not 0 <= number < self.num_examples:
            raise IndexError(f"index: expected 0..{self.num_examples - 1}, received {number}")
        stream = (SPLITS.index(self.split), number)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))
        digits = self._pools[rng.integers(len(self._pools))]
        count = int(rng.integers(self.min_digits, self.max_digits + 1))
        cells = [digits[k] for k in rng.integers(len(digits), size=count)]
        plan = StringPlan(
            recordings=np.array([cell[rng.integers(len(cell))] for cell in cells]),
            gaps=np.round(
                rng.uniform(0, self.max_gap, count + 1) * self.log_mel.sample_rate
            ).astype(np.int64),
            level=float(rng.uniform(*self.levels)),
            snr=float(rng.uniform(*self.snrs)),
            pink=bool(rng.integers(2)),
        )
        return plan, rng

    def _join(self, plan: StringPlan, rng: np.random.Generator) -> np.ndarray:
        parts = [np.zeros(plan.gaps[0], np.float32)]
        for recording, gap in zip(plan.recordings, plan.gaps[1:], strict=True):
            parts += [self._waveforms[int(recording)], np.zeros(gap, np.float32)]
        spoken = np.concatenate(parts) * np.float32(np.exp(plan.level * _TO_AMPLITUDE))
        # Of the digits alone, so that gaps do not change the noise.
        power = np.square(spoken, dtype=np.float64).sum() / max(len(spoken) - plan.gaps.sum(), 1)
        deviation = np.sqrt(power) * np.exp(-plan.snr * _TO_AMPLITUDE)
        noise = draw_noise(len(spoken), rng, pink=plan.pink)
        return np.clip(spoken + np.float32(deviation) * noise, -1, 1)

    def _text(self, recordings: Sequence[int] | np.ndarray) -> str:
        return " ".join(self.files.class_names[self.files.labels[k]] for k in recordings)


def draw_noise(num_samples: int, rng: np.random.Generator, *, pink: bool = False) -> np.ndarray:
    """Returns Gaussian noise with a variance of 1, (S,) float32.

    Args:
        num_samples: S.
        rng: random numbers.
        pink: power of 1/f (Hz), from the lowest frequency of the signal on; False: white.
    """
    noise = rng.standard_normal(num_samples)
    if not pink or num_samples < 2:
        return noise.astype(np.float32)
    spectrum = np.fft.rfft(noise)
    shape = np.zeros(len(spectrum))
    shape[1:] = 1 / np.sqrt(np.arange(1, len(spectrum)))
    shaped = np.fft.irfft(spectrum * shape, num_samples)
    # The power of its shape, not that of this sample, which would make noise of one sample 1.
    power = (2 * np.square(shape).sum() - (num_samples % 2 == 0) * shape[-1] ** 2) / num_samples
    found: np.ndarray = (shaped / np.sqrt(power)).astype(np.float32)
    return found
