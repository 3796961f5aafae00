"""Recordings as examples: log-mel spectrograms with a transcript or a label."""

import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from data.audio.decoding import AudioError, read_sound
from data.audio.log_mel import SOUND, SPEECH, LogMel
from data.batches import UNKNOWN_LABEL, SoundExample, TranscriptExample
from data.loader import available_cpus, describe_examples
from data.text_lines.alphabet import Alphabet, check_texts, normalise

SILENCE = 2.0**-15
"""A recording none of whose samples exceeds it, one step of 16 bits, is silent."""
MAX_SECONDS = 120.0
"""Default greatest length of a recording; at 10 ms a frame its spectrogram has 12,000 frames."""
MEMORY_BYTES = 2**31
"""Default size of the spectrograms that are kept in memory, 2 GiB: 23 hours of 64 bands at 20 ms
a frame."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recordings:
    """Random access to the log-mel spectrograms of files; picklable.

    Each file is decoded once in a process, and its spectrogram is kept in memory while there is
    room; copies that are pickled start empty.

    Attributes:
        paths: the files.
        log_mel: parameters of the spectrograms; files of another rate are resampled to its rate,
            and the log says so once.
        max_seconds: greatest length of a recording.
        may_be_silent: of each file; empty: none may.
        memory_bytes: most bytes of spectrograms in memory.

    Raises:
        ValueError: no files, or a length that is not above 0.
    """

    paths: tuple[str, ...]
    log_mel: LogMel
    max_seconds: float = MAX_SECONDS
    may_be_silent: tuple[bool, ...] = ()
    memory_bytes: int = MEMORY_BYTES
    _kept: dict[int, np.ndarray | None] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths: expected at least one recording, received none")
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds: expected more than 0 s, received {self.max_seconds}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "_lengths"}
        return {**state, "_kept": {}}

    def spectrogram(self, index: int) -> np.ndarray | None:
        """Returns (T,M) float32, which must not be changed; None if the recording is unusable."""
        if index in self._kept:
            return self._kept[index]
        try:
            found = self.log_mel(self._read(index))
        except (AudioError, FileNotFoundError):
            self._kept[index] = None
            return None
        # The mean size so far would need a sum that threads share; the last one is near enough.
        if (len(self._kept) + 1) * found.nbytes <= self.memory_bytes:
            found.flags.writeable = False
            self._kept[index] = found
        return found

    def explain(self, index: int) -> str:
        """Returns why recording ``index`` is unusable."""
        try:
            self._read(index)
        except (AudioError, FileNotFoundError) as error:
            return str(error)
        return f"{self.paths[index]}: decoding failed before, but succeeds now"

    def lengths(self) -> np.ndarray:
        """Returns the frames of each spectrogram, (N,) int32; 1 for unusable recordings.

        The headers of compressed files tell them only nearly, so the first call decodes all files.
        """
        return self._lengths.copy()

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        def measure(index: int) -> int:
            found = self.spectrogram(index)
            return 1 if found is None else len(found)

        with ThreadPoolExecutor(min(available_cpus(), 16)) as threads:
            return np.array(list(threads.map(measure, range(len(self)))), np.int32)

    def _read(self, index: int) -> np.ndarray:
        return read_usable(
            self.paths[index],
            self.log_mel.sample_rate,
            max_seconds=self.max_seconds,
            may_be_silent=bool(self.may_be_silent) and self.may_be_silent[index],
        )


@dataclass(frozen=True)
class Waveforms:
    """Random access to the samples of short files, which are all decoded once and kept; picklable.

    Attributes:
        paths: the files.
        sample_rate: samples/s to which they are resampled.
    """

    paths: tuple[str, ...]
    sample_rate: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "sample_rate": self.sample_rate}

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Returns (S,) float32 in [-1,1], which must not be changed; empty if it is unusable."""
        return self._samples[index]

    def sizes(self) -> np.ndarray:
        """Returns the number of samples of each file, (N,) int64; 0 for unusable ones."""
        return self._sizes

    @functools.cached_property
    def _samples(self) -> list[np.ndarray]:
        with ThreadPoolExecutor(min(available_cpus(), 16)) as threads:
            return list(threads.map(self._read, self.paths))

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([len(samples) for samples in self._samples], np.int64)

    def _read(self, path: str) -> np.ndarray:
        try:
            sound = read_usable(path, self.sample_rate)
        except (AudioError, FileNotFoundError) as error:
            _logger.warning("left out an unusable recording: %s", error)
            return np.zeros(0, np.float32)
        sound.flags.writeable = False
        return sound


