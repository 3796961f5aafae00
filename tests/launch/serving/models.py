"""Small models for tests of the page: their results are computed from the pixels they are given."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flaxnets.inference.runtime.results import Caption, Prediction
from launch.serving.page import Unreadable

HOSTILE = "<img src=x onerror=alert(1)>"


class MeanColour:
    """Classifier of images of files' bytes: how bright, with a label that is HTML."""

    kind = "image_classification"
    name = f"mean {HOSTILE}"
    card = f"# A card\n\n<script>document.title='owned'</script> {HOSTILE}"
    most_captions = 0
    labels = ("dark", f"bright {HOSTILE}")

    def warm_up(self, example: Path) -> None:
        assert example.is_file()

    def predict(self, path: Path) -> Prediction:
        from PIL import Image

        try:
            value = float(np.asarray(Image.open(path).convert("L")).mean()) / 255
        except OSError as error:
            raise Unreadable(f"no image {HOSTILE}") from error
        return Prediction(self.labels, np.asarray([1 - value, value], np.float32))

    def caption(self, path: Path, num_captions: int) -> tuple[np.ndarray, list[Caption]]:
        raise NotImplementedError


class Steps(MeanColour):
    """Classifier of clips with three classes over ten steps."""

    kind = "video_classification"
    labels = ("rising", f"falling {HOSTILE}", "steady")  # type: ignore[assignment]

    def predict(self, path: Path) -> Prediction:
        if not path.read_bytes():
            raise Unreadable("an empty file")
        rising = np.linspace(0.1, 0.7, 10)
        steps = np.stack([rising, 0.8 - rising, np.full(10, 0.2)], axis=1).astype(np.float32)
        times = np.arange(10, dtype=np.float32) / 5
        return Prediction(self.labels, steps.mean(axis=0), times, steps)


class Words(MeanColour):
    """Captioner with attention that moves over the image."""

    kind = "captioning"
    most_captions = 3

    def caption(self, path: Path, num_captions: int) -> tuple[np.ndarray, list[Caption]]:
        from PIL import Image

        try:
            image = np.asarray(Image.open(path).convert("RGB").resize((224, 224)))
        except OSError as error:
            raise Unreadable(f"no image {HOSTILE}") from error
        return image, [self._make(k) for k in range(num_captions)]

    def _make(self, k: int) -> Caption:
        words: Sequence[str] = ("a", "dog", HOSTILE, "over", "grass")[: 5 - k]
        rows, columns = np.mgrid[0:7, 0:7]
        maps = [
            np.exp(-((rows - 3) ** 2 + (columns - 1.5 * n) ** 2) / 3) for n in range(len(words))
        ]
        attention = np.stack(maps).astype(np.float32)
        attention /= attention.sum(axis=(1, 2), keepdims=True)
        return Caption(tuple(words), " ".join(words), -3.0 - k, k != 1, attention)
