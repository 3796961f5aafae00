"""Fields of NPZ, NumPy and Zarr: windows, split by time, and scaling."""

import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from data.frames import FieldFile, Fields, FieldWindows, fields, read_last_fields


def _values(*shape: int) -> np.ndarray:
    values = np.random.default_rng(0).normal(5, 2, shape).astype(np.float32)
    values[..., -1] *= 100
    return values


def _npz(folder: Path, **arrays: np.ndarray) -> str:
    path = str(folder / "fields.npz")
    np.savez(path, **arrays)
    return path


def test_splits_are_cut_in_time_and_scaled_by_the_training_part(tmp_path: Path) -> None:
    values = _values(50, 4, 6, 2)
    values[40:] += 1000  # Behind the training part, so the scaling must not see it.
    found = Fields(FieldFile(_npz(tmp_path, radar=values)), (0.8, 0.1, 0.1))
    train = values[:40].reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(found.scaling.offsets, train.mean(0))
    np.testing.assert_allclose(found.scaling.divisors, train.std(0))
    for split, begin, end in (("train", 0, 40), ("validation", 40, 45), ("test", 45, 50)):
        source = FieldWindows(found, split, num_frames=3)
        assert source.windows.tolist() == [[0, first] for first in range(begin, end - 2)]
        for index, (_, first) in enumerate(source.windows.tolist()):
            scaled = source[index]["frames"]
            assert scaled.dtype == np.float32
            np.testing.assert_allclose(
                found.scaling.inverse(scaled), values[first : first + 3], rtol=1e-5, atol=1e-3
            )
    strided = FieldWindows(found, "train", num_frames=3, stride=4, window_stride=0)
    assert strided.windows[:, 1].tolist() == [0, 9, 18, 27]
    np.testing.assert_allclose(
        found.scaling.inverse(strided[1]["frames"]), values[9:18:4], rtol=1e-5, atol=1e-3
    )


def test_endings_may_be_upper_case(tmp_path: Path) -> None:
    values = _values(5, 4, 4, 1)
    upper = Path(_npz(tmp_path, x=values)).rename(tmp_path / "FIELDS.NPZ")
    np.testing.assert_array_equal(FieldFile(str(upper)).read(0, 0, 5), values)
    np.save(tmp_path / "fields.npy", values)
    upper = (tmp_path / "fields.npy").rename(tmp_path / "FIELDS.NPY")
    np.testing.assert_array_equal(FieldFile(str(upper)).read(0, 0, 5), values)


def test_several_series_are_cut_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "_BLOCK_BYTES", 500)  # several blocks a series
    values = _values(10, 7, 4, 4, 1)
    found = Fields(FieldFile(_npz(tmp_path, x=values)), (0.6, 0.2, 0.2), "min_max")
    assert [part[0] for part in found.parts["validation"]] == [6, 7]
    assert found.scaling.offsets[0] == values[:6].min()
    source = FieldWindows(found, "test", num_frames=5)
    assert len(source) == 2 * 3
    assert source.frame_shape == (4, 4, 1)
    low = values[:6].min()
    np.testing.assert_allclose(
        source[4]["frames"], (values[9, 1:6] - low) / (values[:6].max() - low), rtol=1e-4
    )


def test_the_formats_hold_the_same_fields(tmp_path: Path) -> None:
    values = _values(12, 4, 4)
    np.save(tmp_path / "fields.npy", values)
    sources = [
        FieldWindows(Fields(FieldFile(path), (0.5, 0.5)), "validation", num_frames=2)
        for path in (str(tmp_path / "fields.npy"), _npz(tmp_path, x=values))
    ]
    first, second = (source.describe() for source in sources)
    assert first == second
    again = pickle.loads(pickle.dumps(sources[0]))
    assert np.array_equal(again[3]["frames"], sources[1][3]["frames"])


