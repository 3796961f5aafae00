"""Streams of sound: samples in as they arrive, text or classes of each step out, chunk by chunk.

For causal models. A frame of the spectrogram depends on the samples of its window. The features of
a step depend on some frames before and after it, its context, which are encoded again with the next
steps; the frames after it are the look-ahead, by which results come late. The recurrent layer keeps
its carry. So the results are those of the whole recording, whatever the chunks, and memory is
constant. Texts are those of the greedy search. What a model makes of silence at the start is held
back until there is sound, and given up if none comes.
"""

import dataclasses
import time
from typing import Any, Protocol

import numpy as np

from .columns import SoundPreprocessing
from .functions import ColumnFunctions
from .log_mel import LogMel
from .results import Character, StreamStep, TextStep
from .sound import SILENCE, silent

_now = time.perf_counter


class StreamedModel(Protocol):
    """Reader of speech or classifier of sounds."""

    @property
    def kind(self) -> str:
        """``transcription`` or ``sound_classification``."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes of a classifier."""

    @property
    def preprocessing(self) -> Any:
        """A ``columns.SoundPreprocessing``."""

    @property
    def functions(self) -> Any:
        """Those of a reader, or of a classifier, whose ``columns`` are ``ColumnFunctions``."""


class SoundStream:
    """Function of the samples of one stream, in order: ``stream(samples)``.

    A reader's steps are of ``results.TextStep``, one for each chunk: a character is told once it
    has ended. A classifier's are of ``results.StreamStep``, one for each step of the network: the
    classes of the step alone, and those of the recording so far, as ``predict`` has them for
    recordings that are no longer than the model's window.

    Attributes:
      look_ahead: seconds of sound after a step that must have arrived before it is read, at most
        a chunk aside.
      num_samples: samples that have arrived.
      num_steps: steps of the network that were read.
    """

    def __init__(self, model: StreamedModel, *, chunk: float = 0.32) -> None:
        """Compiles nothing yet.

        Args:
          model: a reader of speech, or a classifier of sounds.
          chunk: seconds of sound that are read at a time; fewer come sooner, more cost less.

        Raises:
          ValueError: a model of another kind, one that is not causal, which says what to train
            instead, or a chunk that is not above 0.
        """
        given = model.preprocessing
        if not isinstance(given, SoundPreprocessing):
            raise ValueError(f"stream: expected a model of sound, received one of {model.kind}")
        if not 0 < chunk <= 3600:
            raise ValueError(f"chunk: expected seconds above 0, at most 3600, received {chunk}")
        self._model, self._reads = model, not model.labels
        self._functions: ColumnFunctions = (
            model.functions if self._reads else model.functions.columns
        )
        _check_causal(given, self._functions.obstacle)
        stride, (before, after) = self._functions.stride, self._functions.context
        self._frame, self._step_seconds = given.seconds_per_frame, stride * given.seconds_per_frame
        self._steps_at_once = max(1, round(chunk / self._step_seconds))
        self._width = before + after + self._steps_at_once * stride
        self._spectrogram = _StreamedLogMel(given.log_mel)
        self._frames = np.zeros((0, given.num_mels), np.float32)
        self._begin = 0  # Number of the first frame that is kept.
        self._carry = self._functions.start()
        self._greedy = _Greedy()
        self._ended, self._silent = False, True
        self._held: list[Any] = []
        self._rate = given.sample_rate
        self.look_ahead = (after + stride) * self._frame + given.window / 2
        self.num_samples = self.num_steps = self._num_results = 0

    def __call__(self, samples: np.ndarray) -> list[Any]:
        """Reads the next samples and returns the results that they make known.

        Args:
          samples: (n,) float32 in [-1,1], at the rate of the model.

        Returns:
          The results; none while all samples are silent, which come with the first sound.

        Raises:
          ValueError: samples of another shape or dtype, or after ``finish``.
        """
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
            raise ValueError(
                f"samples: expected (n,) float, received {samples.shape} {samples.dtype.name}"
            )
        if self._ended:
            raise ValueError("samples: expected none after the end, received some; start anew")
        arrival = _now()
        self.num_samples += len(samples)
        self._silent = self._silent and np.abs(samples).max(initial=0) <= SILENCE
        found = self._read(self._spectrogram.push(samples.astype(np.float32)), arrival)
        if self._silent:
            self._held += found
            return []
        held, self._held = self._held, []
        return held + found

    def finish(self) -> list[Any]:
        """Returns the results that the end of the stream makes known.

        Raises:
          MediaError: silence, of which a network that never heard it makes what it has learnt.
        """
        if self._ended or not self.num_samples:
            return []
        if self._silent:
            self._ended = True
            raise silent("sound")
        arrival = _now()
        self._ended = True
        results = self._read(self._spectrogram.finish(), arrival)
        if self._reads and (last := self._greedy.finish()):
            results.append(self._text_step(last, arrival))
        return results

    def _read(self, frames: np.ndarray, arrival: float) -> list[Any]:
        self._frames = np.concatenate([self._frames, frames])
        stride, (before, after) = self._functions.stride, self._functions.context
        results: list[Any] = []
        while True:
            there = self._begin + len(self._frames)
            known = -(-there // stride) if self._ended else (there - after) // stride
            ready = known - self.num_steps
            # Whole chunks, so that as few calls as possible are made.
            if ready < (1 if self._ended else self._steps_at_once):
                return results
            count = min(ready, self._steps_at_once)
            first = self.num_steps - self._begin // stride
            inputs = np.zeros((self._width, self._frames.shape[1]), np.float32)
            length = min(len(self._frames), self._width)
            inputs[:length] = self._frames[:length]
            self._carry, steps, clips = self._functions.step(
                self._carry, inputs, length, first, count
            )
            results += self._results(steps, clips, arrival)
            self.num_steps += count
            keep_from = max(self.num_steps * stride - before, 0)
            self._frames = self._frames[keep_from - self._begin :]
            self._begin = keep_from

    def _results(self, steps: np.ndarray, clips: np.ndarray | None, arrival: float) -> list[Any]:
        if self._reads:
            ended = self._greedy.push(steps, self.num_steps)
            return [self._text_step(ended, arrival, len(steps))]
        assert clips is not None  # A classifier of sounds has a head that pools.
        found = []
        for row, (step, clip) in enumerate(zip(steps, clips, strict=True)):
            number = self.num_steps + row
            found.append(
                StreamStep(
                    step=number,
                    time=min((number + 1) * self._step_seconds, self.num_samples / self._rate),
                    labels=self._model.labels,
                    probabilities=step,
                    smoothed=clip,
                    latency=_now() - arrival,
                )
            )
        return found

    def _text_step(self, ended: "list[_Emitted]", arrival: float, count: int = 0) -> TextStep:
        model: Any = self._model
        extent = self.num_samples / self._rate
        characters = tuple(
            Character(
                model.alphabet[item.token - 1],
                item.confidence,
                round(item.start * self._step_seconds, 3),
                round(min(item.end * self._step_seconds, extent), 3),
            )
            for item in ended
        )
        step = TextStep(
            step=self._num_results,
            time=min((self.num_steps + count) * self._step_seconds, extent),
            text="".join(item.character for item in characters),
            characters=characters,
            latency=_now() - arrival,
        )
        self._num_results += 1
        return step


def _check_causal(preprocessing: SoundPreprocessing, obstacle: str) -> None:
    """Refuses a model that reads the whole recording; says what to train instead."""
    if preprocessing.normalisation != "none":
        obstacle = "its spectrograms are normalised over the whole recording" + (
            f", and {obstacle}" if obstacle else ""
        )
    if not obstacle:
        return
    flags = [
        flag
        for word, flag in (
            ("normalised", "--config.data.normalisation=none"),
            (
                "bidirectional",
                "--config.model.recurrent.bidirectional=false (--config.model.bidirectional=false "
                "of Deep Speech 2)",
            ),
            ("lookahead", "--config.model.lookahead=0"),
            ("pools", "--config.model.head.pool=mean"),
        )
        if word in obstacle
    ]
    advice = f"; train one with {' '.join(flags)}" if flags else ""
    raise ValueError(
        f"stream: expected a causal model, received one that is not, since {obstacle}{advice}"
    )


class _StreamedLogMel:
    """Log-mel spectrogram of samples as they arrive; its frames are those of the whole."""

    def __init__(self, log_mel: LogMel) -> None:
        self._log_mel = log_mel
        self._hop = round(log_mel.hop * log_mel.sample_rate)
        length = round(log_mel.window * log_mel.sample_rate)
        self._before, self._after = length // 2, length - length // 2
        # Frames whose windows would begin before the samples that are kept.
        self._margin = -(-self._before // self._hop)
        self._samples = np.zeros(0, np.float32)
        self._begin = 0  # Number of the frame at which the kept samples begin.
        self._next = 0  # Number of the next frame.

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Returns the frames (n,M) whose windows have ended."""
        self._samples = np.concatenate([self._samples, samples])
        there = self._begin * self._hop + len(self._samples)
        # Frame j reads the samples before j·hop + after.
        return self._take(max((there - self._after) // self._hop + 1, self._next))

    def finish(self) -> np.ndarray:
        """Returns the last frames, beyond whose windows the sound is silent."""
        there = self._begin * self._hop + len(self._samples)
        return self._take(1 + there // self._hop)

    def _take(self, end: int) -> np.ndarray:
        frames = np.zeros((0, self._log_mel.num_mels), np.float32)
        if end > self._next:
            frames = self._log_mel(self._samples)[self._next - self._begin : end - self._begin]
        self._next = max(self._next, end)
        begin = max(self._next - self._margin, 0)
        self._samples = self._samples[(begin - self._begin) * self._hop :]
        self._begin = begin
        return frames


@dataclasses.dataclass
class _Emitted:
    """Character of the greedy search with its span in steps."""

    token: int
    confidence: float
    start: int
    end: int


class _Greedy:
    """Text of the most probable alignment, of steps as they come; class 0 is the blank."""

    def __init__(self) -> None:
        self._open: _Emitted | None = None

    def push(self, probabilities: np.ndarray, first: int) -> list[_Emitted]:
        """Returns the characters that have ended.

        Args:
          probabilities: (n,K+1) of the next steps.
          first: number of the first of them.
        """
        ended = []
        best = probabilities.argmax(axis=1)
        for number, (token, row) in enumerate(zip(best.tolist(), probabilities, strict=True)):
            if self._open is not None and token == self._open.token:
                self._open.confidence = max(self._open.confidence, float(row[token]))
                self._open.end = first + number + 1
                continue
            ended += self.finish()
            if token:
                self._open = _Emitted(token, float(row[token]), first + number, first + number + 1)
        return ended

    def finish(self) -> list[_Emitted]:
        """Returns the character that has not ended before, if there is one."""
        ended, self._open = ([] if self._open is None else [self._open]), None
        return ended
