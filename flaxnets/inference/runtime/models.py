"""Trained models in use: files or arrays in, typed results out, in batches."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from .columns import SoundPreprocessing
from .functions import CaptionerFunctions, ClassifierFunctions
from .media import DEFAULT_LIMITS, Limits, MediaError, Source, Video, read_image
from .preprocessing import ClipPreprocessing, ImagePreprocessing, StreamPreprocessing, Views
from .readers import TRANSCRIPTION
from .results import Caption, Prediction
from .sound import read_recording
from .words import Words

VIDEO, IMAGE, SOUND, CAPTIONING = (
    "video_classification",
    "image_classification",
    "sound_classification",
    "captioning",
)
CLASSIFICATION = (VIDEO, IMAGE, SOUND)
KINDS = (*CLASSIFICATION, CAPTIONING, TRANSCRIPTION)
"""Values of ``kind`` in a ``model.json``."""

MAX_FRAMES = 512
"""Frames that one call of a model's functions is given, if that is at least one clip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """Classifier of videos, images or sounds.

    Arrays of pictures are RGB, uint8 in [0,255]. Every number of clips up to the next power of two
    is one bucket, for which the functions are compiled once.
    """

    name: str
    """Of the model, in words."""
    kind: str
    """``video_classification``, ``image_classification`` or ``sound_classification``."""
    labels: tuple[str, ...]
    """Names of the K classes."""
    preprocessing: (
        ClipPreprocessing | StreamPreprocessing | ImagePreprocessing | SoundPreprocessing
    ) = dataclasses.field(repr=False)
    functions: ClassifierFunctions = dataclasses.field(repr=False)
    card: str = dataclasses.field(default="", repr=False)
    """Model card, Markdown; empty if there is none."""
    limits: Limits = DEFAULT_LIMITS
    """Bounds of a file."""

    @overload
    def predict(self, source: Source, *, rate: float | None = None) -> Prediction: ...  # type: ignore
    @overload
    def predict(
        self, source: Sequence[Source], *, rate: float | None = None
    ) -> list[Prediction]: ...
    def predict(
        self, source: Source | Sequence[Source], *, rate: float | None = None
    ) -> Prediction | list[Prediction]:
        """Returns the prediction of a video, image or sound, or those of several.

        Of a sound longer than the model's windows, the probabilities of several are averaged.

        Args:
          source: a path or array, or a list of them. A video (T,H,W,3), an image (H,W,3), uint8; a
            sound (S,), float in [-1,1] or int16.
          rate: frames/s of arrays of video, by default 30; samples/s of those of sound.

        Raises:
          FileNotFoundError: there is no such file.
          MediaError: a file that cannot be read, or exceeds ``limits``.
          ValueError: an array of another shape or dtype.
        """
        found = []
        for prediction in self.predict_each(_as_list(source), rate=rate):
            if isinstance(prediction, OSError):
                raise prediction
            found.append(prediction)
        return found if isinstance(source, (list, tuple)) else found[0]

    def predict_each(
        self, sources: Iterable[Source], *, rate: float | None = None
    ) -> Iterator[Prediction | OSError]:
        """Yields the prediction of each source, in order, or the error of one that is unreadable.

        One source is read at a time, as soon as it is asked for.
        """
        for batch in _batches(sources, self._read(rate), self._rows_per_call):
            yield from _with_errors(batch, self.classify)

    def stream(self, window: int | None = None, **options: Any) -> Any:
        """Returns a function of the frames of a stream, see ``runtime.streaming.Stream``.

        Args:
          window: number of last steps that are classified anew at each step, for models that read
            both directions; None: one step with its carry, for causal models.
          **options: of ``Stream``, or of ``sound_streaming.SoundStream``.

        Raises:
          ValueError: a classifier of images, or a bidirectional one without ``window``.
        """
        if self.kind == SOUND:
            if window is not None:
                raise ValueError(f"window: expected None of a sound, received {window}")
            from .sound_streaming import SoundStream

            return SoundStream(self, **options)
        from .streaming import Stream

        return Stream(self, window=window, **options)

    @property
    def _rows_per_call(self) -> int:
        preprocessing = self.preprocessing
        if isinstance(preprocessing, ClipPreprocessing):
            frames = preprocessing.num_frames
        elif isinstance(preprocessing, StreamPreprocessing):
            frames = preprocessing.num_steps * len(preprocessing.streams)
        else:
            return 32
        return 1 << (max(1, MAX_FRAMES // frames).bit_length() - 1)

    def _read(self, rate: float | None) -> Callable[[Source], Views]:
        return lambda source: read_views(source, self.preprocessing, rate, self.limits)

    def classify(self, batch: Sequence[Views]) -> list[Prediction]:
        """Returns the prediction of each of several inputs, as ``read_views`` reads them."""
        frames = np.concatenate([views.frames for views in batch])
        lengths = np.concatenate([views.lengths for views in batch])
        probabilities, steps = [], []
        for start in range(0, len(frames), self._rows_per_call):
            rows = slice(start, start + self._rows_per_call)
            padded, count = _pad_rows((frames[rows], lengths[rows]))
            clips = self.functions.classify(*padded)
            probabilities.append(np.asarray(clips.probabilities)[:count])
            if clips.steps is not None and self.kind == VIDEO:
                steps.append(np.asarray(clips.steps)[:count])
        all_rows = np.concatenate(probabilities)
        all_steps = np.concatenate(steps) if steps else all_rows
        predictions, start = [], 0
        for views in batch:
            rows = slice(start, start + len(views.frames))
            start = rows.stop
            mean = all_rows[rows].mean(axis=0, dtype=np.float64).astype(np.float32)
            timed = _average_in_time(views, all_steps[rows]) if steps else (None, None)
            predictions.append(Prediction(self.labels, mean, *timed))
        return predictions


def read_views(
    source: Source,
    preprocessing: ClipPreprocessing
    | StreamPreprocessing
    | ImagePreprocessing
    | SoundPreprocessing,
    rate: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Views:
    """Returns what a classifier sees of a video, image or sound.

    Args:
      source: as for ``Classifier.predict``.
      preprocessing: of the model.
      rate: frames/s of an array of video, by default 30, or samples/s of one of sound.
      limits: bounds of a file.

    Raises:
      OSError, ValueError: as ``Classifier.predict``.
    """
    if isinstance(preprocessing, SoundPreprocessing):
        samples = read_recording(
            source,
            preprocessing.sample_rate,
            rate=rate,
            max_seconds=preprocessing.max_seconds,
            limits=limits,
        )
        return Views(*preprocessing.windows(samples))
    if not isinstance(preprocessing, ImagePreprocessing):
        return preprocessing(Video(source, rate=rate or 30.0, limits=limits))
    image = preprocessing(read_image(source, limits))
    return Views(image[None, None], np.ones(1, np.int32), np.zeros((1, 1), np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioner:
    """Captioner of images; arrays are RGB (H,W,3), uint8 in [0,255]."""

    name: str
    """Of the model, in words."""
    words: Words = dataclasses.field(repr=False)
    """Of the token ids."""
    preprocessing: ImagePreprocessing = dataclasses.field(repr=False)
    functions: CaptionerFunctions = dataclasses.field(repr=False)
    card: str = dataclasses.field(default="", repr=False)
    """Model card, Markdown; empty if there is none."""
    limits: Limits = DEFAULT_LIMITS
    """Bounds of a file."""
    kind: str = CAPTIONING
    labels: tuple[str, ...] = ()
    """None: a captioner has no classes."""

    @overload
    def caption(  # type: ignore
        self, source: Source, *, num_captions: int = 1, attention: bool = False
    ) -> list[Caption]: ...
    @overload
    def caption(
        self, source: Sequence[Source], *, num_captions: int = 1, attention: bool = False
    ) -> list[list[Caption]]: ...
    def caption(
        self,
        source: Source | Sequence[Source],
        *,
        num_captions: int = 1,
        attention: bool = False,
    ) -> list[Caption] | list[list[Caption]]:
        """Returns the captions of an image, best first, or those of each of several.

        Args:
          source: a path or array, or a list of them.
          num_captions: captions of each image, at least 1.
          attention: return the attention weights at each word, too.

        Raises:
          FileNotFoundError: there is no such file.
          MediaError: a file that cannot be read, or exceeds ``limits``.
          ValueError: more captions than the search finds, attention of a decoder without, or an
            array of another shape or dtype.
        """
        found = []
        captioned = self.caption_each(
            _as_list(source), num_captions=num_captions, attention=attention
        )
        for captions in captioned:
            if isinstance(captions, OSError):
                raise captions
            found.append(captions)
        return found if isinstance(source, (list, tuple)) else found[0]

    def caption_each(
        self, sources: Iterable[Source], *, num_captions: int = 1, attention: bool = False
    ) -> Iterator[list[Caption] | OSError]:
        """Yields the captions of each source, in order, or the error of one that is unreadable."""

        def read(source: Source) -> np.ndarray:
            return self.preprocessing(read_image(source, self.limits))[None]

        def caption(images: list[np.ndarray]) -> list[list[Caption]]:
            return self._caption(np.concatenate(images), num_captions, attention)

        for batch in _batches(sources, read, 32):
            yield from _with_errors(batch, caption)

    def _caption(
        self, images: np.ndarray, num_captions: int, attention: bool
    ) -> list[list[Caption]]:
        (padded,), count = _pad_rows((images,))
        found = self.functions.caption(padded, num_captions, attention=attention)
        captions: list[list[Caption]] = []
        for row in range(count):
            captions.append([])
            for k in range(min(num_captions, found.tokens.shape[1])):
                length = int(found.lengths[row, k])
                tokens = [int(token) for token in found.tokens[row, k, :length]]
                if not tokens:  # An empty slot of the search.
                    continue
                ended = tokens[-1] == self.words.end
                tokens = tokens[:-1] if ended else tokens
                weights = None
                if found.attention is not None:
                    weights = np.asarray(found.attention[row, k, : len(tokens)], np.float32)
                captions[-1].append(
                    Caption(
                        tuple(self.words.word(token) for token in tokens),
                        self.words.text(tokens),
                        float(found.log_probabilities[row, k]),
                        ended,
                        weights,
                    )
                )
        return captions


def _as_list(source: Source | Sequence[Source]) -> Sequence[Source]:
    return source if isinstance(source, (list, tuple)) else [source]  # type: ignore[list-item]


def _batches(
    sources: Iterable[Source], read: Callable[[Source], Any], most_rows: int
) -> Iterator[list[Any]]:
    """Yields lists of what was read, or of the error, of at most ``most_rows`` rows in all."""
    batch: list[Any] = []
    rows = 0
    for source in sources:
        try:
            item = read(source)
            size = len(item.frames) if isinstance(item, Views) else len(item)
        except (MediaError, FileNotFoundError) as error:
            item, size = error, 0
        if batch and rows + size > most_rows:
            yield batch
            batch, rows = [], 0
        batch.append(item)
        rows += size
    if batch:
        yield batch


def _with_errors(batch: list[Any], run: Callable[[list[Any]], list[Any]]) -> Iterator[Any]:
    """Yields the results of the readable items of a batch, and the errors in their places."""
    readable = [item for item in batch if not isinstance(item, OSError)]
    results = iter(run(readable) if readable else [])
    for item in batch:
        yield item if isinstance(item, OSError) else next(results)


def _pad_rows(arrays: tuple[np.ndarray, ...]) -> tuple[tuple[np.ndarray, ...], int]:
    """Returns arrays whose first axis is the next power of two, the last row repeated; and B."""
    count = len(arrays[0])
    size = 1 << (count - 1).bit_length()
    return tuple(np.concatenate([a, np.repeat(a[-1:], size - count, 0)]) for a in arrays), count


def _average_in_time(views: Views, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the times (N,) at which any clip has a step, and the mean (N,K) of those there."""
    valid = np.arange(views.times.shape[1]) < views.lengths[:, None]
    times, places = np.unique(views.times[valid], return_inverse=True)
    sums = np.zeros((len(times), steps.shape[-1]))
    np.add.at(sums, places, steps[valid])
    return times, (sums / np.bincount(places)[:, None]).astype(np.float32)