def test_zarr_arrays_and_groups_are_read(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")
    values = _values(12, 4, 5, 2)
    for version in (2, 3):
        group = zarr.open_group(tmp_path / f"v{version}.zarr", mode="w", zarr_format=version)
        group.create_array("radar", shape=values.shape, dtype="f4", chunks=(5, 4, 5, 2))
        group["radar"][:] = values
        file = FieldFile(tmp_path / f"v{version}.zarr")
        assert np.array_equal(file.read(0, 3, 9), values[3:9])
        again = pickle.loads(pickle.dumps(FieldWindows(Fields(file), "train", num_frames=2)))
        assert again[1]["frames"].shape == (2, 4, 5, 2)
        assert np.array_equal(FieldFile(tmp_path / f"v{version}.zarr" / "radar").shape, file.shape)
    zarr.open_group(tmp_path / "v3.zarr", mode="a").create_array("other", shape=(1,), dtype="f4")
    with pytest.raises(ValueError, match=r"^.*v3\.zarr: expected one array.*other, radar"):
        FieldFile(tmp_path / "v3.zarr")
    with pytest.raises(ValueError, match="did you mean 'radar'"):
        FieldFile(tmp_path / "v3.zarr", "rader")
    with pytest.raises(ValueError, match=r"^.*radar: expected a group with an array 'radar'"):
        FieldFile(tmp_path / "v3.zarr" / "radar", "radar")
    (tmp_path / "text.zarr").write_text("nothing")
    with pytest.raises(ValueError, match="array or group of Zarr, received another"):
        FieldFile(tmp_path / "text.zarr")


def test_a_missing_zarr_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    (tmp_path / "fields.zarr").mkdir()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flaxnets\[zarr\]'"):
        FieldFile(tmp_path / "fields.zarr")


def test_errors_of_a_file_begin_with_its_path(tmp_path: Path) -> None:
    # ``launch.predict`` tells them by this from others, and goes on with the next file.
    two, none = _npz(tmp_path, a=_values(5, 4, 4, 1), b=np.zeros(2)), str(tmp_path / "none.npz")
    np.savez(none)
    for path, array, reason in (
        (two, "", "expected one array, or the name of one by --config.data.array, received a, b"),
        (two, "c", "expected an array 'c', the value of --config.data.array, received a, b"),
        (none, "", "expected one array, .*received none"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(path)}: {reason}"):
            FieldFile(path, array)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "missing"), (np.inf, "infinite")])
def test_missing_values_are_named(tmp_path: Path, value: float, kind: str) -> None:
    values = _values(10, 4, 5, 1)
    values[7, 2, 3, 0] = value
    with pytest.raises(ValueError, match=rf"received {kind}.*first at step 7, row 2, column 3"):
        Fields(FieldFile(_npz(tmp_path, x=values)))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(T,H,W,C\).*received \(5, 5\) float64"):
        FieldFile(_npz(tmp_path, x=np.zeros((5, 5))))
    with pytest.raises(FileNotFoundError, match="do not exist"):
        FieldFile(tmp_path / "none.zarr")
    found = Fields(FieldFile(_npz(tmp_path, x=_values(20, 4, 4, 1))), (0.8, 0.2))
    with pytest.raises(ValueError, match=r"num_inputs \+ num_outputs: .*span 5.*received 4 steps"):
        FieldWindows(found, "validation", num_frames=5)
    with pytest.raises(ValueError, match="three shares make a test split"):
        FieldWindows(found, "test", num_frames=2)
    with pytest.raises(ValueError, match="shares: expected parts of at least one of the 20 steps"):
        Fields(found.file, (0.98, 0.01))


def test_the_last_fields_of_a_file_continue_it(tmp_path: Path) -> None:
    values = _values(9, 4, 4, 2)
    path = _npz(tmp_path, x=values)
    scaling = Fields(FieldFile(path), (0.5, 0.5)).scaling
    last = read_last_fields(path, "", 3, 2, scaling)
    np.testing.assert_allclose(last, scaling.apply(values[[4, 6, 8]]))
    with pytest.raises(ValueError, match="at least the 11 steps"):
        read_last_fields(path, "", 6, 2, scaling)
    other = _npz(tmp_path, x=_values(9, 4, 4, 1))
    with pytest.raises(ValueError, match="expected 2 channels"):
        read_last_fields(other, "", 3, 1, scaling)
    several = _npz(tmp_path, x=_values(2, 9, 4, 4, 2))
    with pytest.raises(ValueError, match="expected one series"):
        read_last_fields(several, "", 3, 1, scaling)
