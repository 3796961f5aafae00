"""Captioning examples: images, features or videos with their captions as token ids."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import numpy as np

from data.batches import CaptionExample, Source
from data.captions.images import MAX_PIXELS, ImageError, ImageTransform, read_image
from data.captions.vocabulary import EOS, Vocabulary, pad_captions

_INPUTS = ("image", "features", "video")
_KEPT = (*_INPUTS, "lengths", "mask")


class DecodedImages(ABC):
    """Base class of random access to images decoded to one size; picklable.

    Such a source is the input of a ``CaptionSource``, directly or as cached features
    (``data.features``). Subclasses define ``__len__`` and ``decode``.

    Args:
        transform: resizes the images to one size.
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(self, transform: ImageTransform, *, max_pixels: int = MAX_PIXELS):
        self.transform = transform
        self.max_pixels = max_pixels

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def decode(self, index: int) -> np.ndarray:
        """Returns image ``index``, (H,W,3) uint8, or raises ImageError or FileNotFoundError."""

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Returns ``image`` (size,size,3) uint8, zeros if unreadable, ``mask`` and ``index``."""
        try:
            image, readable = self.transform(self.decode(index)), True
        except (ImageError, FileNotFoundError):
            image = np.zeros((self.transform.size, self.transform.size, 3), np.uint8)
            readable = False
        return {
            "image": image,
            "mask": np.asarray(readable),
            "index": np.asarray(index, np.int32),
        }

    def explain(self, index: int) -> str:
        """Returns why image ``index`` cannot be decoded, by decoding it."""
        try:
            self.decode(index)
        except (ImageError, FileNotFoundError) as error:
            return str(error)
        return f"image {index}: decoding failed before, but succeeds now"


class ImageSource(DecodedImages):
    """Random access to image files, decoded to one size; picklable.

    Args:
        paths: the files.
        transform: resizes the images to one size.
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(
        self, paths: Sequence[str], transform: ImageTransform, *, max_pixels: int = MAX_PIXELS
    ):
        super().__init__(transform, max_pixels=max_pixels)
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"ImageSource({len(self)} paths, {self.transform})"

    def decode(self, index: int) -> np.ndarray:
        """Returns image ``index`` as ``data.captions.images.read_image``."""
        return read_image(self.paths[index], max_pixels=self.max_pixels)


