r"""CIDEr-D of captions as token ids, computed on the device: the reward of self-critical training.

For each order n = 1 to 4 a caption is the vector g_n of its n-grams' counts, each times the
n-gram's inverse document frequency

.. math::
    \mathrm{idf}(w) = \log N - \log \max(1, \mathrm{df}(w)),

with N images, in the references of df(w) of which the n-gram w occurs. A candidate c and a
reference r of l(c) and l(r) tokens have the similarity

.. math::
    s_n(c, r) = \frac{\min(g_n(c), g_n(r)) · g_n(r)}{\|g_n(c)\| \|g_n(r)\|}
        \exp\frac{-(l(c) - l(r))^2}{2σ^2}, \quad σ = 6,

and CIDEr-D is 10 times the mean of s_n over the orders and the references (Vedantam et al.,
1411.5726: CIDEr with the minimum and the length penalty of the paper's evaluation server).

Details follow pycocoevalcap's ``cider_scorer.py``, which calls this CIDEr: l counts 2-grams, hence
a caption of one token is as long as an empty one; where a norm is zero the similarity is zero;
n-grams without references have df = 0.

Deviations: float32, not float64. The document frequencies are those of a given set of references,
in self-critical training the training split's; pycocoevalcap takes them from the references that it
scores.
"""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxnets.decoders.hypotheses import EOS, PAD
from flaxnets.training.workdir import write_atomically
from flaxnets.typing import Array

ORDERS = 4
"""n-grams of 1 to 4 words."""
SIGMA = 6.0
"""Standard deviation of the length penalty, in tokens."""

_FORMAT = 1


@flax.struct.dataclass
class DocumentFrequencies:
    """Document frequencies of n-grams, as a pytree of arrays.

    The n-grams form a tree: the children of an n-gram, one word longer, are stored side by side in
    the order of their last words. A binary search per order finds an n-gram exactly, with 32-bit
    integers for any vocabulary (a single integer key of four words would need 64 bits, which JAX
    disables by default). Order n is item n - 1 of the tuples; U_n n-grams have order n, U_0 = 1.

    Attributes:
      starts: per order (U_{n-1} + 1,) int32: index of the first child of each n-gram of the order
        before, and at the end U_n.
      words: per order (U_n,) int32: last words of the n-grams.
      idf: per order (U_n,) float32: log N - log df of the n-grams.
      unseen_idf: () float32: log N, for n-grams that are not stored.
      depths: per order the number of bisections that find a child.
      count_eos: ``<eos>`` is a word of candidates and references. For a reward it must be: else a
        caption that breaks off after ``with a`` loses nothing, and training produces such captions.
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
        """Counts n-grams on the host, in NumPy.

        Args:
          references: for each image its captions, (C,M) integers as ``cider_d``'s references; C and
            M may differ between images, and one array (N,C,M) is accepted. An image without
            captions counts in N.
          count_eos: see the class.

        Raises:
          ValueError: no images, captions of another rank or dtype, or ids out of [0, 2^31).
        """
        rows, num_words, owners, num_images = _stack(references, count_eos)
        positions = np.arange(rows.shape[1])
        base = int(rows.max(initial=0)) + 1
        prefixes = np.zeros(rows.shape, np.int64)  # Ids of the n-1-grams; at first the empty one.
        size = 1
        starts, words, idf = [], [], []
        for n in range(ORDERS):
            row, start = np.nonzero(positions + n < num_words[:, None])
            keys = prefixes[row, start] * base + rows[row, start + n]
            unique, ids = np.unique(keys, return_inverse=True)
            prefixes[row, start] = ids
            parents, last = np.divmod(unique, base)
            starts.append(np.searchsorted(parents, np.arange(size + 1)).astype(np.int32))
            words.append(last.astype(np.int32))
            size = len(unique)
            # An n-gram counts once per image, however often it occurs in the image's captions.
            pairs = np.unique(owners[row] * max(size, 1) + ids)
            counts = np.bincount(pairs % max(size, 1), minlength=size)
            # Subtracted in float64: of a df near N, float32 would leave few digits.
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
        """Writes an ``.npz`` atomically, since other processes may read and write it too."""
        arrays = {
            f"{name}_{n}": np.asarray(array)
            for name in ("starts", "words", "idf")
            for n, array in enumerate(getattr(self, name))
        }
        arrays["unseen_idf"] = np.asarray(self.unseen_idf)
        arrays["count_eos"] = np.asarray(self.count_eos)
        arrays["format"] = np.asarray(_FORMAT)

        def write(unfinished: Path) -> None:
            with unfinished.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

        write_atomically(path, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DocumentFrequencies":
        """Reads what ``save`` wrote.

        Raises:
          FileNotFoundError: no such file.
          ValueError: a file that ``save`` did not write, or a truncated one.
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
    """Returns captions (R,M) int64, their word counts (R,), their images (R,), and N."""
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
    # Every row ends with <pad>, so argmax below finds an end in each.
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


