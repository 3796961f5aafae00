"""Configuration of readers of speech: recordings, their spectrograms, and spoken digits."""

import csv
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from data.audio.augmentation import SpectrogramAugmentation
from data.audio.dial_tones import DialTones
from data.audio.digit_strings import DigitStrings, split_digits
from data.audio.drawing import draw_spectrogram
from data.audio.log_mel import LogMel
from data.audio.sources import SpeechSource
from data.datasets.audio_folder import read_sounds
from data.datasets.labelled_files import LabelledFiles
from data.datasets.splits import write_split
from data.loader import Loader
from experiments.classification.other_data import match_names, place
from experiments.transcription.config import (
    FILES,
    DrawnSource,
    TextsConfig,
    TranscriptionConfig,
    TranscriptSource,
    describe_sizes,
)
from flaxnets.configuration import check_at_least

DIGITS, TONES = "spoken_digits", "dial_tones"
"""Values of ``data.dataset`` for drawn strings."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class SpeechConfig(TextsConfig):
    """Location of the recordings, their split and spectrograms.

    ``dataset`` is ``files``; ``spoken_digits``: strings that are drawn and joined from recordings
    of single digits, whose table has the columns ``file``, ``digit`` and ``speaker``; or
    ``dial_tones``: generated sounds of telephone keys, for which no data are needed.
    """

    batch_width: int = 32 * 400
    num_examples: int = 2_000
    """Drawn examples only: those of the training split."""
    num_evaluated: int = 500
    """Drawn examples only: those of the validation split, and of the test split."""
    held_out_speaker: str = ""
    """``spoken_digits`` only: the speaker who alone is tested, for the error on a new voice; empty:
    recordings of all speakers train and are tested."""
    min_digits: int = 3
    """``spoken_digits`` only: least number of digits in a string."""
    max_digits: int = 7
    """``spoken_digits`` only: greatest number."""
    max_seconds: float = 35.0
    """Greatest length of a recording, seconds; longer ones are left out, and named."""
    sample_rate: int = 16_000
    """Samples/s; recordings of another rate are resampled, and the log says so."""
    window: float = 0.025
    """Length of the windows of the spectrogram, seconds."""
    hop: float = 0.01
    """Distance of its frames, seconds."""
    num_mels: int = 80
    """Bands."""
    low: float = 64.0
    """Lower end of the lowest band, Hz."""
    high: float = 7_600.0
    """Upper end of the highest band, Hz."""
    normalisation: str = "band"
    """Of a spectrogram: ``none``, ``all`` or ``band`` (``data/audio/log_mel.py``)."""


@dataclasses.dataclass
class SpeechAugmentationConfig:
    """Random changes of spectrograms in training (``data/audio/augmentation.py``)."""

    time_masks: int = 2
    """Masks over frames."""
    time_mask_width: int = 20
    """Greatest width of a mask, frames."""
    time_mask_share: float = 0.1
    """Greatest width of a mask, as a share of the frames."""
    band_masks: int = 2
    """Masks over bands."""
    band_mask_width: int = 10
    """Greatest width of a mask, bands."""
    speed: float = 0.1
    """Greatest change of the length, as a share."""
    pitch: float = 1.0
    """Greatest displacement of the spectrum, bands."""
    noise: float = 0.2
    """Greatest standard deviation of noise on all entries."""


@dataclasses.dataclass
class SpeechExperiment(TranscriptionConfig):
    """Experiment that reads speech; a paper's file sets its network and training."""

    kind: ClassVar[Literal["image", "recording"]] = "recording"
    noun: ClassVar[str] = "recordings"
    example_file: ClassVar[str] = "RECORDING.wav"
    datasets: ClassVar[tuple[str, ...]] = (FILES, DIGITS, TONES)

    data: SpeechConfig = dataclasses.field(default_factory=SpeechConfig)
    augmentation: SpeechAugmentationConfig = dataclasses.field(
        default_factory=SpeechAugmentationConfig
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._digits: LabelledFiles | None = None

    def validate(self) -> None:
        """Checks the values as ``TranscriptionConfig.validate``, and those of the sounds."""
        super().validate()
        data = self.data
        least = {"num_evaluated": 1, "min_digits": 1, "max_digits": data.min_digits}
        check_at_least("data", data, least)
        if not data.max_seconds > 0:
            raise ValueError(
                f"data.max_seconds: expected more than 0 s, received {data.max_seconds}"
            )
        if data.dataset == DIGITS and not (data.root or data.list):
            raise ValueError(
                "data.list: expected the table of the recordings of digits, with the columns file, "
                "digit and speaker; give --config.data.list=FILE"
            )
        if data.held_out_speaker and data.dataset != DIGITS:
            raise ValueError(
                f"data.held_out_speaker: expected '' for data.dataset={data.dataset}, whose groups "
                f"split by data.group_pattern, received {data.held_out_speaker!r}"
            )
        self.log_mel  # noqa: B018, refuses parameters that do not fit together.
        self.make_transform()

    # ---- Sounds ------------------------------------------------------------------------------

    @property
    def log_mel(self) -> LogMel:
        """Parameters of the spectrograms."""
        data = self.data
        return LogMel(
            data.sample_rate,
            data.window,
            data.hop,
            data.num_mels,
            data.low,
            data.high,
            data.normalisation,
        )

    @property
    def digits(self) -> LabelledFiles:
        """Recordings of digits with their split: that of the run's workdir, or else a new one.

        Of a trained model, recordings of which its run knew none are test data.
        """
        if self._digits is None:
            self._digits = self._read_digits()
        return self._digits

    def _read_digits(self) -> LabelledFiles:
        data = self.data
        root = "" if self._given.list and not self._given.root else data.root
        found = read_sounds(root, data.list, group_pattern=data.group_pattern)
        if self._split_file is None:
            return split_digits(
                found,
                held_out=data.held_out_speaker,
                seed=data.split_seed,
                validation_share=data.validation_share,
                test_share=data.test_share,
            )
        with self._split_file.open(encoding="utf-8", newline="") as file:
            splits = {row["path"]: row["split"] for row in csv.DictReader(file)}
        matched = match_names(found.names, list(splits))
        placed = place(matched, ("",) * len(found), splits, self._given, self.noun)
        if placed.note:
            logger.info("%s: %s", data.list, placed.note)
        return dataclasses.replace(found.take(placed.positions), splits=placed.splits)

    def make_drawn(self, split: str) -> DrawnSource:
        """Returns the drawn strings of a split."""
        data = self.data
        count = data.num_examples if split == "train" else data.num_evaluated
        if data.dataset == TONES:
            return DialTones(split, count, log_mel=self.log_mel)
        strings = DigitStrings(
            self.digits,
            split,
            count,
            min_digits=data.min_digits,
            max_digits=data.max_digits,
            log_mel=self.log_mel,
        )
        if self._alphabet is not None and strings.alphabet != self._alphabet:
            raise ValueError(
                f"data.list: expected recordings of the digits of the model, "
                f"{''.join(self._alphabet.characters).strip()}, received "
                f"{', '.join(self.digits.class_names)}"
            )
        return strings

    def make_source(self, paths: Sequence[str], texts: Sequence[str]) -> SpeechSource:
        """Returns recordings with their texts."""
        return SpeechSource(
            tuple(paths),
            tuple(texts),
            self.alphabet,
            log_mel=self.log_mel,
            max_seconds=self.data.max_seconds,
            unknown="drop",
        )

    def make_prediction_data(self, paths: Sequence[str]) -> Loader:
        """Returns the given recordings; unreadable and silent ones are masked."""
        # A network that never heard silence makes texts of it.
        source = self.make_source(paths, [""] * len(paths))
        return self.make_loader(dataclasses.replace(source, accept_silence=False), "")

    def make_transform(self) -> SpectrogramAugmentation:
        """Returns SpecAugment's masks, changes of speed and pitch, and noise, at random."""
        return SpectrogramAugmentation(**dataclasses.asdict(self.augmentation))

    def draw(self, example: Mapping[str, Any]) -> np.ndarray:
        """Returns a picture of the spectrogram, (H,W,3) uint8."""
        return draw_spectrogram(np.asarray(example["spectrogram"]), self.data.hop)

    def groups(self, split: str) -> Sequence[str]:
        """Returns the speaker of each string of digits, or the group of each recording."""
        strings = self._drawn(split) if self.drawn else None
        if not isinstance(strings, DigitStrings):
            return super().groups(split)
        speakers = strings.files.groups
        return [speakers[strings.plan(index).recordings[0]] for index in range(len(strings))]

    # ---- What a run keeps --------------------------------------------------------------------

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the parameters of the spectrograms."""
        return {"log_mel": self.log_mel.describe(), "max_seconds": self.data.max_seconds}

    def save_split(self, path: Path) -> None:
        """Writes the recordings with their split."""
        if self.data.dataset == DIGITS:
            write_split(path, self.digits)
        super().save_split(path)

    def load_assets(self, folder: Path) -> None:
        """Reads the alphabet of a trained model, and finds the split of its run."""
        super().load_assets(folder)
        self._digits = None

    # ---- What was chosen ---------------------------------------------------------------------

    def describe_inputs(self, source: TranscriptSource) -> str:
        """Returns number and lengths of the training recordings in words."""
        data = self.data
        seconds = source.lengths() * data.hop
        return (
            f"{len(source)} for training, {np.median(seconds):.2f} s long in the median, "
            f"{seconds.max():.2f} at most; {data.num_mels} bands every {1000 * data.hop:g} ms of "
            f"{data.sample_rate} Hz"
        )

    def describe_split(self) -> list[str]:
        """Returns a line with the sizes of the splits, and notes; none of generated sounds."""
        if self.data.dataset == DIGITS:
            digits = self.digits
            notes = [f"note          {note}" for note in digits.notes]
            return [describe_sizes(digits.splits, digits.groups), *notes]
        return super().describe_split()
