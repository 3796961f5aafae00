"""The cache of features: equal to encoding directly, resumed after a kill, never stale."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from data.features import (
    FeatureSource,
    cache_directory,
    digest_file,
    write_features,
)

KEY = {"encoder": "mean", "weights": "0" * 64, "preprocessing": "none", "source": "random 7"}
FRAMES = 4


class Clips:
    """Source of random clips of 1..FRAMES frames; number 2 has ``mask`` False."""

    def __init__(self, examples: int = 7):
        self.examples = examples

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(index)
        return {
            "video": rng.integers(1, 256, (FRAMES, 6, 5, 3), np.uint8),
            "lengths": np.asarray(1 + index % FRAMES, np.int32),
            "label": np.asarray(index % 3, np.int32),
            "mask": np.asarray(index != 2),
            "index": np.asarray(index, np.int32),
        }


class Images:
    """Source of random images; number 2 has ``mask`` False."""

    def __init__(self, examples: int = 7, height: int = 6):
        self.examples = examples
        self.height = height

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(index)
        return {
            "image": rng.integers(1, 256, (self.height, 5, 3), np.uint8),
            "mask": np.asarray(index != 2),
            "index": np.asarray(index, np.int32),
        }


def encode(frames: np.ndarray) -> np.ndarray:
    """Returns the mean colour of the upper and the lower half, (n,2,3), of (n,H,W,3)."""
    halves = np.split(frames.astype(np.float32), 2, axis=1)
    return np.stack([half.mean((1, 2)) for half in halves], axis=1)


def assert_complete(source: FeatureSource, clips: Clips, dtype: str = "float16") -> None:
    assert len(source) == len(clips)
    for i in range(len(clips)):
        clip, stored = clips[i], source[i]
        expected = encode(clip["video"]).astype(dtype)
        expected[clip["lengths"] if clip["mask"] else 0 :] = 0
        np.testing.assert_array_equal(stored["features"], expected)
        assert stored["features"].dtype == dtype
        assert sorted(stored) == ["features", "index", "label", "lengths", "mask"]
        for name in ("index", "label", "lengths", "mask"):
            np.testing.assert_array_equal(stored[name], clip[name])
            assert stored[name].dtype == clip[name].dtype


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shard_size", [1, 3, 64])
def test_stored_features_equal_the_encoder(tmp_path: Path, dtype: str, shard_size: int) -> None:
    source = write_features(tmp_path, Clips(), encode, key=KEY, dtype=dtype, shard_size=shard_size)
    assert_complete(source, Clips(), dtype)


def test_views_keep_their_axis(tmp_path: Path) -> None:
    clip = Clips()[3]
    views = np.stack([clip["video"], clip["video"][:, ::-1]])  # (2,T,H,W,3)
    example = {**clip, "video": views, "lengths": np.asarray([1, FRAMES], np.int32)}
    features = write_features(tmp_path, [example], encode, key=KEY, dtype="float32")[0]["features"]
    assert features.shape == (2, FRAMES, 2, 3)
    np.testing.assert_allclose(features[1], encode(views[1]))
    np.testing.assert_allclose(features[0, :1], encode(views[0, :1]))
    assert not features[0, 1:].any()


def test_a_complete_cache_is_not_encoded_again(tmp_path: Path) -> None:
    write_features(tmp_path, Clips(), encode, key=KEY, shard_size=3)

    def fail(frames: np.ndarray) -> np.ndarray:
        raise AssertionError("encoded again")

    assert_complete(write_features(tmp_path, Clips(), fail, key=KEY), Clips())


@pytest.mark.parametrize("name", [*KEY, "more"])
def test_another_key_is_another_cache(tmp_path: Path, name: str) -> None:
    write_features(tmp_path, Clips(), encode, key=KEY)
    other = write_features(
        tmp_path, Clips(), lambda frames: encode(frames) + 1, key={**KEY, name: "other"}
    )
    assert other[0]["features"].max() > Clips()[0]["video"].mean()
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 2


def test_a_stale_directory_is_refused(tmp_path: Path) -> None:
    directory = write_features(tmp_path, Clips(), encode, key=KEY).directory
    other = write_features(tmp_path, Clips(), encode, key={**KEY, "weights": "1" * 64}).directory
    shutil.rmtree(directory)
    other.rename(directory)
    with pytest.raises(ValueError, match="something else: weights"):
        write_features(tmp_path, Clips(), encode, key=KEY)


def damage(path: Path, place: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1
    path.write_bytes(whole)


def test_a_flipped_bit_in_a_file_of_features_is_told_with_the_file(tmp_path: Path) -> None:
    source = write_features(tmp_path, Clips(), encode, key=KEY, shard_size=3)
    path = source.directory / "features-00001-of-00003.arrayrecord"
    whole = path.read_bytes()
    expected = [source[index] for index in range(7)]
    # The rest is padding, which holds nothing.
    places = [place for place, byte in enumerate(whole) if byte][:: len(whole) // 60_000 + 30]
    seen = 0
    for place in places:
        damage(path, place)
        try:
            damaged = FeatureSource(source.directory)
            read = [damaged[index] for index in range(7)]
        except ValueError as error:
            seen += str(error).startswith(f"{path}: damaged (")
        else:  # ArrayRecord has some bytes of no meaning.
            for one, other in zip(read, expected, strict=True):
                np.testing.assert_equal(one, other)
        path.write_bytes(whole)
    assert seen > len(places) / 2


def test_swapped_and_cut_files_of_features_are_told(tmp_path: Path) -> None:
    source = write_features(tmp_path, Clips(), encode, key=KEY, shard_size=3)
    first, second, last = (
        source.directory / f"features-0000{number}-of-00003.arrayrecord" for number in range(3)
    )
    wholes = first.read_bytes(), second.read_bytes()
    first.write_bytes(wholes[1])
    second.write_bytes(wholes[0])
    with pytest.raises(ValueError, match=r"00000-of-.*holds example 3 where 0 belongs"):
        FeatureSource(source.directory)[0]
    first.write_bytes(wholes[0])
    for cut in (b"", wholes[1][: len(wholes[1]) // 2]):
        second.write_bytes(cut)
        with pytest.raises(ValueError, match=r"00001-of-00003\.arrayrecord: damaged \("):
            FeatureSource(source.directory)
    second.write_bytes(last.read_bytes())  # One example instead of three.
    with pytest.raises(ValueError, match=r"00001-of-.*expected 3 examples, received 1"):
        FeatureSource(source.directory)


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff\xfe", b'{"key": {}}', b"[" * 100_000])
def test_a_damaged_key_names_its_file(tmp_path: Path, text: bytes) -> None:
    path = write_features(tmp_path, Clips(), encode, key=KEY).directory / "key.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"key\.json: damaged \("):
        FeatureSource(path.parent)


def test_a_flipped_bit_in_a_key_is_seen(tmp_path: Path) -> None:
    path = write_features(tmp_path, Clips(), encode, key=KEY).directory / "key.json"
    for place in range(len(path.read_bytes())):
        damage(path, place)
        with pytest.raises(ValueError, match=r"key\.json: damaged \("):
            FeatureSource(path.parent)
        damage(path, place)
    FeatureSource(path.parent)


def test_resumes_after_an_error_with_the_missing_file(tmp_path: Path) -> None:
    encoded: list[int] = []

    def stop_at_five(frames: np.ndarray) -> np.ndarray:
        if len(encoded) == 5:
            raise RuntimeError("stopped")
        encoded.append(len(frames))
        return encode(frames)

    with pytest.raises(RuntimeError, match="stopped"):
        write_features(tmp_path, Clips(), stop_at_five, key=KEY, shard_size=2)
    directory = cache_directory(tmp_path, KEY, examples=7)
    with pytest.raises(FileNotFoundError, match="2 of 4 files are not written yet"):
        FeatureSource(directory)
    done: list[tuple[int, int]] = []
    source = write_features(
        tmp_path, Clips(), encode, key=KEY, on_progress=lambda *counts: done.append(counts)
    )
    assert done == [(5, 7), (6, 7), (7, 7)]
    assert_complete(source, Clips())
    assert [path.name for path in directory.glob(".*")] == [".lock"]


@pytest.mark.subprocess
@pytest.mark.parametrize("examples", [Clips, Images])
def test_resumes_after_a_kill(tmp_path: Path, examples: type) -> None:
    program = f"""