def cider_d(
    frequencies: DocumentFrequencies,
    candidates: Array,
    references: Array,
    weights: Array | None = None,
) -> Array:
    """Returns the CIDEr-D of each candidate against the references of its image.

    A caption is read up to its first ``<eos>`` or ``<pad>``; what follows is ignored. One that
    starts with ``<pad>`` is an empty candidate, or an absent reference. The function has no
    gradient. With 50 images of 5 samples, 5 references of 20 tokens each and the n-grams of
    Flickr8k it took 2.5 ms on 2 CPU cores.

    Args:
      frequencies: usually of the training split; also decide if ``<eos>`` counts as a word.
      candidates: (N,L) int32, one per image, or (N,S,L), S samples per image.
      references: (N,C,M) int32; shared by all samples of an image.
      weights: (N,C), at least 0, of each reference in its image's mean; None: equal weights.

    Returns:
      (N,) or (N,S) float32 in [0,10]; 0 for an image without references.

    Raises:
      ValueError: arrays of another rank or dtype or without tokens, different numbers of images,
        or weights of another shape.

    >>> references = jnp.array([[[4, 5, 6, 7, 2]], [[8, 9, 2, 0, 0]]])  # (N,C,M)
    >>> frequencies = DocumentFrequencies.count(references)
    >>> candidates = jnp.array([[4, 5, 6, 7, 2], [4, 5, 2, 0, 0]])  # (N,L)
    >>> cider_d(frequencies, candidates, references).round(3).tolist()
    [10.0, 0.0]
    """
    for name, array, ranks, form in (
        ("candidates", candidates, (2, 3), "(N,L) or (N,S,L)"),
        ("references", references, (3,), "(N,C,M)"),
    ):
        integers = jnp.issubdtype(array.dtype, jnp.integer)
        if array.ndim not in ranks or not integers or not array.shape[-1]:
            raise ValueError(
                f"{name}: expected integers {form}, received {array.dtype} of shape {array.shape}"
            )
    if candidates.shape[0] != references.shape[0]:
        raise ValueError(
            f"references: expected those of {candidates.shape[0]} images, "
            f"received those of {references.shape[0]}"
        )
    if weights is not None and weights.shape != references.shape[:2]:
        raise ValueError(
            f"weights: expected shape {references.shape[:2]}, received {weights.shape}"
        )
    candidates, references = jnp.asarray(candidates), jnp.asarray(references)
    if candidates.ndim == 2:
        return _cider_d(frequencies, candidates[:, None], references, weights)[:, 0]
    return _cider_d(frequencies, candidates, references, weights)


