"""Trained readers in use: lines of text or recordings of speech in, typed transcripts out."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from .columns import Columns, LinePreprocessing, SoundPreprocessing
from .functions import ReaderFunctions, Texts
from .media import DEFAULT_LIMITS, Limits, MediaError, Source, check_image, read_image
from .results import Character, Transcript
from .sound import read_recording, wrong_kind

TRANSCRIPTION = "transcription"
"""Value of ``kind`` in a ``model.json``."""

READ_AT_ONCE = 64
"""Sources that are held at a time, which are read together where their widths are alike."""
MOST_COLUMNS = 1 << 15
"""Columns that one call of a model's functions is given, if that is at least one row."""
_ROWS = (16, 4, 1)
"""Numbers of rows for which functions are compiled: any number is a sum of them, so that no row is
padding."""
_LEAST_WIDTH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Reader of lines of text, or of speech.

    Widths are filled up with padding, which changes nothing, to the next of 64, 96, 128, 192, 256,
    …, and the functions are compiled once for each of these and for 1, 4 and 16 rows.
    """

    name: str
    """Of the model, in words."""
    alphabet: tuple[str, ...] = dataclasses.field(repr=False)
    """Characters of the ids 1 to K."""
    preprocessing: LinePreprocessing | SoundPreprocessing = dataclasses.field(repr=False)
    functions: ReaderFunctions = dataclasses.field(repr=False)
    card: str = dataclasses.field(default="", repr=False)
    """Model card, Markdown; empty if there is none."""
    limits: Limits = DEFAULT_LIMITS
    """Bounds of a file."""
    kind: str = TRANSCRIPTION
    labels: tuple[str, ...] = ()
    """None: a reader has no classes."""

    @property
    def reads_sound(self) -> bool:
        """True for a reader of speech, False for one of lines."""
        return isinstance(self.preprocessing, SoundPreprocessing)

    @overload
    def read(  # type: ignore
        self, source: Source, *, rate: float | None = None, beam_width: int | None = None
    ) -> Transcript: ...
    @overload
    def read(
        self, source: Sequence[Source], *, rate: float | None = None, beam_width: int | None = None
    ) -> list[Transcript]: ...
    def read(
        self,
        source: Source | Sequence[Source],
        *,
        rate: float | None = None,
        beam_width: int | None = None,
    ) -> Transcript | list[Transcript]:
        """Returns the text of a line or recording, or those of several.

        Args:
          source: a path or array, or a list of them. A line is (H,W), (H,W,1) or (H,W,3) uint8 in
            [0,255]; a recording (S,) float in [-1,1] or int16.
          rate: samples/s of arrays of sound; needed for them.
          beam_width: prefixes of the beam search; 0: greedy; None: the model's own.

        Raises:
          FileNotFoundError: there is no such file.
          MediaError: a file that cannot be read, is silent, too wide or too long, or exceeds
            ``limits``.
          ValueError: an array of another shape or dtype, no rate, or a width of the beam that an
            export does not have.
        """
        found = []
        sources: Any = source if isinstance(source, (list, tuple)) else [source]
        for transcript in self.read_each(sources, rate=rate, beam_width=beam_width):
            if isinstance(transcript, OSError):
                raise transcript
            found.append(transcript)
        return found if isinstance(source, (list, tuple)) else found[0]

    def read_each(
        self,
        sources: Iterable[Source],
        *,
        rate: float | None = None,
        beam_width: int | None = None,
    ) -> Iterator[Transcript | OSError]:
        """Yields the transcript of each source, in order, or the error of one that is unreadable.

        Arguments are those of ``read``.
        """
        width = self.functions.beam_width if beam_width is None else beam_width
        if width < 0:
            raise ValueError(f"beam_width: expected at least 0, received {width}")
        held: list[Columns | OSError] = []
        for source in sources:
            try:
                held.append(self.prepare(source, rate=rate))
            except (MediaError, FileNotFoundError) as error:
                held.append(error)
            if len(held) == READ_AT_ONCE:
                yield from self._read_all(held, width)
                held = []
        yield from self._read_all(held, width)

    def prepare(self, source: Source, *, rate: float | None = None) -> Columns:
        """Returns what the network reads of a source; arguments and errors as ``read``."""
        return read_columns(source, self.preprocessing, rate, self.limits)

    def transcribe(self, columns: Columns) -> Transcript:
        """Returns the text of what ``prepare`` returned."""
        (transcript,) = self._read_all([columns], self.functions.beam_width)
        return transcript

    def stream(self, chunk: float = 0.32) -> Any:
        """Returns a function of the samples of a stream, see ``sound_streaming.SoundStream``.

        Args:
          chunk: seconds of sound that are read at a time.

        Raises:
          ValueError: a reader of lines, or a model that needs the whole recording; says what to
            train instead.
        """
        from .sound_streaming import SoundStream

        return SoundStream(self, chunk=chunk)

    def _read_all(self, held: list[Columns | OSError], beam_width: int) -> Iterator[Any]:
        """Yields transcripts and errors, after reading those of alike widths together."""
        found: list[Transcript | OSError | None] = [
            item if isinstance(item, OSError) else None for item in held
        ]
        buckets: dict[int, list[int]] = {}
        for number, item in enumerate(held):
            if not isinstance(item, OSError):
                buckets.setdefault(self._padded_width(item.width), []).append(number)
        for width, numbers in buckets.items():
            start = 0
            for rows in _split_rows(len(numbers), width):
                chosen = numbers[start : start + rows]
                start += rows
                items: Any = [held[number] for number in chosen]
                inputs = np.stack([_pad_to(item, width) for item in items])
                lengths = np.array([item.width for item in items], np.int32)
                texts = self.functions.read(inputs, lengths, beam_width)
                for row, number in enumerate(chosen):
                    found[number] = self._describe(texts, row, items[row])
        yield from found

    def _padded_width(self, width: int) -> int:
        size = _LEAST_WIDTH
        while size < width:
            size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
        stride = self.functions.stride
        return -(-size // stride) * stride

    def _describe(self, texts: Texts, row: int, item: Columns) -> Transcript:
        length = int(texts.lengths[row])
        names = [self.alphabet[int(token) - 1] for token in texts.tokens[row, :length]]
        characters = tuple(
            Character(
                name,
                float(texts.character_confidences[row, k]),
                *self.span(int(texts.starts[row, k]), int(texts.ends[row, k]), item),
            )
            for k, name in enumerate(names)
        )
        return Transcript("".join(names), float(texts.confidences[row]), characters)

    def span(self, start: int, end: int, item: Columns) -> tuple[float, float]:
        """Returns steps as columns of the image as it was, whole ones, or as seconds to 1 ms."""
        scale = self.functions.stride * item.scale
        if self.reads_sound:
            return round(start * scale, 3), round(min(end * scale, item.extent), 3)
        return round(start * scale), min(round(end * scale), int(item.extent))


def read_columns(
    source: Source,
    preprocessing: LinePreprocessing | SoundPreprocessing,
    rate: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Columns:
    """Returns what a network reads of a line or recording.

    Args:
      source: as for ``Reader.read``.
      preprocessing: of the model.
      rate: samples/s of an array of sound.
      limits: bounds of a file.

    Raises:
      OSError, ValueError: as ``Reader.read``.
    """
    if isinstance(preprocessing, SoundPreprocessing):
        samples = read_recording(
            source,
            preprocessing.sample_rate,
            rate=rate,
            max_seconds=preprocessing.max_seconds,
            limits=limits,
        )
        return preprocessing(samples)
    if isinstance(source, np.ndarray):
        return preprocessing(check_image(source, limits))
    if (error := wrong_kind(str(source), "image")) is not None:
        raise error
    return preprocessing(read_image(source, limits), str(source))


def _split_rows(count: int, width: int) -> Iterator[int]:
    """Yields numbers of rows whose sum is ``count``, as few as memory and ``_ROWS`` allow."""
    for rows in _ROWS:
        if rows > 1 and rows * width > MOST_COLUMNS:
            continue
        while count >= rows:
            yield rows
            count -= rows


def _pad_to(item: Columns, width: int) -> np.ndarray:
    axis = 1 if item.inputs.ndim == 3 else 0
    padding = [(0, 0)] * item.inputs.ndim
    padding[axis] = (0, width - item.width)
    return np.pad(item.inputs, padding)
