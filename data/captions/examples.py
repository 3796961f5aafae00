"""From captioned images, features or videos to examples of captioning."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import numpy as np

from data.batches import CaptionExample, Source
from data.captions.images import ImageError, ImageTransform, read_image
from data.captions.vocabulary import EOS, Vocabulary, pad_captions

_INPUTS = ("image", "features", "video")
_KEPT = (*_INPUTS, "lengths", "mask")


class DecodedImages(ABC):
    """Random access to images as pixels of one size; picklable.

    It is what an encoder's features are made of (``data.features``), and the inputs of a
    ``CaptionSource``. Subclasses say how many images there are and how one is decoded.

    Args:
        transform: makes them equally large.
    """

    def __init__(self, transform: ImageTransform):
        self.transform = transform

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def decode(self, index: int) -> np.ndarray:
        """Decodes the image ``index`` to (H,W,3) uint8, or raises ``OSError``."""

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """``image`` (size,size,3) uint8, ``mask``, ``index``; zeros where it does not decode."""
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
        """Says why the image ``index`` cannot be decoded, by trying it."""
        try:
            self.decode(index)
        except (ImageError, FileNotFoundError) as error:
            return str(error)
        return f"image {index}: could not be decoded before, but can be now"


class ImageSource(DecodedImages):
    """Random access to image files as pixels of one size; picklable.

    Args:
        paths: the files.
        transform: makes them equally large.
    """

    def __init__(self, paths: Sequence[str], transform: ImageTransform):
        super().__init__(transform)
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        # grain compares it when it restores the position of an iterator.
        return f"ImageSource({len(self)} paths, {self.transform})"

    def decode(self, index: int) -> np.ndarray:
        """Decodes the file ``index``; see ``data.captions.images.read_image``."""
        return read_image(self.paths[index])


class CaptionSource:
    """Random access to inputs with their captions as token ids; picklable.

    The inputs are any source of ``image``, ``features`` or ``video``: an ``ImageSource``, the
    ``FeatureSource`` of one, videos or their features. Captions without words are left out.

    Args:
        inputs: what is captioned.
        captions: of each input, those that people wrote.
        vocabulary: their words' ids.
        pairs: an example for each (input, caption), C = 1, as in training; False: one for each
            input with all its captions, C = the greatest number that one has, as in evaluation.
        weights: of each input, what its captions' words count for in the loss, at least 0; None:
            examples have no ``caption_weights``.
        max_words: longer captions are cut to this many words, then ``<eos>``; None cuts none.
        names: what messages call each input: its path or id; None takes its number.

    Attributes:
        dropped: number of captions that have no words.
        num_captions: C.
        num_tokens: L, the length of the longest caption with its ``<eos>``.

    Raises:
        ValueError: not one list of captions for each input, or of weights one for each caption, or
            an input whose captions all lack words.
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
        owners: list[int] = []  # which input a caption belongs to, rising
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
        # Flat arrays: hundreds of thousands of lists would be slow to hand to workers.
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
        # grain compares it when it restores the position of an iterator.
        return (
            f"CaptionSource({self.inputs!r}, {len(self._owners)} captions, {self.vocabulary!r}, "
            f"pairs={self.pairs}{'' if self._weights is None else ', weighed'})"
        )

    @property
    def example_lengths(self) -> np.ndarray:
        """(len,) int32: tokens of each example's longest caption, ``<eos>`` included."""
        lengths = np.diff(self._starts).astype(np.int32)
        return lengths if self.pairs else np.maximum.reduceat(lengths, self._first[:-1])

    def input_of(self, index: int) -> int:
        """The number of the input that the example ``index`` is about."""
        return int(self._owners[index]) if self.pairs else index

    def __getitem__(self, index: int, /) -> CaptionExample:
        """Gives the example ``index``, 0..len - 1.

        Raises:
            IndexError: the index is out of range.
            ValueError: the input has not exactly one of ``image``, ``features`` and ``video``.
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
        """Says why the example ``index`` has ``mask`` False."""
        number = self.input_of(index)
        explain = getattr(self.inputs, "explain", None)
        reason = None if explain is None else explain(number)
        if reason is not None:
            return str(reason)
        return f"{self._name(number)}: could not be read when its features were extracted"

    def _name(self, number: int) -> str:
        return f"input {number}" if self.names is None else str(self.names[number])
