"""In how many images' references each n-gram occurs: what CIDEr-D weighs n-grams by."""

import os
import secrets
import zipfile
from collections.abc import Iterable
from pathlib import Path

import flax.struct
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxnets.typing import Array

ORDERS = 4
"""n-grams of 1 to 4 words."""
PAD, EOS = 0, 2
"""The ids of ``<pad>`` and ``<eos>``, at which a caption ends."""

_FORMAT = 1


@flax.struct.dataclass
class DocumentFrequencies:
    """In the references of how many images each n-gram occurs: a pytree of arrays.

    The n-grams form a tree: the children of an n-gram, one word longer, lie side by side in the
    order of their last words. So one is found exactly, with 32-bit integers and whatever the
    vocabulary, by a binary search at each order. Order n is at place n - 1 of the tuples.

    Attributes:
      starts: for each order where the children of each n-gram of the order before begin, and at the
        end the number of all, (U_{n-1} + 1,) int32; before the first there is one, the empty one.
      words: for each order the last words of its n-grams, (U_n,) int32.
      idf: for each order log N - log df of its n-grams, (U_n,) float32.
      unseen_idf: () float32, log N: of n-grams that are not here.
      depths: for each order the steps of a binary search among the children of one n-gram.
      count_eos: whether ``<eos>`` is a word, of the references and of what is scored. As a reward
        it must be: else a caption that breaks off after ``with a`` loses nothing by it, and
        captions come to end so.
    """

    starts: tuple[Array, ...]
    words: tuple[Array, ...]
    idf: tuple[Array, ...]
    unseen_idf: Array
    depths: tuple[int, ...] = flax.struct.field(pytree_node=False)
    count_eos: bool = flax.struct.field(pytree_node=False)

    @classmethod
    def count(
        cls, references: Iterable[npt.ArrayLike], *, count_eos: bool = True
    ) -> "DocumentFrequencies":
        """Counts on the host, in NumPy.

        Args:
          references: for each image its captions, (C,M) integers in the form of ``cider_d``'s
            references; C and M may differ between images, and one array (N,C,M) will do. An image
            without captions counts in N.
          count_eos: see the class.

        Raises:
          ValueError: no images, or captions of another rank or dtype, or ids out of [0, 2^31).
        """
        rows, num_words, owners, num_images = _stack(references, count_eos)
        places = np.arange(rows.shape[1])
        base = int(rows.max(initial=0)) + 1
        prefixes = np.zeros(rows.shape, np.int64)  # At every place the empty n-gram, number 0.
        size = 1
        starts, words, idf = [], [], []
        for n in range(ORDERS):
            row, place = np.nonzero(places + n < num_words[:, None])
            keys = prefixes[row, place] * base + rows[row, place + n]
            unique, ids = np.unique(keys, return_inverse=True)
            prefixes[row, place] = ids
            parents, last = np.divmod(unique, base)
            starts.append(np.searchsorted(parents, np.arange(size + 1)).astype(np.int32))
            words.append(last.astype(np.int32))
            size = len(unique)
            # However often it occurs in the captions of an image, it counts once.
            pairs = np.unique(owners[row] * max(size, 1) + ids)
            counts = np.bincount(pairs % max(size, 1), minlength=size)
            # Subtracted in float64: in float32 little is left of a df near N.
            idf.append((np.log(num_images) - np.log(counts)).astype(np.float32))
        return cls._make(starts, words, idf, np.float32(np.log(num_images)), count_eos)

    @classmethod
    def _make(
        cls,
        starts: list[np.ndarray],
        words: list[np.ndarray],
        idf: list[np.ndarray],
        unseen_idf: npt.ArrayLike,
        count_eos: bool,
    ) -> "DocumentFrequencies":
        return cls(
            starts=tuple(map(jnp.asarray, starts)),
            words=tuple(map(jnp.asarray, words)),
            idf=tuple(map(jnp.asarray, idf)),
            unseen_idf=jnp.asarray(unseen_idf),
            depths=tuple(int(np.diff(each).max(initial=0)).bit_length() for each in starts),
            count_eos=count_eos,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an ``.npz``, whole or not at all: other processes may read and write it too."""
        arrays = {
            f"{name}_{n}": np.asarray(array)
            for name in ("starts", "words", "idf")
            for n, array in enumerate(getattr(self, name))
        }
        arrays["unseen_idf"] = np.asarray(self.unseen_idf)
        arrays["count_eos"] = np.asarray(self.count_eos)
        arrays["format"] = np.asarray(_FORMAT)
        path = Path(path)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with part.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DocumentFrequencies":
        """Reads what ``save`` wrote.

        Raises:
          FileNotFoundError: no such file.
          ValueError: a file that ``save`` did not write, or not whole.
        """
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                if int(file["format"]) != _FORMAT:
                    raise ValueError(f"format {int(file['format'])}")
                starts, words, idf = (
                    [file[f"{name}_{n}"] for n in range(ORDERS)]
                    for name in ("starts", "words", "idf")
                )
                return cls._make(starts, words, idf, file["unseen_idf"], bool(file["count_eos"]))
        except FileNotFoundError:
            raise
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"path: expected document frequencies of format {_FORMAT}, received {path}: {error}"
            ) from error


def _stack(
    references: Iterable[npt.ArrayLike], count_eos: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """All captions as rows (R,M) int64, the words of each, the image of each, and the images."""
    captions = []
    for index, image in enumerate(references):
        array = np.asarray(image)
        if array.ndim != 2 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
            raise ValueError(
                "references: expected integers (C,M) for each image, "
                f"received {array.dtype} of shape {array.shape} for image {index}"
            )
        captions.append(array)
    if not captions:
        raise ValueError("references: expected at least one image, received none")
    owners = np.repeat(np.arange(len(captions)), [len(array) for array in captions])
    # One column at least, and one of <pad> at the end of every row.
    rows = np.full((len(owners), 1 + max(array.shape[1] for array in captions)), PAD, np.int64)
    first = 0
    for array in captions:
        rows[first : first + len(array), : array.shape[1]] = array
        first += len(array)
    if rows.min(initial=0) < 0 or rows.max(initial=0) >= 2**31:
        raise ValueError(
            f"references: expected ids in [0, 2^31), received {rows.min()} to {rows.max()}"
        )
    num_words = np.argmax((rows == PAD) | (rows == EOS), axis=1)
    if count_eos:
        num_words = num_words + (rows[np.arange(len(rows)), num_words] == EOS)
    return rows, num_words, owners, len(captions)
