"""Image files to be captioned, as batches that a trained captioner reads."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from data.caption_examples import ImageSource
from data.images import ImageTransform
from data.loader import Batch, Loader
from experiments.frozen_features import make_encode


class UncaptionedImages(ImageSource):
    """Image files as examples of captioning that have no caption."""

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """As ``ImageSource``, with one caption of length 0."""
        none = {"tokens": np.zeros((1, 1), np.int32), "token_lengths": np.zeros(1, np.int32)}
        return {**super().__getitem__(index), **none}


class EncodedBatches:
    """A loader's batches with a frozen encoder's maps, float16, in place of images.

    A whole batch is encoded at once, while the loader's threads read the next.
    """

    def __init__(self, loader: Loader, encode: Callable[[np.ndarray], np.ndarray]) -> None:
        self._loader, self._encode = loader, encode

    @property
    def num_examples(self) -> int:
        """The number of files."""
        return self._loader.num_examples

    @property
    def batches_per_epoch(self) -> int:
        """The batches that hold every file once."""
        return self._loader.batches_per_epoch

    @property
    def bad(self) -> dict[int, str]:
        """The number of each file found unreadable so far, with the reason."""
        return self._loader.bad

    def describe(self) -> dict[str, Any]:
        """See ``Loader``."""
        return self._loader.describe()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """One pass in order."""
        with self._loader.batches(start) as batches:
            for batch in batches:
                images = batch.pop("image")
                yield {**batch, "features": self._encode(images).astype(np.float16)}


def make_prediction_data(
    paths: Sequence[str], transform: ImageTransform, batch_size: int, *, frozen_encoder: bool
) -> Loader | EncodedBatches:
    """Image files in the given order; what cannot be read has ``mask`` False.

    Args:
      paths: the files.
      transform: makes them equally large.
      batch_size: rows at most; a multiple of the devices.
      frozen_encoder: whether the model reads the frozen encoder's maps, not images.
    """
    devices = jax.device_count()
    loader = Loader(
        UncaptionedImages(tuple(paths), transform),
        batch_size=min(batch_size, -(-len(paths) // devices) * devices),
        train=False,
        max_bad_share=1.0,
    )
    return EncodedBatches(loader, make_encode("none")) if frozen_encoder else loader
