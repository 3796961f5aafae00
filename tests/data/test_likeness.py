"""Signatures: copies of images and videos correlate, others do not."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import likeness
from data.likeness import find_alike, find_identical, make_signature


def picture(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Returns smooth colours, (H,W,3) uint8, as of a photograph out of focus."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def walk(seed: int, background: int, num_frames: int = 8) -> np.ndarray:
    """Returns a clip, (T,H,W,3) uint8, of a square that moves over a background."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(picture(background)[None], num_frames, 0)
    row, column, step = rng.integers(76), rng.integers(108), rng.integers(-12, 13)
    for t in range(num_frames):
        left = int(column + step * t) % 108
        square = frames[t, row : row + 20, left : left + 20]
        square[...] = square // 2 + 100
    return frames


def pairs(clips: list[np.ndarray], sides: list[str] | None = None) -> set[tuple[int, int]]:
    found = find_alike([make_signature(clip) for clip in clips], sides or [""] * len(clips))
    assert found is not None
    return {(pair.first, pair.second) for pair in found}


def test_copies_of_images_are_alike_and_other_images_are_not() -> None:
    images = [picture(seed) for seed in range(30)]
    first = images[0].astype(np.float32)
    copies = [
        picture(0, 48, 64),
        np.asarray(Image.fromarray(images[0]).resize((200, 200))),
        (0.7 * first + 30).astype(np.uint8),
        np.clip(first + np.random.default_rng(0).normal(0, 12, first.shape), 0, 255).astype(
            np.uint8
        ),
    ]
    same = {0, *range(30, 30 + len(copies))}
    expected = {(a, b) for a in same for b in same if a < b}
    assert pairs([image[None] for image in images + copies]) == expected


def test_images_without_structure_are_not_alike() -> None:
    noise = np.random.default_rng(0).normal(3, 1, (2, 96, 128, 3)).clip(0, 255).astype(np.uint8)
    black = np.zeros((2, 96, 128, 3), np.uint8)
    assert pairs([image[None] for image in (*noise, *black)]) == set()


def test_clips_before_the_same_background_are_told_apart_by_what_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = [walk(seed, background=7) for seed in range(6)]
    again = (clips[2] * 0.9).astype(np.uint8)
    assert pairs([*clips, again]) == {(2, 6)}
    monkeypatch.setattr(likeness, "MOTION_THRESHOLD", -1.0)
    assert len(pairs([*clips, again])) > 10  # Without what moves they cannot be told apart.


def test_still_videos_are_alike_if_their_pictures_are() -> None:
    still = [np.repeat(picture(seed)[None], 8, 0) for seed in (0, 1, 0)]
    assert pairs(still) == {(0, 2)}


@pytest.mark.parametrize("block", [3, 1024])
def test_only_files_of_different_splits_are_compared(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness, "_BLOCK", block)
    images = [picture(seed % 4)[None] for seed in range(12)]
    sides = ["train"] * 5 + ["test"] * 4 + ["validation"] * 3
    expected = {
        (a, b)
        for a in range(12)
        for b in range(a + 1, 12)
        if a % 4 == b % 4 and sides[a] != sides[b]
    }
    assert pairs(images, sides) == expected
    assert len(pairs(images)) == 4 * 3


def test_too_many_files_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "MAX_PRODUCTS", 10_000)
    signatures = [make_signature(picture(seed)[None]) for seed in range(8)]
    assert find_alike(signatures, [""] * 8) is None
    assert find_alike(signatures[:1], [""]) == []


def test_equal_contents_are_found_whatever_the_files_names(tmp_path: Path) -> None:
    contents = [b"one", b"two", b"one", b"", b"three", b"two", b"", b"one"]
    paths = [tmp_path / f"{number} é" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    sizes = [len(content) for content in contents]
    paths[5].unlink()  # It vanishes after its size was read.
    with ThreadPoolExecutor(2) as executor:
        found = find_identical([str(path) for path in paths], sizes, executor)
    assert sorted(map(sorted, found)) == [[0, 2, 7], [3, 6]]