def read_usable(
    path: str,
    sample_rate: int,
    *,
    max_seconds: float = MAX_SECONDS,
    may_be_silent: bool = False,
) -> np.ndarray:
    """Reads a recording as mono, resampled, which the log says once for each rate.

    Args:
        path: the file.
        sample_rate: samples/s of the result.
        max_seconds: greatest length.
        may_be_silent: accepts a recording none of whose samples exceeds ``SILENCE``.

    Returns:
        (S,) float32 in [-1,1].

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: it cannot be decoded, is too long or silent; the message is "path: reason".
    """
    sound = read_sound(path, sample_rate)
    if sound.file_rate != sample_rate:
        _tell_resampling(sound.file_rate, sample_rate)
    seconds = len(sound.samples) / sample_rate
    if seconds > max_seconds:
        raise AudioError(
            path,
            f"expected at most {max_seconds:g} s, received {seconds:.1f} s; cut the recording, or "
            "give a larger data.max_seconds",
        )
    if not may_be_silent and np.abs(sound.samples).max(initial=0) <= SILENCE:
        raise AudioError(path, "silence: none of its samples exceeds one step of 16 bits")
    return sound.samples


@functools.cache
def _tell_resampling(file_rate: int, rate: int) -> None:
    _logger.warning(
        "recordings of %d samples/s are resampled to %d, the rate of the model", file_rate, rate
    )


@dataclass(frozen=True)
class SpeechSource:
    """Random access to recordings and their texts, as examples of a recogniser; picklable.

    A recording that cannot be decoded, is too long, or is silent although it has a text, becomes an
    example of one frame of zeros with ``mask`` False and no tokens; ``explain`` says why.

    Attributes:
        paths: the recordings.
        texts: of each; composed (NFC) before they are encoded.
        alphabet: characters with their ids.
        log_mel: parameters of the spectrograms.
        max_seconds: greatest length of a recording.
        unknown: treatment of characters that the alphabet lacks: "error", or "drop" to leave them
            out of ``tokens``.
        memory_bytes: most bytes of spectrograms in memory.
        accept_silence: a recording with an empty text may be silent; False where texts are unknown.

    Raises:
        ValueError: other numbers of texts and paths, no recordings, an unknown treatment, or texts
            with characters that the alphabet lacks, which are named.
    """

    paths: tuple[str, ...]
    texts: tuple[str, ...]
    alphabet: Alphabet
    log_mel: LogMel = SPEECH
    max_seconds: float = MAX_SECONDS
    unknown: Literal["error", "drop"] = "error"
    memory_bytes: int = MEMORY_BYTES
    accept_silence: bool = True

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.texts) or not self.paths:
            raise ValueError(
                f"texts: expected one for each of the paths, at least one, received "
                f"{len(self.texts)} for {len(self.paths)} paths"
            )
        if self.unknown not in ("error", "drop"):
            raise ValueError(f"unknown: expected 'error' or 'drop', received {self.unknown!r}")
        if self.unknown == "error":
            check_texts(self.texts, self.alphabet)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"SpeechSource({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON."""
        return {
            **describe_examples(self.paths, self.texts),
            "log_mel": self.log_mel.describe(),
            "max_seconds": self.max_seconds,
            "characters": len(self.alphabet),
        }

    @functools.cached_property
    def unknown_characters(self) -> dict[str, int]:
        """Characters of the texts that the alphabet lacks -> their number."""
        return self.alphabet.unknown(self.texts)

    def __getitem__(self, index: int, /) -> TranscriptExample:
        """Returns recording ``index``.

        ``spectrogram`` (T,M) float32, ``lengths`` () int32 = T, ``tokens`` (L,) int32 in 1..K,
        ``token_lengths``, ``mask``, ``index``.
        """
        spectrogram = self._recordings.spectrogram(index)
        tokens = np.zeros(0, np.int32) if spectrogram is None else self._tokens(index)
        return make_transcript(spectrogram, tokens, index, self.log_mel.num_mels)

    def explain(self, index: int) -> str:
        """Returns why recording ``index`` has ``mask`` False."""
        return self._recordings.explain(index)

    def lengths(self) -> np.ndarray:
        """Returns the frames of each example, (N,) int32 >= 1; see ``Recordings.lengths``."""
        return self._recordings.lengths()

    def token_lengths(self) -> np.ndarray:
        """Returns the number of characters of each text, (N,) int32 >= 0."""
        return np.array([len(self._tokens(index)) for index in range(len(self))], np.int32)

    @functools.cached_property
    def _recordings(self) -> Recordings:
        empty = tuple(self.accept_silence and not text.strip() for text in self.texts)
        return Recordings(self.paths, self.log_mel, self.max_seconds, empty, self.memory_bytes)

    def _tokens(self, index: int) -> np.ndarray:
        text = normalise(self.texts[index])
        if self.unknown_characters:
            text = "".join(character for character in text if character in self.alphabet)
        return self.alphabet.encode(text)