@jax.jit  # Outside of jit its hundreds of small operations would be compiled one by one.
def _cider_d(
    frequencies: DocumentFrequencies, candidates: Array, references: Array, weights: Array | None
) -> Array:
    """Returns (N,S) of candidates (N,S,L), references (N,C,M) and weights (N,C).

    n-grams are compared position by position instead of counted by id, since a table over all
    n-grams has no static shape; captions are short enough for the (L,M) comparisons.
    """
    num_words = _num_words(candidates, frequencies.count_eos)  # (N,S)
    reference_words = _num_words(references, frequencies.count_eos)  # (N,C)
    idf = _look_up(frequencies, candidates)
    reference_idf = _look_up(frequencies, references)
    similarity = jnp.float32(0)
    # Equality of the n-grams that start at two positions: within a candidate, within a reference,
    # across both. That of order n follows from order n - 1 and the last words.
    within: Array | None = None
    among: Array | None = None
    across: Array | None = None
    for n in range(min(ORDERS, candidates.shape[-1], references.shape[-1])):
        a, b = candidates[..., n:], references[..., n:]
        valid = n + jnp.arange(a.shape[-1]) < num_words[..., None]  # (N,S,L')
        reference_valid = n + jnp.arange(b.shape[-1]) < reference_words[..., None]  # (N,C,M')
        within = _extend(within, a, a)  # (N,S,L',L')
        among = _extend(among, b, b)  # (N,C,M',M')
        across = _extend(across, a[:, :, None], b[:, None])  # (N,S,C,L',M')
        counts = _count(within, valid[..., None, :])
        reference_counts = _count(among, reference_valid[..., None, :])
        matches = _count(across, reference_valid[:, None, :, None])  # (N,S,C,L')
        squares = jnp.where(valid, idf[n] ** 2, 0.0)
        reference_squares = jnp.where(reference_valid, reference_idf[n] ** 2, 0.0)
        # An n-gram that occurs k times has k positions, each with 1/k of its term: in the norms
        # (k idf)² / k = k idf².
        norms = (
            jnp.sqrt(jnp.sum(counts * squares, axis=-1))[:, :, None]
            * jnp.sqrt(jnp.sum(reference_counts * reference_squares, axis=-1))[:, None]
        )  # (N,S,C)
        shares = (squares / jnp.maximum(counts, 1.0))[:, :, None]
        products = jnp.sum(shares * jnp.minimum(counts[:, :, None], matches) * matches, axis=-1)
        similarity += jnp.where(norms > 0, products / jnp.where(norms > 0, norms, 1.0), 0.0)
    lengths = jnp.maximum(num_words - 1, 0)[:, :, None]
    reference_lengths = jnp.maximum(reference_words - 1, 0)[:, None]
    distance = (lengths - reference_lengths).astype(jnp.float32)
    similarity = similarity / ORDERS * jnp.exp(-(distance**2) / (2 * SIGMA**2))
    counted = (references[..., 0] != PAD).astype(jnp.float32)  # (N,C)
    if weights is not None:
        counted *= weights
    count = jnp.sum(counted, axis=-1, keepdims=True)
    total = jnp.sum(counted[:, None] * similarity, axis=-1)
    return 10.0 * total / jnp.where(count > 0, count, 1.0)


def _num_words(tokens: Array, count_eos: bool) -> Array:
    """Returns the number of words (...) int32 of tokens (...,L), with ``<eos>`` if it counts."""
    goes_on = jnp.cumsum((tokens == PAD) | (tokens == EOS), axis=-1) == 0
    words = jnp.sum(goes_on, axis=-1, dtype=jnp.int32)
    if not count_eos:
        return words
    last = jnp.minimum(words, tokens.shape[-1] - 1)[..., None]
    # A caption without an end has a word there, not <eos>.
    ends = jnp.take_along_axis(tokens, last, axis=-1)[..., 0] == EOS
    return words + ends


def _extend(equal: Array | None, a: Array, b: Array) -> Array:
    """Returns equality of n-grams (...,L',M') from that of n-1-grams and of their last words."""
    words = a[..., :, None] == b[..., None, :]
    return words if equal is None else equal[..., :-1, :-1] & words


def _count(equal: Array, valid: Array) -> Array:
    """Returns the number of valid positions whose n-gram is equal, summed over the last axis."""
    return jnp.sum(equal & valid, axis=-1, dtype=jnp.float32)


def _look_up(frequencies: DocumentFrequencies, tokens: Array) -> list[Array]:
    """Returns for each order the idf of the n-gram at each position, (...,L-n+1) float32."""
    # Of n-grams of the order before; -1: unseen. Sharded as the tokens are, for the loop's carry.
    ids = jnp.zeros_like(tokens, jnp.int32)
    found = []
    for n in range(min(ORDERS, tokens.shape[-1])):
        starts, words, depth = frequencies.starts[n], frequencies.words[n], frequencies.depths[n]
        ids, last = ids[..., : tokens.shape[-1] - n], tokens[..., n:]
        if not words.size:
            ids = jnp.full_like(ids, -1)
            found.append(jnp.full(ids.shape, frequencies.unseen_idf))
            continue
        low = jnp.where(ids < 0, 0, starts[ids])
        end = jnp.where(ids < 0, 0, starts[ids + 1])

        # The defaults bind this iteration's arrays, which a closure would not.
        def bisect(
            _: int, interval: tuple[Array, Array], words: Array = words, last: Array = last
        ) -> tuple[Array, Array]:
            low, high = interval  # The first child that is not below the word is in [low, high].
            middle = low + (high - low) // 2
            below = (low < high) & (words[middle] < last)
            return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

        child, _ = jax.lax.fori_loop(0, depth, bisect, (low, end))
        hit = (child < end) & (words[child] == last)
        ids = jnp.where(hit, child, -1)
        found.append(jnp.where(hit, frequencies.idf[n][ids], frequencies.unseen_idf))
    return found