class CaptionSource:
    """Random access to inputs with their captions as token ids; picklable.

    The inputs are any source of ``image``, ``features`` or ``video``: an ``ImageSource``, its
    ``FeatureSource``, videos or their features. Captions without words are left out.

    Args:
        inputs: the captioned source.
        captions: the reference captions of each input.
        vocabulary: maps words to ids.
        pairs: one example per (input, caption), C = 1, as in training; False: one example per input
            with all its captions, C = the largest number of captions, as in evaluation.
        weights: loss weights >= 0 of each input's captions; None: examples have no
            ``caption_weights``.
        max_words: longer captions are cut to so many words before ``<eos>``; None cuts none.
        names: name of each input in messages, its path or id; None takes its index.

    Attributes:
        dropped: number of captions without words.
        num_captions: C.
        num_tokens: L, length of the longest caption including ``<eos>``.

    Raises:
        ValueError: the numbers of inputs, captions, weights or names disagree, ``max_words`` is
            below 1, or no caption of an input has words.
    """

    def __init__(
        self,
        inputs: Source,
        captions: Sequence[Sequence[str]],
        vocabulary: Vocabulary,
        *,
        pairs: bool,
        weights: Sequence[Sequence[float] | np.ndarray] | None = None,
        max_words: int | None = None,
        names: Sequence[str | int] | None = None,
    ):
        if len(captions) != len(inputs) or not len(captions):
            raise ValueError(
                f"captions: expected those of each of {len(inputs)} inputs (at least 1), "
                f"received {len(captions)}"
            )
        if weights is not None and len(weights) != len(inputs):
            raise ValueError(f"weights: expected those of {len(inputs)}, received {len(weights)}")
        if names is not None and len(names) != len(inputs):
            raise ValueError(f"names: expected {len(inputs)}, received {len(names)}")
        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words: expected at least 1, received {max_words}")
        self.inputs = inputs
        self.vocabulary = vocabulary
        self.pairs = pairs
        self.names = None if names is None else tuple(names)
        ids: list[list[int]] = []
        owners: list[int] = []  # input of each caption, ascending
        shares: list[float] = []
        for number, texts in enumerate(captions):
            encoded = [vocabulary.encode(text) for text in texts]
            worded = [caption for caption in encoded if len(caption) > 1]
            given = np.ones(len(texts)) if weights is None else weights[number]
            if len(given) != len(texts):
                raise ValueError(
                    f"weights: expected those of {len(texts)} captions of {self._name(number)}, "
                    f"received {len(given)}"
                )
            shares += [w for caption, w in zip(encoded, given, strict=True) if len(caption) > 1]
            if not worded:
                raise ValueError(
                    f"captions: expected words about {self._name(number)}, received {list(texts)!r}"
                )
            if max_words is not None:
                worded = [[*caption[:-1][:max_words], EOS] for caption in worded]
            ids += worded
            owners += [number] * len(worded)
        self.dropped = sum(map(len, captions)) - len(ids)
        # Flat arrays: pickling hundreds of thousands of lists for workers would be slow.
        self._owners = np.asarray(owners, np.int32)
        self._weights = None if weights is None else np.asarray(shares, np.float32)
        self._ids = np.concatenate([np.asarray(caption, np.int32) for caption in ids])
        self._starts = np.concatenate([[0], np.cumsum([len(caption) for caption in ids])])
        self._first = np.searchsorted(self._owners, np.arange(len(inputs) + 1))
        self.num_captions = 1 if pairs else int(np.diff(self._first).max())
        self.num_tokens = int(np.diff(self._starts).max())

    def __len__(self) -> int:
        return len(self._owners) if self.pairs else len(self.inputs)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return (
            f"CaptionSource({self.inputs!r}, {len(self._owners)} captions, {self.vocabulary!r}, "
            f"pairs={self.pairs}{'' if self._weights is None else ', weighed'})"
        )

    @property
    def example_lengths(self) -> np.ndarray:
        """(N,) int32, number of tokens in each example's longest caption including ``<eos>``."""
        lengths = np.diff(self._starts).astype(np.int32)
        return lengths if self.pairs else np.maximum.reduceat(lengths, self._first[:-1])

    def input_of(self, index: int) -> int:
        """Returns the index of example ``index``'s input."""
        return int(self._owners[index]) if self.pairs else index

    def __getitem__(self, index: int, /) -> CaptionExample:
        """Returns example ``index``, 0..len - 1.

        Raises:
            IndexError: the index is out of range.
            ValueError: the input does not have exactly one of ``image``, ``features``, ``video``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, received {index}")
        number = self.input_of(index)
        numbers = (
            range(index, index + 1)
            if self.pairs
            else range(self._first[index], self._first[index + 1])
        )
        captions = [self._ids[self._starts[i] : self._starts[i + 1]] for i in numbers]
        tokens, token_lengths = pad_captions(captions, self.num_captions, self.num_tokens)
        given = self.inputs[number]
        if sum(name in given for name in _INPUTS) != 1:
            raise ValueError(
                f"inputs: expected one of {', '.join(_INPUTS)}, received {sorted(given)}"
            )
        example = {name: given[name] for name in _KEPT if name in given}
        example |= {"tokens": tokens, "token_lengths": token_lengths}
        if self._weights is not None:
            padding = (0, self.num_captions - len(numbers))
            example["caption_weights"] = np.pad(self._weights[list(numbers)], padding)
        example.setdefault("mask", np.asarray(True))
        return cast(CaptionExample, {**example, "index": np.asarray(index, np.int32)})

    def explain(self, index: int) -> str:
        """Returns why example ``index`` has ``mask`` False."""
        number = self.input_of(index)
        explain = getattr(self.inputs, "explain", None)
        reason = None if explain is None else explain(number)
        if reason is not None:
            return str(reason)
        return f"{self._name(number)}: could not be read when its features were extracted"

    def _name(self, number: int) -> str:
        return f"input {number}" if self.names is None else str(self.names[number])