def make_transcript(
    spectrogram: np.ndarray | None, tokens: np.ndarray, index: int, num_mels: int
) -> TranscriptExample:
    """Returns an example of a recogniser.

    Args:
        spectrogram: (T,M) float32; None: it could not be decoded.
        tokens: (L,) int32 character ids.
        index: number of the example.
        num_mels: M.
    """
    frames = np.zeros((1, num_mels), np.float32) if spectrogram is None else spectrogram
    return TranscriptExample(
        spectrogram=frames,
        lengths=np.asarray(len(frames), np.int32),
        tokens=tokens,
        token_lengths=np.asarray(len(tokens), np.int32),
        mask=np.asarray(spectrogram is not None),
        index=np.asarray(index, np.int32),
    )


@dataclass(frozen=True)
class SoundSource:
    """Random access to recordings and their labels, as examples of a classifier; picklable.

    A recording that cannot be decoded, is too long or silent becomes an example of one frame of
    zeros with ``mask`` False and no label; ``explain`` says why. Lengths differ; ``CutSound`` makes
    clips of one length of them.

    Attributes:
        paths: the recordings.
        labels: class indices >= 0; None if they are unknown (prediction).
        log_mel: parameters of the spectrograms.
        max_seconds: greatest length of a recording.
        memory_bytes: most bytes of spectrograms in memory.

    Raises:
        ValueError: other numbers of labels and paths, or no recordings.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    log_mel: LogMel = SOUND
    max_seconds: float = MAX_SECONDS
    memory_bytes: int = MEMORY_BYTES

    def __post_init__(self) -> None:
        if not self.paths or (self.labels is not None and len(self.labels) != len(self.paths)):
            raise ValueError(
                f"labels: expected one for each of the paths, at least one, received "
                f"{len(self.labels or ())} for {len(self.paths)} paths"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        described = describe_examples(self.paths, self.labels or ())
        return f"SoundSource({described}, {self.log_mel}, {self.max_seconds})"

    def __getitem__(self, index: int, /) -> SoundExample:
        """Returns recording ``index``: ``spectrogram`` (T,M) float32, ``lengths`` = T, …."""
        spectrogram = self._recordings.spectrogram(index)
        label = UNKNOWN_LABEL
        if spectrogram is not None and self.labels is not None:
            label = self.labels[index]
        return make_labelled(spectrogram, label, index, self.log_mel.num_mels)

    def explain(self, index: int) -> str:
        """Returns why recording ``index`` has ``mask`` False."""
        return self._recordings.explain(index)

    def lengths(self) -> np.ndarray:
        """Returns the frames of each example, (N,) int32 >= 1; see ``Recordings.lengths``."""
        return self._recordings.lengths()

    @functools.cached_property
    def _recordings(self) -> Recordings:
        return Recordings(
            self.paths, self.log_mel, self.max_seconds, memory_bytes=self.memory_bytes
        )


def make_labelled(
    spectrogram: np.ndarray | None, label: int, index: int, num_mels: int
) -> SoundExample:
    """Returns an example of a classifier.

    Args:
        spectrogram: (T,M) float32; None: it could not be decoded.
        label: class index, or ``UNKNOWN_LABEL``.
        index: number of the example.
        num_mels: M.
    """
    frames = np.zeros((1, num_mels), np.float32) if spectrogram is None else spectrogram
    return SoundExample(
        spectrogram=frames,
        lengths=np.asarray(len(frames), np.int32),
        label=np.asarray(label, np.int32),
        mask=np.asarray(spectrogram is not None),
        index=np.asarray(index, np.int32),
    )


def cut_windows(
    frames: np.ndarray, num_frames: int, starts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns windows of a spectrogram, padded with zeros, and their numbers of valid frames.

    Args:
        frames: (T,M) float.
        num_frames: T' of the windows.
        starts: (V,) first frames in [0,T).

    Returns:
        (V,T',M) in the dtype of ``frames``, and (V,) int32 in 1..T'.
    """
    windows = np.zeros((len(starts), num_frames, frames.shape[1]), frames.dtype)
    lengths = np.zeros(len(starts), np.int32)
    for view, start in enumerate(starts):
        part = frames[start : start + num_frames]
        windows[view, : len(part)] = part
        lengths[view] = len(part)
    return windows, lengths