import importlib.util, os, signal
spec = importlib.util.spec_from_file_location("cache_test", {__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

def stop(done, examples):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

module.write_features({str(tmp_path)!r}, module.{examples.__name__}(), module.encode,
                      key=module.KEY, shard_size=3, on_progress=stop)
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env={**os.environ}, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*/.features-*"))) == 1
    done: list[int] = []
    source = write_features(
        tmp_path, examples(), encode, key=KEY, on_progress=lambda count, _: done.append(count)
    )
    assert done == [4, 5, 6, 7]
    assert [path.name for path in tmp_path.glob("*/.*")] == [".lock"]
    whole = write_features(tmp_path / "whole", examples(), encode, key=KEY)
    for index in range(7):
        np.testing.assert_array_equal(source[index]["features"], whole[index]["features"])


def test_two_writers_at_once(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def write() -> None:
        try:
            assert_complete(
                write_features(tmp_path, Clips(), encode, key=KEY, shard_size=1), Clips()
            )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_source_can_be_pickled(tmp_path: Path) -> None:
    source = write_features(tmp_path, Clips(), encode, key=KEY, shard_size=3)
    assert source[0]["index"] == 0
    assert_complete(pickle.loads(pickle.dumps(source)), Clips())


def test_an_index_out_of_range(tmp_path: Path) -> None:
    source = write_features(tmp_path, Clips(), encode, key=KEY)
    for index in (-1, 7):
        with pytest.raises(IndexError, match=f"received {index}"):
            source[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": {"encoder": "mean"}}, "lacks weights, preprocessing, source"),
        ({"key": {**KEY, "more": object()}}, "JSON"),
        ({"dtype": "bfloat16"}, "dtype: expected 'float16' or 'float32'"),
        ({"shard_size": 0}, "shard_size: expected at least 1"),
        ({"chunk": 0}, "chunk: expected at least 1"),
        ({"examples": []}, "examples: expected at least one"),
        ({"examples": [{**Images()[0], "name": np.asarray(["a"], object)}]}, "objects in .*name"),
        ({"encode": lambda frames: encode(frames)[:1]}, "encode: expected"),
        ({"encode": lambda frames: encode(frames) * 1e5}, "not finite in float16"),
        ({"encode": lambda frames: encode(frames) * np.nan}, "not finite in float16"),
    ],
)
def test_wrong_arguments(tmp_path: Path, change: dict, message: str) -> None:
    arguments = {"examples": Clips(), "encode": encode, "key": KEY, **change}
    with pytest.raises(ValueError, match=message):
        write_features(tmp_path, **arguments)


def test_no_cache(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"key\.json"):
        FeatureSource(tmp_path)


def test_digest_follows_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_file(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize(
    ("chunk", "shard_size", "calls"), [(1, 4, 7), (3, 3, 3), (3, 4, 3), (100, 4, 2), (4, 100, 2)]
)
def test_images_are_encoded_in_chunks_of_one_size(
    tmp_path: Path, chunk: int, shard_size: int, calls: int
) -> None:
    sizes: list[int] = []

    def noting(frames: np.ndarray) -> np.ndarray:
        sizes.append(len(frames))
        return encode(frames)

    done: list[int] = []
    source = write_features(
        tmp_path,
        Images(),
        noting,
        key=KEY,
        chunk=chunk,
        shard_size=shard_size,
        on_progress=lambda count, _: done.append(count),
    )
    assert sizes == [min(chunk, shard_size, 7)] * calls
    assert done == [*range(1, 8)]
    for i in range(7):
        image, stored = Images()[i], source[i]
        assert sorted(stored) == ["features", "index", "mask"]
        expected = encode(image["image"][None])[0] * image["mask"]
        np.testing.assert_array_equal(stored["features"], expected.astype(np.float16))
        assert stored["mask"] == image["mask"]
        assert stored["index"] == i


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([Images()[0], Images(height=7)[1]], r"image of example 1: .*\(6, 5, 3\).*\(7, 5, 3\)"),
        ([Images()[0], Clips()[1]], "image of example 1: .*received shape None"),
        ([{"mask": np.asarray(True)}], "expected 'image' or 'video', received mask"),
    ],
)
def test_examples_that_do_not_fit(tmp_path: Path, examples: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_features(tmp_path, examples, encode, key=KEY)
