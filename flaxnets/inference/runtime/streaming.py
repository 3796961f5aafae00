"""Streaming classification: frames in as they arrive, the classes of each step out.

A causal model reads one frame at a time and keeps its carry, so that a step costs the same however
long the stream is, and its results are those of the whole clip. A model that needs whole clips is
given the last frames anew (``window``). Memory is constant in both cases.
"""

import dataclasses
import math
import time
from collections import deque
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .functions import ClassifierFunctions
from .results import Prediction, StreamStep

LATE = 1e-3
"""Seconds by which a frame may come late and still be that of a step: containers round time stamps
to milliseconds. Frames at 29.97/s are within it for a second, so that the first steps at 10/s read
the frame after that of a whole clip."""


class StreamedClassifier(Protocol):
    """Classifier whose frames are streamed, as ``models.Classifier``."""

    @property
    def kind(self) -> str:
        """``video_classification``, or another kind."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the K classes."""

    @property
    def preprocessing(self) -> Any:
        """A ``preprocessing.ClipPreprocessing``, or one that makes its inputs of whole clips."""

    @property
    def functions(self) -> ClassifierFunctions:
        """Compiled functions."""

    def predict(self, source: np.ndarray, *, rate: float) -> Prediction:
        """Classifies a video (T,H,W,3) uint8."""


class Stream:
    """Function of the frames of one stream, in order: ``stream(frame, time)``.

    The model reads the stream as it read videos in training: every ``stride``-th frame, or the
    frames at its ``rate``. At a rate, step i reads the last frame that is shown at i / rate
    seconds, which is known once the next frame arrives or a frame comes at just that time. In a gap
    between two frames the one before is read again, as it would have stayed on a screen, for at
    most a second; what lies beyond that is left out. Time stamps that jump back start a new count.
    Frames may change their size. Of several crops or mirrored views of a clip the first is read.

    With a ``window`` every result is that of ``predict`` for the last frames.

    Attributes:
      num_frames: frames that have arrived.
      num_steps: steps that the model has read.
      left_out: steps left out of long gaps.
    """

    def __init__(
        self,
        model: StreamedClassifier,
        *,
        window: int | None = None,
        every: int = 1,
        rate: float | None = None,
        source_rate: float = 30.0,
    ) -> None:
        """Compiles nothing yet.

        Args:
          model: a classifier of videos.
          window: frames of the stream that are classified anew; None: a causal model reads each
            frame once.
          every: with ``window``, frames between two classifications.
          rate: steps/s of a causal model; None: that of training, or where training spread its
            steps evenly over a whole video, which a stream has not, every frame.
          source_rate: frames/s of a stream without time stamps.

        Raises:
          ValueError: a model that classifies no videos, one that is not causal without ``window``,
            or a number out of range.
        """
        _check_above("source_rate", source_rate)
        if rate is not None:
            _check_above("rate", rate)
        for name, value in (("window", window), ("every", every)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, received {value}")
        if model.kind != "video_classification":
            raise ValueError(
                f"stream: expected a classifier of videos, received one of {model.kind}"
            )
        reads_frames = hasattr(model.preprocessing, "crop_frame")
        if window is None and not (model.functions.causal and reads_frames):
            reason = model.functions.obstacle
            if not reads_frames:
                reason = "its inputs are made from the whole clip"
            raise ValueError(
                f"stream: expected a causal model, received one that is not ({reason}); with "
                "window=N (--window=N) the last N frames are classified anew at each step"
            )
        if window is not None and rate is not None:
            raise ValueError("rate: expected None with a window, whose frames are all kept")
        self._model, self._every, self._source_rate = model, every, source_rate
        self._window: deque[tuple[float, np.ndarray]] | None = None
        if window is not None:
            self._window = deque(maxlen=window)
        else:
            preprocessing = model.preprocessing
            dense = preprocessing.sampler == "dense"
            self._rate = rate or (preprocessing.rate if dense else None)
            self._stride = preprocessing.stride if dense and not self._rate else 1
            self._carry = model.functions.start(1)
        self.num_frames = self.num_steps = self.left_out = 0
        self._first_time = 0.0
        self._held: _Held | None = None
        self._origin, self._due = 0.0, 0  # Step ``due`` is at ``origin`` + ``due`` / rate seconds.
        self._interval = 1 / source_rate

    def __call__(self, frame: np.ndarray, time: float | None = None) -> StreamStep | None:
        """Reads a frame and returns the last step that it made known; None if it made none.

        Args:
          frame: (H,W,3) uint8, RGB.
          time: its time stamp, seconds from any origin; None: frames come at ``source_rate``.

        Raises:
          ValueError: a frame of another shape or dtype, or a time that is not finite.
        """
        steps = self.push(frame, time)
        return steps[-1] if steps else None

    def push(self, frame: np.ndarray, time: float | None = None) -> list[StreamStep]:
        """Reads a frame as ``__call__`` and returns all steps that it made known."""
        arrival = _now()
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8 or not frame.size:
            raise ValueError(
                f"frame: expected (H,W,3) uint8, received {frame.shape} {frame.dtype.name}"
            )
        if time is None:
            time = self.num_frames / self._source_rate
        if not math.isfinite(time):
            raise ValueError(f"time: expected finite seconds, received {time}")
        number = self.num_frames
        if not number:
            self._first_time = self._origin = time
        self.num_frames += 1
        if self._window is not None:
            return self._push_window(frame, time, arrival)
        held, self._held = self._held, _Held(frame, time)
        if not self._rate:
            return [self._step(self._held, time, arrival)] if number % self._stride == 0 else []
        steps: list[StreamStep] = []
        if held is not None:
            if time < held.time - LATE:
                self._restart(time)
            else:
                if time > held.time:
                    self._interval = time - held.time
                steps = self._catch_up(held, time - LATE, arrival)
        if abs(self._time_of(self._due) - time) <= LATE:
            steps.append(self._step(self._held, time, arrival))
            self._due += 1
        return steps

    def finish(self) -> list[StreamStep]:
        """Returns the steps that the end of the stream makes known: those of its last frame."""
        if self._window is not None or not self._rate or self._held is None:
            return []
        return self._catch_up(self._held, self._held.time + self._interval - LATE, _now())

    def _time_of(self, step: int) -> float:
        assert self._rate
        return self._origin + step / self._rate

    def _restart(self, time: float) -> None:
        self._origin, self._due = time, 0

    def _catch_up(self, held: "_Held", until: float, arrival: float) -> list[StreamStep]:
        """Reads the held frame at all steps that are due before ``until``."""
        assert self._rate
        steps: list[StreamStep] = []
        most = max(1, math.ceil(self._rate))
        while self._time_of(self._due) < until:
            if len(steps) == most:
                missing = math.ceil((until - self._time_of(self._due)) * self._rate)
                self.left_out += missing
                self._restart(until + LATE)  # The next frame begins anew.
                break
            steps.append(self._step(held, self._time_of(self._due), arrival))
            self._due += 1
        return steps

    def _step(self, held: "_Held", time: float, arrival: float) -> StreamStep:
        functions = self._model.functions
        frames = held.prepare(self._model.preprocessing)[None]  # (1,h,w,3)
        self._carry, steps, clips = functions.step(self._carry, frames)
        return self._result(time, np.asarray(steps)[0], np.asarray(clips)[0], arrival)

    def _push_window(self, frame: np.ndarray, time: float, arrival: float) -> list[StreamStep]:
        window = self._window
        assert window is not None
        if window and window[-1][1].shape != frame.shape:
            height, width = window[-1][1].shape[:2]
            frame = np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((width, height)))
        if window and time <= window[-1][0]:
            window.clear()  # The frames before belong to another count of time.
        window.append((time, frame.copy()))  # The caller may write the next frame into its array.
        if (self.num_frames - 1) % self._every:
            return []
        span = window[-1][0] - window[0][0]
        rate = (len(window) - 1) / span if span > 0 else self._source_rate
        found = self._model.predict(np.stack([frame for _, frame in window]), rate=rate)
        last = found.probabilities
        if found.step_probabilities is not None:
            last = found.step_probabilities[-1]
        return [self._result(time, last, found.probabilities, arrival)]

    def _result(
        self, time: float, probabilities: np.ndarray, smoothed: np.ndarray, arrival: float
    ) -> StreamStep:
        step = StreamStep(
            step=self.num_steps,
            time=time - self._first_time,
            labels=self._model.labels,
            probabilities=probabilities,
            smoothed=smoothed,
            latency=_now() - arrival,
        )
        self.num_steps += 1
        return step


