"""Examples of pixels as examples of a frozen encoder's features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data.batches import Source
from data.workers import available_cpus

Encode = Callable[[np.ndarray], np.ndarray]
"""(n,H,W,3) uint8 in [0,255] to (n,...) float: the frozen encoder, frame by frame."""

_Example = Mapping[str, np.ndarray]


def encode_examples(
    examples: Source, indices: range, encode: Encode, dtype: str, chunk: int
) -> Iterator[tuple[int, _Example]]:
    """Encodes examples: images in chunks, read by threads meanwhile, videos one by one.

    Args:
        examples: as ``data.features.write_features`` takes them.
        indices: which of them, at least one.
        encode: the frozen encoder.
        dtype: of the features.
        chunk: images at once; always so many, since a jitted encoder is compiled for each number.

    Yields:
        Each index with its example, ``features`` in place of the pixels.

    Raises:
        ValueError: examples without pixels, images of several sizes, an encoder that gives another
            number of features, or features that are not finite in ``dtype``.
    """
    first = examples[indices[0]]
    if "image" not in first:
        yield indices[0], _encode_video(first, encode, dtype, indices[0])
        for index in indices[1:]:
            yield index, _encode_video(examples[index], encode, dtype, index)
        return
    parts = [indices[first : first + chunk] for first in range(0, len(indices), chunk)]
    with ThreadPoolExecutor(max_workers=min(available_cpus(), 16)) as readers:
        ahead = [readers.submit(examples.__getitem__, index) for index in parts[0]]
        for number, part in enumerate(parts, 1):
            read = [example.result() for example in ahead]
            following = parts[number] if number < len(parts) else ()
            ahead = [readers.submit(examples.__getitem__, index) for index in following]
            yield from _encode_images(read, part, encode, dtype, chunk)


def _encode_images(
    examples: Sequence[_Example], indices: range, encode: Encode, dtype: str, chunk: int
) -> Iterator[tuple[int, _Example]]:
    expected = examples[0]["image"].shape
    for index, example in zip(indices, examples, strict=True):
        shape = example["image"].shape if "image" in example else None
        if shape != expected or len(expected) != 3:
            raise ValueError(
                f"image of example {index}: expected (H,W,3) as of example {indices[0]}, "
                f"{expected}, received shape {shape}"
            )
    images = np.zeros((chunk, *expected), np.uint8)
    images[: len(examples)] = [example["image"] for example in examples]
    features = _call(encode, images)
    for index, example, encoded in zip(indices, examples, features, strict=False):
        valid = np.asarray(example["mask"])
        yield index, _with_features(example, encoded, valid, dtype, index)


def _encode_video(example: _Example, encode: Encode, dtype: str, index: int) -> _Example:
    if "video" not in example:
        raise ValueError(
            f"example {index}: expected 'image' or 'video', received {', '.join(example)}"
        )
    video = np.asarray(example["video"])  # (T,H,W,3) or (V,T,H,W,3)
    if video.ndim not in (4, 5):
        raise ValueError(
            f"video of example {index}: expected (T,H,W,3) or (V,T,H,W,3), "
            f"received shape {video.shape}"
        )
    leading = video.shape[:-3]
    encoded = _call(encode, video.reshape(-1, *video.shape[-3:]))
    encoded = encoded.reshape(*leading, *encoded.shape[1:])
    valid = np.arange(leading[-1]) < np.asarray(example["lengths"])[..., None]  # (T,) or (V,T)
    valid &= np.asarray(example["mask"])
    return _with_features(example, encoded, valid, dtype, index)


def _call(encode: Encode, frames: np.ndarray) -> np.ndarray:
    encoded = np.asarray(encode(frames))
    if encoded.ndim < 2 or len(encoded) != len(frames):
        raise ValueError(
            f"encode: expected ({len(frames)},...) features of {len(frames)} frames, "
            f"received shape {encoded.shape}"
        )
    return encoded


def _with_features(
    example: _Example, encoded: np.ndarray, valid: np.ndarray, dtype: str, index: int
) -> _Example:
    """The example with ``features`` in place of its pixels; zero where not ``valid``."""
    valid = valid.reshape(*valid.shape, *(1,) * (encoded.ndim - valid.ndim))
    with np.errstate(over="ignore"):
        features = np.where(valid, encoded, 0).astype(dtype)
    if not np.isfinite(features).all():
        raise ValueError(
            f"features of example {index} are not finite in {dtype}: "
            f"the largest is {np.abs(encoded).max():.3g}"
        )
    others = {
        name: np.asarray(array) for name, array in example.items() if name not in ("image", "video")
    }
    return {"features": features, **others}
