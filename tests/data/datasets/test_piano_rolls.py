"""Piano rolls: the shared sets' sizes, folders, damaged files."""

from pathlib import Path

import numpy as np
import pytest

from data.datasets.piano_rolls import read_piano_rolls
from data.series.sequences import NextSteps
from data.series.streams import StreamWindows
from tests.data.shared_data import shared

SIZES = {
    "jsb_chorales": ((229, 13_807), (76, 4_602), (77, 4_725), 160),
    "nottingham": ((694, 176_561), (173, 45_513), (170, 44_463), 1_793),
    "muse_data": ((524, 245_202), (135, 82_755), (124, 64_339), 4_273),
    "piano_midi": ((87, 75_911), (12, 8_540), (25, 19_036), 3_857),
}


def write(path: Path, **changes: np.ndarray) -> Path:
    arrays = {}
    for number, split in enumerate(("train", "valid", "test")):
        generator = np.random.default_rng(number)
        arrays[split] = generator.integers(0, 2, (9, 88)).astype(np.uint8)
        arrays[f"{split}_lengths"] = np.array([4, 5], np.int32)
    np.savez(path, **{**arrays, **changes})
    return path


@pytest.mark.parametrize("name", SIZES)
def test_the_shared_sets(name: str) -> None:
    folder = shared("music")
    *sizes, longest = SIZES[name]
    lengths = []
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        rolls = read_piano_rolls(folder, split, name)
        assert (len(rolls.lengths), len(rolls.steps)) == size
        assert rolls.steps.shape[1] == 88
        lengths.append(int(rolls.lengths.max()))
        # Both ways to train on them predict all steps but the first of each sequence.
        stream = StreamWindows(rolls.steps, rows=4, window=100, lengths=rolls.lengths)
        whole = NextSteps(rolls.sequences(), length=0)
        assert stream.num_predicted == whole.lengths().sum() == size[1] - size[0]
    assert max(lengths) == longest


def test_folders(tmp_path: Path) -> None:
    write(tmp_path / "b.npz")
    write(tmp_path / "a.npz", train=np.ones((3, 88), np.uint8), train_lengths=np.array([3]))
    joined = read_piano_rolls(tmp_path, "train")
    assert joined.lengths.tolist() == [3, 4, 5]
    assert joined.sequences()[0].all()
    assert len(read_piano_rolls(tmp_path, "validation", "b").steps) == 9
    assert read_piano_rolls(tmp_path / "a.npz", "train").name == "a"
    with pytest.raises(ValueError, match=r"received 'B'; did you mean 'b'\?"):
        read_piano_rolls(tmp_path, "train", "B")
    with pytest.raises(ValueError, match="split: expected train, validation or test"):
        read_piano_rolls(tmp_path, "valid")
    write(tmp_path / "b.npz", train=np.ones((9, 80), np.uint8))
    with pytest.raises(ValueError, match="expected piano rolls with the same keys"):
        read_piano_rolls(tmp_path, "train")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected a folder of .npz files"):
        read_piano_rolls(tmp_path / "none", "train")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for changes, reason in (
        ({"train": np.full((9, 88), 2, np.uint8)}, "expected train .* of zeros and ones"),
        ({"train": np.zeros((9, 88))}, "expected train .* of zeros and ones, received .* float64"),
        ({"train": np.zeros((0, 88), np.uint8)}, r"expected train .* received \(0, 88\) uint8"),
        ({"train_lengths": np.array([4, 4])}, "train_lengths above 0 with the sum 9, .* sum 8"),
        ({"train_lengths": np.array([9, 0])}, "train_lengths above 0 with the sum 9"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_piano_rolls(write(path, **changes), "train")
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected the arrays of train, .* received x"):
        read_piano_rolls(path, "train")