@dataclasses.dataclass
class _Held:
    """The newest frame, preprocessed when a step first reads it."""

    frame: np.ndarray
    time: float
    prepared: np.ndarray | None = None

    def prepare(self, preprocessing: Any) -> np.ndarray:
        """Returns (h,w,3) uint8, the first crop."""
        if self.prepared is None:
            self.prepared = preprocessing.crop_frame(_scale(self.frame, preprocessing.short_side))[
                0
            ]
        return self.prepared


class Latencies:
    """Histogram of latencies in constant memory, with a resolution of 1 %.

    >>> latencies = Latencies()
    >>> for milliseconds in range(1, 101):
    ...     latencies.add(milliseconds / 1000)
    >>> [round(latencies.quantile(share), 3) for share in (0.5, 0.99)]
    [0.05, 0.099]
    """

    _LEAST, _BINS_A_FACTOR_E = 1e-6, 100

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0

    def add(self, seconds: float) -> None:
        """Counts a latency; those below 1 µs count as 1 µs, those above 1000 s as 1000 s."""
        clipped = min(max(seconds, self._LEAST), 1e3)
        place = round(math.log(clipped / self._LEAST) * self._BINS_A_FACTOR_E)
        self._counts[place] = self._counts.get(place, 0) + 1
        self.count += 1

    def quantile(self, share: float) -> float:
        """Returns the latency that a share of all, in [0,1], does not exceed; NaN of none."""
        passed = 0
        for place in sorted(self._counts):
            passed += self._counts[place]
            if passed >= share * self.count:
                return self._LEAST * math.exp(place / self._BINS_A_FACTOR_E)
        return math.nan


_now = time.perf_counter


def _scale(frame: np.ndarray, short_side: int | None) -> np.ndarray:
    """Returns a frame whose short side has the given length, as the decoder of files scales it."""
    height, width = frame.shape[:2]
    if short_side is None or short_side == min(height, width):
        return frame
    scale = short_side / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, resampling))


def _check_above(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a number above 0, received {value}")
