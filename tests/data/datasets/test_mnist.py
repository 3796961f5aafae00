"""MNIST pixel by pixel: published files, permutation, validation cut from train."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from data.datasets.mnist import Digits, PixelSequences, make_permutation, read_mnist
from tests.data.shared_data import shared

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28)).astype(np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write(folder: Path, form: str) -> Path:
    if form == "npz":
        np.savez(folder / "train.npz", images=IMAGES, labels=LABELS)
        np.savez(folder / "test.npz", images=IMAGES[::-1], labels=LABELS[::-1])
        return folder
    for begin, step in (("train", 1), ("t10k", -1)):
        for what, array in (("images", IMAGES[::step]), ("labels", LABELS[::step])):
            mark = "." if form == "dot" else "-"
            name = f"{begin}-{what}{mark}idx{array.ndim}-ubyte"
            content = idx(np.ascontiguousarray(array))
            if form == "gz":
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("form", ["npz", "idx", "dot", "gz"])
def test_forms_of_the_files(tmp_path: Path, form: str) -> None:
    root = write(tmp_path, form)
    parts = {s: read_mnist(root, s, validation=5) for s in ("train", "validation", "test")}
    np.testing.assert_array_equal(parts["train"].images, IMAGES[:7])
    np.testing.assert_array_equal(parts["validation"].images, IMAGES[7:])
    np.testing.assert_array_equal(parts["validation"].labels, LABELS[7:])
    np.testing.assert_array_equal(parts["test"].labels, LABELS[::-1])
    assert len(read_mnist(root, "train", validation=0).images) == 12


def test_pixel_sequences() -> None:
    digits = Digits(IMAGES, LABELS.astype(np.int32))
    example = PixelSequences(digits)[3]
    assert example["inputs"].shape == (784, 1)
    assert example["inputs"].dtype == np.float32
    expected = (IMAGES[3].reshape(-1) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(example["inputs"][:, 0], expected, rtol=1e-5, atol=1e-6)
    assert (example["label"], example["lengths"]) == (3, 784)
    order = make_permutation(7)
    permuted = PixelSequences(digits, order)
    np.testing.assert_array_equal(permuted[3]["inputs"], example["inputs"][order])
    np.testing.assert_array_equal(make_permutation(7), order)
    assert (make_permutation(8) != order).any()
    assert permuted.describe() != PixelSequences(digits, make_permutation(8)).describe()
    assert repr(pickle.loads(pickle.dumps(permuted))) == repr(permuted)
    with pytest.raises(ValueError, match="permutation: expected the numbers 0 to 783, each once"):
        PixelSequences(digits, np.zeros(784, int))
    with pytest.raises(IndexError, match="expected 0 to 11, received 12"):
        permuted[12]


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected train-images-idx3-ubyte, .* train\.npz"):
        read_mnist(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"expected t10k-images-idx3-ubyte, .* test\.npz"):
        read_mnist(tmp_path, "test")
    root = write(tmp_path, "idx")
    with pytest.raises(ValueError, match="split: expected one of train, validation, test"):
        read_mnist(root, "valid")
    for split, count in (("train", -1), ("train", 12), ("validation", 0)):
        with pytest.raises(ValueError, match="validation: expected 0"):
            read_mnist(root, split, validation=count)
    images = root / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"expected 9408 bytes of data .* received 9407; copy"):
        read_mnist(root, "train", validation=1)
    images.write_bytes(b"<html>no such file</html>")
    with pytest.raises(ValueError, match=r"expected an IDX file of uint8 with 3 axes, .* 3c 68 74"):
        read_mnist(root, "train", validation=1)
    images.write_bytes(gzip.compress(idx(IMAGES))[:-20])
    with pytest.raises(ValueError, match=r"damaged \(.*\); copy it again"):
        read_mnist(root, "train", validation=1)
    images.write_bytes(idx(IMAGES[:5]))
    with pytest.raises(ValueError, match=r"expected images \(N,28,28\) uint8 and labels \(N,\)"):
        read_mnist(root, "train", validation=1)


def test_the_shared_digits() -> None:
    root = shared("mnist")
    train, validation = read_mnist(root, "train"), read_mnist(root, "validation")
    assert train.images.shape == (55_000, 28, 28)
    assert len(validation.labels) == 5_000
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    parts = (train.images, validation.images)
    count = 60_000 * 28 * 28
    mean = sum(int(x.sum(dtype=np.int64)) for x in parts) / count / 255
    square = (
        sum(int((x.astype(np.uint16) ** 2).sum(dtype=np.int64)) for x in parts) / count / 255**2
    )
    assert mean == pytest.approx(0.1307, abs=1e-4)
    assert np.sqrt(square - mean**2) == pytest.approx(0.3081, abs=1e-4)
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        read_mnist(root, "test")
