"""Models as the page serves them: uploads read in processes of their own, within limits."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flaxnets.inference.runtime import media
from flaxnets.inference.runtime.columns import Columns
from flaxnets.inference.runtime.models import Captioner, Classifier, read_views
from flaxnets.inference.runtime.readers import Reader, read_columns
from flaxnets.inference.runtime.results import Caption, Prediction, Transcript
from launch.serving import previews
from launch.serving.isolation import Isolated, IsolationError
from launch.serving.limits import Limits
from launch.serving.page import LINES, SPEECH, Unreadable

MOST_CAPTIONS = 5
"""Captions of an image, where the model's search finds as many."""
PRELOADED = [
    "flaxnets.inference.runtime.models",
    "flaxnets.inference.runtime.readers",
    "launch.serving.previews",
    "av",
]
"""Modules that reading a file needs."""
GRACE = 1.0
"""Seconds by which a process may overrun its own deadline before it is killed."""


class ServedModel:
    """Loaded model whose uploads are read in processes of their own.

    Args:
      model: as ``flaxnets.load`` returns it.
      isolated: starter of the processes.
      limits: of files and time.
    """

    def __init__(
        self, model: Classifier | Captioner | Reader, isolated: Isolated, limits: Limits
    ) -> None:
        self._model, self._isolated, self._limits = model, isolated, limits
        self._media_limits = media.Limits(
            max_pixels=limits.pixels,
            max_seconds=limits.clip_seconds,
            max_frames=limits.frames,
            timeout=limits.request_seconds,
        )
        self.kind, self.name, self.card = model.kind, model.name, model.card
        if isinstance(model, Reader):
            self.kind = SPEECH if model.reads_sound else LINES
        self.most_captions, self._attention = 0, False

    def warm_up(self, example: Path) -> None:
        """Compiles the model's functions for one upload, and finds what its search offers.

        Args:
          example: a clip, image, line or recording.
        """
        if isinstance(self._model, Reader):
            self.read(example)
            return
        if not isinstance(self._model, Captioner):
            self.predict(example)
            return
        image = self._read_image(example)
        refused = ""
        for count in range(MOST_CAPTIONS, 0, -1):
            for attention in (True, False):
                try:
                    self._search(image, count, attention)
                except ValueError as error:
                    refused = str(error)
                    continue
                self.most_captions, self._attention = count, attention
                return
        raise ValueError(f"{self.name}: expected a captioner of images ({refused})")

    def predict(self, path: Path) -> Prediction:
        """Classifies a clip, image or recording."""
        assert isinstance(self._model, Classifier)
        arguments = (str(path), self._model.preprocessing, None, self._media_limits)
        return self._model.classify([self._call(read_views, *arguments)])[0]

    def read(self, path: Path) -> tuple[Columns, Transcript]:
        """Reads a line or recording."""
        assert isinstance(self._model, Reader)
        arguments = (str(path), self._model.preprocessing, None, self._media_limits)
        columns = self._call(read_columns, *arguments)
        return columns, self._model.transcribe(columns)

    def caption(self, path: Path, num_captions: int) -> tuple[np.ndarray, list[Caption]]:
        """Captions an image."""
        image = self._read_image(path)
        # Always the same number, for which the search is compiled already.
        return image, self._search(image, self.most_captions, self._attention)[:num_captions]

    def _search(self, image: np.ndarray, count: int, attention: bool) -> list[Caption]:
        assert isinstance(self._model, Captioner)
        ready: Any = _Done(self._model.preprocessing, image)
        model = dataclasses.replace(self._model, preprocessing=ready)
        return model.caption(image, num_captions=count, attention=attention)

    def playable(self, path: Path) -> Path:
        """Returns a clip that browsers play: the clip itself or a copy beside it."""
        copy = path.with_name("preview.mp4")
        written = self._call(previews.write_preview, str(path), str(copy), self._media_limits)
        return copy if written else path

    def _read_image(self, path: Path) -> Any:
        """Returns an upload as a captioner takes it."""
        return self._call(_read_image, self._model.preprocessing, str(path), self._media_limits)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function that reads an upload in a process of its own.

        Raises:
          Unreadable: the reason why there is no result.
        """
        limits = self._limits
        try:
            return self._isolated.call(
                function,
                *args,
                seconds=limits.request_seconds + GRACE,
                memory_bytes=limits.memory_bytes,
            )
        except media.MediaError as error:
            raise Unreadable(error.reason) from error
        except FileNotFoundError as error:
            raise Unreadable("the server has deleted this upload; upload it again") from error
        except (IsolationError, ValueError) as error:
            raise Unreadable(str(error)) from error


class _Done:
    """Preprocessing whose result is there already; its settings are those of the model's own."""

    def __init__(self, preprocessing: Any, result: Any) -> None:
        self._preprocessing, self._result = preprocessing, result

    def __call__(self, source: Any) -> Any:
        return self._result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._preprocessing, name)


def _read_image(preprocessing: Any, path: str, limits: media.Limits) -> np.ndarray:
    return preprocessing(media.read_image(path, limits))
