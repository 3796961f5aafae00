"""Converted data sets are read as the original; interruptions, damage and other versions."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import files as data_files
from data.audio.decoding import read_audio
from data.captions.images import ImageTransform, read_image
from data.check import check
from data.convert import convert, convert_sources, main
from data.datasets.array_record_folder import StoredExamples, find_bad_shards, keep_whole_shards
from data.datasets.image_captions import read_captioned_images
from data.datasets.labelled_files import LabelledFiles, read_labelled_files
from data.datasets.line_folder import read_text_lines
from data.datasets.splits import make_split, read_split_file, write_split
from data.features import digest_file
from data.files import MANIFEST, manifest_text, open_file, read_manifest
from data.labelled_images import ImageSource, WholeImages
from data.loader import Loader
from data.moving_shapes.source import MovingShapes
from data.shards import Item, Packed, write_shards
from data.video import (
    DecodeClip,
    SpatialTransform,
    UniformClip,
    VideoError,
    VideoSource,
    decode,
    decode_all,
    probe,
)
from data.video.decoding import survey
from tests.data.audio.wavs import write_wav
from tests.data.pictures import random_image
from tests.data.shared_data import shared
from tests.data.video_files import frame_numbers, write_video

ROOT = Path(__file__).parents[2]
DAMAGED = b"no video at all" * 40


def make_videos(root: Path) -> Path:
    """Writes class folders of seven videos, one of them a copy, and one damaged file."""
    for number, name in enumerate(("Wave/g1_a.avi", "Wave/g1_b.avi", "Wave/g2_a.mp4")):
        write_video(root / name, 8 + 3 * number)
    for number, name in enumerate(("Clap/g3_a.avi", "Clap/g3_ä.avi", "Clap/deep/g4_a.avi")):
        write_video(root / name, 9 + 2 * number, size=(32, 48))
    shutil.copy(root / "Clap/g3_a.avi", root / "Wave/g5_a.avi")
    (root / "Wave" / "g6_a.avi").write_bytes(DAMAGED)
    return root


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def converted(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(videos, out, shard_bytes=8_000)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of all files of a conversion but its lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def without_places(files: LabelledFiles) -> LabelledFiles:
    return dataclasses.replace(files, paths=(), layout="", notes=())


def without_damaged(files: LabelledFiles) -> LabelledFiles:
    return files.take([i for i, name in enumerate(files.names) if "g6" not in name])


def test_class_folders_are_read_as_the_original(videos: Path, converted: Path) -> None:
    original = without_damaged(read_labelled_files(videos, group_pattern=r"^(g\d)"))
    read = read_labelled_files(converted, group_pattern=r"^(g\d)")
    assert without_places(read) == without_places(original)
    assert len({Path(path).parts[-4] for path in read.paths}) > 1  # Several shards.
    for path, stored in zip(original.paths, read.paths, strict=True):
        assert probe(stored) == probe(path)
        assert digest_file(stored) == digest_file(path)
        np.testing.assert_array_equal(decode(stored, [5, 0, 3]), decode(path, [5, 0, 3]))
        with open_file(stored) as file:
            assert file.read() == Path(path).read_bytes()
    splits = [make_split(files, seed=3).splits for files in (original, read)]
    assert splits[0] == splits[1]


def test_batches_equal_those_of_files(videos: Path, converted: Path) -> None:
    transform = DecodeClip(UniformClip(4), SpatialTransform((24, 24), flip=True), train=True)
    batches = []
    for root in (videos, converted):
        files = without_damaged(read_labelled_files(root))
        loader = Loader(
            VideoSource(files.paths, files.labels), transform=transform, batch_size=3, train=True
        )
        with loader.batches() as iterator:
            batches.append([next(iterator) for _ in range(4)])
    for first, second in zip(*batches, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_what_cannot_be_decoded_is_named(converted: Path) -> None:
    manifest = read_manifest(converted)
    assert manifest is not None
    [failed] = manifest["failed"]
    assert failed["file"] == "Wave/g6_a.avi"
    assert "not a readable video" in failed["reason"]
    assert manifest["files"] == 7
    assert manifest["classes"] == {"Clap": 3, "Wave": 4}
    notes = read_labelled_files(converted).notes
    assert any("1 files could not be read by the conversion: Wave/g6_a.avi" in x for x in notes)


def test_a_split_of_a_run_on_files_is_read_on_the_converted(
    videos: Path, converted: Path, tmp_path: Path
) -> None:
    made = make_split(without_damaged(read_labelled_files(videos)), seed=1)
    write_split(tmp_path / "split.csv", made)
    read = read_split_file(tmp_path / "split.csv", converted, made.class_names)
    assert read.splits == made.splits
    assert probe(read.paths[0]) == probe(made.paths[0])


def test_list_with_classes_groups_and_folds(videos: Path, tmp_path: Path) -> None:
    names = ["Wave/g1_a.avi", "Wave/g2_a.mp4", "Clap/g3_a.avi", "Clap/deep/g4_a.avi"]
    rows = zip(names, "1100", ("anna", "ben", "anna", "cleo"), "1233", strict=True)
    table = tmp_path / "list.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group", "fold"), *rows])
    (tmp_path / "names.txt").write_text("Zap\nAck\n")
    options: dict[str, Any] = {"class_list": str(tmp_path / "names.txt")}
    convert(videos, tmp_path / "out", str(table), **options)
    for fold in (1, 2, 3):
        read = read_labelled_files(tmp_path / "out", fold=fold)
        original = read_labelled_files(videos, list_file=table, fold=fold, **options)
        assert without_places(read) == without_places(original)
        assert read.class_names == ("Zap", "Ack")
        assert read.official_folds


def test_layout_of_ucf101_keeps_all_its_lists(videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "ucf"
    shutil.copytree(videos, root / "videos")
    lists = {
        "classInd": ["1 Wave", "2 Clap"],
        "trainlist01": ["Wave/g1_a.avi 1", "Wave/g6_a.avi 1", "Clap/g3_a.avi 2"],
        "testlist01": ["Wave/g2_a.mp4", "Clap/g3_ä.avi"],
        "trainlist02": ["Wave/g2_a.mp4 1", "Clap/g3_ä.avi 2"],
        "testlist02": ["Wave/g1_a.avi", "Clap/g3_a.avi"],
    }
    (root / "splits").mkdir()
    for name, lines in lists.items():
        (root / "splits" / f"{name}.txt").write_text("\n".join(lines))
    manifest = convert(root, tmp_path / "out")
    assert [row["file"] for row in manifest["failed"]] == ["videos/Wave/g6_a.avi"]
    for fold in (1, 2):
        read = read_labelled_files(tmp_path / "out", fold=fold)
        original = without_damaged(read_labelled_files(root, fold=fold))
        assert without_places(read) == without_places(original)


def test_frames_as_jpeg(videos: Path, tmp_path: Path) -> None:
    manifest = convert(videos, tmp_path / "out", frames="jpeg", short_side=32, quality=90)
    preprocessing = manifest["preprocessing"]
    assert (preprocessing["short_side"], preprocessing["quality"]) == (32, 90)
    original = without_damaged(read_labelled_files(videos))
    read = read_labelled_files(tmp_path / "out")
    assert without_places(read) == without_places(original)
    for path, stored in zip(original.paths, read.paths, strict=True):
        found, before = probe(stored), probe(path)
        assert (found.num_frames, found.rate) == (before.num_frames, before.rate)
        assert min(found.height, found.width) == 32
        frames = decode(stored, [4, 1, 4])
        assert frames.shape == (3, found.height, found.width, 3)
        np.testing.assert_array_equal(frame_numbers(frames), [4, 1, 4])
        expected = decode(path, [4, 1, 4], short_side=32).astype(int)
        # Above the textured half, whose detail JPEG loses.
        assert np.abs(frames - expected)[:, :14].mean() < 3
        np.testing.assert_array_equal(np.stack([*decode_all(stored)])[[4, 1, 4]], frames)
        assert decode(stored, [0], short_side=12).shape[1] == 12
        assert survey(stored, 3).info == found
        with pytest.raises(VideoError, match=f"ends after {found.num_frames} frames"):
            decode(stored, [found.num_frames])
    with pytest.raises(OSError, match="its frames are stored, not the file"):
        open_file(read.paths[0])


def test_images_sounds_captions_and_lines(tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_image(20, 30, number)).save(path)
        sound = tmp_path / "sounds" / "ab"[number % 2] / f"{number}.wav"
        write_wav(sound, np.sin(np.arange(900) * (number + 1) / 9))
        for kind, text in (
            ("captions", f"a {number} of\nmany\n"),
            ("lines", f"Zeile „{number}“, ſ"),
        ):
            image = tmp_path / kind / f"{number}.png"
            image.parent.mkdir(exist_ok=True)
            Image.fromarray(random_image(10, 90 if kind == "lines" else 12, number)).save(image)
            end = ".txt" if kind == "captions" else ".gt.txt"
            (tmp_path / kind / f"{number}{end}").write_text(text, encoding="utf-8")
    manifests = {
        kind: convert(tmp_path / kind, tmp_path / f"{kind}_out", shard_bytes=3_000)
        for kind in ("images", "sounds", "captions", "lines")
    }
    kinds = [manifest["kind"] for manifest in manifests.values()]
    assert kinds == ["image", "sounds", "captions", "lines"]

    files = [
        read_labelled_files(tmp_path / name, kind="image") for name in ("images", "images_out")
    ]
    assert without_places(files[0]) == without_places(files[1])
    sources = [WholeImages(ImageSource(f.paths, f.labels), ImageTransform(16)) for f in files]
    for index in range(6):
        np.testing.assert_array_equal(sources[0][index]["image"], sources[1][index]["image"])

    sounds = [read_labelled_files(tmp_path / s, kind="recording") for s in ("sounds", "sounds_out")]
    assert without_places(sounds[0]) == without_places(sounds[1])
    for wav, stored in zip(sounds[0].paths, sounds[1].paths, strict=True):
        np.testing.assert_array_equal(read_audio(wav), read_audio(stored))

    first, second = (read_captioned_images(tmp_path / n) for n in ("captions", "captions_out"))
    assert first.names == second.names
    assert first.images.captions == second.images.captions
    np.testing.assert_array_equal(*(read_image(x.images.paths[2]) for x in (first, second)))

    lines = [read_text_lines(tmp_path / name) for name in ("lines", "lines_out")]
    assert (lines[0].names, lines[0].texts) == (lines[1].names, lines[1].texts)
    np.testing.assert_array_equal(*(read_image(x.paths[1]) for x in lines))

    with pytest.raises(ValueError, match=r"expected converted videos with labels.* kind image"):
        read_labelled_files(tmp_path / "images_out")
    with pytest.raises(ValueError, match=r"frames: expected original for sounds, received jpeg"):
        convert(tmp_path / "sounds", tmp_path / "other", frames="jpeg")
    small = convert(tmp_path / "images", tmp_path / "small", frames="jpeg", short_side=10)
    assert small["files"] == 6
    shown = read_image(read_labelled_files(tmp_path / "small", kind="image").paths[0])
    assert shown.shape == (10, 15, 3)


def test_the_check_reads_converted_data(converted: Path) -> None:
    findings, described = check(str(converted))
    assert {row["name"] for row in described} == set(read_labelled_files(converted).names)
    assert not any("unreadable" in finding.text for finding in findings)


class _Interrupted:
    """Packs files until a number of them is done."""

    def __init__(self, most: int):
        self.left = most

    def __call__(self, item: Item) -> Packed:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return Packed(item.source * 100, item.size, item.name)


@pytest.mark.parametrize("most", [0, 1, 4, 7])
def test_an_interrupted_conversion_continues(tmp_path: Path, most: int) -> None:
    items = [Item(f"file{n}", bytes([n]), 100) for n in range(8)]

    def write(name: str, limit: int) -> dict[str, Any]:
        make = _Interrupted(limit)
        return write_shards(
            tmp_path / name, items, make, described={"kind": "test"}, shard_bytes=250
        )

    with pytest.raises(KeyboardInterrupt):
        write("interrupted", most)
    assert read_manifest(tmp_path / "interrupted") is None
    (tmp_path / "interrupted" / ".data-00001-of-00004.arrayrecord.ab.unfinished").touch()
    # Whole shards are not written again.
    manifest = write("interrupted", 8 - most // 2 * 2)
    assert manifest == write("whole", 8)
    assert content(tmp_path / "interrupted") == content(tmp_path / "whole")
    assert write("whole", 0) == manifest  # It is finished.


def test_a_folder_with_something_else_is_refused(videos: Path, tmp_path: Path) -> None:
    items = [Item(f"file{n}", bytes([n]), 100, changed=n) for n in range(4)]
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_shards(out, items, _Interrupted(3), described={"kind": "a"}, shard_bytes=200)
    for others, kind, what in (
        (items, "b", "other options, files or labels"),
        (items[:3], "a", "other options, files or labels"),
        ([item._replace(changed=9) for item in items], "a", "other files, changed since"),
    ):
        with pytest.raises(ValueError, match=f"an interrupted conversion with {what}"):
            write_shards(out, others, _Interrupted(9), described={"kind": kind}, shard_bytes=200)
    write_shards(out, items, _Interrupted(9), described={"kind": "a"}, shard_bytes=200)
    with pytest.raises(ValueError, match="received the result of another conversion"):
        write_shards(out, items, _Interrupted(9), described={"kind": "b"}, shard_bytes=200)
    changed = [item._replace(changed=9) for item in items]
    with pytest.raises(ValueError, match="of these files before they were written anew"):
        write_shards(out, changed, _Interrupted(9), described={"kind": "a"}, shard_bytes=200)
    with pytest.raises(ValueError, match="expected a new or empty folder, received one with Clap"):
        convert(make_videos(tmp_path / "copy"), make_videos(tmp_path / "full"))
    with pytest.raises(ValueError, match="expected a folder outside of the data"):
        convert(videos, videos / "out")
    with pytest.raises(ValueError, match=r"give --frames=jpeg"):
        convert(videos, tmp_path / "new", short_side=10)
    with pytest.raises(ValueError, match="none of 1 files could be stored; the first: file1: no"):
        write_shards(tmp_path / "none", [Item("file1", b"", 1)], _refuse, described={})


def test_a_finished_conversion_with_other_labels_is_refused(videos: Path, tmp_path: Path) -> None:
    names = ["Wave/g1_a.avi", "Wave/g2_a.mp4", "Clap/g3_a.avi", "Clap/deep/g4_a.avi"]
    table, refused = tmp_path / "list.csv", "the result of another conversion, of other files or la"

    def write(header: str, values: str) -> dict[str, Any]:
        rows = zip(names, values, strict=True)
        table.write_text("\n".join([f"path,label,{header}", *(f"{n},{n[0]},{v}" for n, v in rows)]))
        return convert(videos, tmp_path / header, str(table))

    for header, values, others in (("group", "1122", "1212"), ("fold", "1233", "1323")):
        manifest = write(header, values)
        assert write(header, values) == manifest
        with pytest.raises(ValueError, match=refused):
            write(header, others)
    table.write_text(table.read_text().replace(",C,", ",W,", 1))
    with pytest.raises(ValueError, match=refused):
        convert(videos, tmp_path / "fold", str(table))
    convert(videos, tmp_path / "folders")
    with pytest.raises(ValueError, match=refused):
        convert(videos, tmp_path / "folders", group_pattern=r"^(g\d)")


def test_a_finished_conversion_with_other_captions_or_texts_is_refused(tmp_path: Path) -> None:
    for kind, column in (("captions", "caption"), ("lines", "text")):
        root = tmp_path / kind
        root.mkdir()
        for number in range(2):
            Image.fromarray(random_image(8, 64, number)).save(root / f"{number}.png")
        table = tmp_path / f"{kind}.csv"
        table.write_text(f"file,{column}\n0.png,a dog\n1.png,a cat\n")
        convert(root, tmp_path / f"{kind}_out", str(table), kind=kind)
        table.write_text(f"file,{column}\n0.png,a cat\n1.png,a dog\n")
        with pytest.raises(ValueError, match="the result of another conversion"):
            convert(root, tmp_path / f"{kind}_out", str(table), kind=kind)


def _refuse(item: Item) -> Packed:
    raise ValueError("no")


def _damage(shard: Path) -> None:
    packed = bytearray(shard.read_bytes())
    packed[len(packed) // 2 :: 97] = bytes(len(packed[len(packed) // 2 :: 97]))
    shard.write_bytes(packed)


def test_shards_with_a_wrong_checksum(converted: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(converted, tmp_path / "copy"))
    files = read_labelled_files(root)
    assert keep_whole_shards(files, "fail") is files
    shards = sorted(root.glob("*.arrayrecord"))
    _damage(shards[1])
    shards[2].unlink()
    bad = find_bad_shards(root)
    assert bad == {shards[1].name: "wrong checksum", shards[2].name: "missing"}
    with pytest.raises(
        ValueError, match=rf"2 shards .*{shards[1].name} \(wrong checksum\), .*skip"
    ):
        keep_whole_shards(files, "fail")
    kept = keep_whole_shards(files, "skip")
    lost = [path for path in files.paths if any(shard.name in path for shard in shards[1:3])]
    assert set(files.paths) - set(kept.paths) == set(lost)
    assert f"{len(lost)} of 7 files were left out with 2 shards" in kept.notes[-1]
    assert keep_whole_shards(files, "trust") is files
    with pytest.raises(ValueError, match="bad_shards: expected fail, skip, trust, received 'no'"):
        keep_whole_shards(files, "no")
    # ArrayRecord's own checksums find what nobody looked for.
    source = VideoSource(files.paths, files.labels)
    clip = DecodeClip(UniformClip(2), SpatialTransform((8, 8)), train=False)
    masks = {
        path: bool(clip(source[i], np.random.default_rng())["mask"])
        for i, path in enumerate(files.paths)
    }
    assert [path for path, mask in masks.items() if not mask] == lost
    for shard in shards:
        shard.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="none is left"):
        keep_whole_shards(files, "skip")


def test_swapped_shards_and_another_index(converted: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(converted, tmp_path / "copy"))
    first, second = sorted(root.glob("*.arrayrecord"))[:2]
    first.rename(root / "other")
    second.rename(first)
    (root / "other").rename(second)
    path = read_labelled_files(root).paths[0]
    with pytest.raises(VideoError, match="as if shards were swapped"):
        probe(path)
    (root / "index.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.jsonl: expected the index of manifest\.json"):
        read_labelled_files(root)


def test_manifests_of_another_version(converted: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(converted, tmp_path / "copy"))
    manifest = json.loads((root / MANIFEST).read_bytes())
    (root / MANIFEST).write_text(manifest_text({**manifest, "version": 2}))
    with pytest.raises(ValueError, match=r"expected version 1 of the format .*, received 2; conv"):
        read_labelled_files(root)
    (root / MANIFEST).write_text(json.dumps({**manifest, "files": 8}))
    with pytest.raises(ValueError, match="damaged \\(its digest differs\\)"):
        read_labelled_files(root)
    (root / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: damaged"):
        read_labelled_files(root)
    (root / MANIFEST).write_text("{}")  # Somebody else's.
    assert read_manifest(root) is None


class Numbers:
    """Examples of several shapes."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        return {"x": np.arange(index, dtype=np.float32), "index": np.asarray(index, np.int32)}


def test_examples_of_any_source(tmp_path: Path) -> None:
    sources = {"train": MovingShapes("train", 5), "numbers": Numbers()}
    manifest = convert_sources(sources, tmp_path / "out", shard_examples=3)
    assert manifest["splits"] == {"train": 5, "numbers": 7}
    assert len(manifest["shards"]) == 4
    for split, source in sources.items():
        stored = StoredExamples(tmp_path / "out", split)
        assert len(stored) == len(source)
        for index in (0, 4, 2):
            assert stored[index].keys() == source[index].keys()
            for name, value in source[index].items():
                np.testing.assert_array_equal(stored[index][name], value)
    with pytest.raises(ValueError, match="split: expected one of numbers, train, received 'test'"):
        StoredExamples(tmp_path / "out", "test")
    with pytest.raises(IndexError, match="expected 0 to 6, received 7"):
        StoredExamples(tmp_path / "out", "numbers")[7]
    _damage(tmp_path / "out" / manifest["shards"][3]["name"])
    with pytest.raises(ValueError, match="1 shards are not as they were written"):
        StoredExamples(tmp_path / "out", "numbers")
    assert len(StoredExamples(tmp_path / "out", "numbers", bad_shards="skip")) < 7


def test_the_program_tells_what_it_did(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(videos), f"--out={tmp_path / 'out'}", "--workers=0"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "7 files, class folders" in told
    assert "left out   1 files that cannot be read: Wave/g6_a.avi (" in told
    assert main([*arguments, "--frames=jpeg"]) == 1
    assert "received the result of another conversion" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), f"--out={tmp_path / 'x'}"]) == 1


def test_names_of_files_that_only_look_stored() -> None:
    assert data_files.find_stored("a.arrayrecord/x/b.avi") is None
    assert data_files.find_stored("arrays/3/b.avi") is None
    stored = data_files.find_stored("r/a.arrayrecord/12/b/c.avi")
    assert stored == ("r/a.arrayrecord", 12, "b/c.avi")


@pytest.mark.slow
@pytest.mark.subprocess
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import os, pathlib, time\n"
        "from data.shards import Item, write_shards\n"
        "def make(item):\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        f"    write_shards({str(tmp_path / 'out')!r}, [Item('a', '', 1)], make, described={{}},\n"
        "                 workers=1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    finally:
        process.kill()
        process.wait()
    worker = int((tmp_path / "pid").read_text())
    ended = wait_for(lambda: not Path(f"/proc/{worker}").exists())
    if not ended:
        os.kill(worker, signal.SIGKILL)
    assert ended


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> bool:
    """Returns True once the condition holds, False if it does not within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.stress
@pytest.mark.subprocess
def test_a_killed_conversion_with_workers_continues(tmp_path: Path) -> None:
    for number in range(24):
        write_video(tmp_path / "videos" / "ab"[number % 2] / f"{number}.avi", size=(240, 320))
    script = tmp_path / "run.py"
    script.write_text(
        "from data.convert import convert\n"
        "if __name__ == '__main__':\n"
        f"    convert({str(tmp_path / 'videos')!r}, {str(tmp_path / 'out')!r}, frames='jpeg',\n"
        "            shard_bytes=200_000, workers=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = 0
    for _ in range(30):
        process = subprocess.Popen(
            [sys.executable, str(script)], env=environment, start_new_session=True
        )
        before = len(list((tmp_path / "out").glob("*.arrayrecord")))
        while process.poll() is None and killed < 3:
            if len(list((tmp_path / "out").glob("*.arrayrecord"))) > before:
                # With its workers, and alone: they then end by themselves.
                (os.killpg, os.kill)[killed % 2](process.pid, signal.SIGKILL)
                killed += 1
            time.sleep(0.02)
        if process.wait() == 0:
            break
    assert killed
    convert(tmp_path / "videos", tmp_path / "whole", frames="jpeg", shard_bytes=200_000)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert len(list((tmp_path / "out").glob("*.arrayrecord"))) > 4


@pytest.mark.stress
def test_ut_interaction_gives_equal_batches_and_faster_frames(tmp_path: Path) -> None:
    root = shared("ut_interaction/set1")
    convert(root, tmp_path / "bytes")
    convert(root, tmp_path / "jpeg", frames="jpeg", short_side=112)
    transform = DecodeClip(
        UniformClip(16), SpatialTransform((112, 112), keep_aspect=False), train=True, short_side=112
    )
    rates = {}
    clips: dict[str, list[Any]] = {}
    for name, folder in (
        ("files", root),
        ("bytes", tmp_path / "bytes"),
        ("jpeg", tmp_path / "jpeg"),
    ):
        files = read_labelled_files(folder)
        source = VideoSource(files.paths, files.labels)
        for _ in range(2):  # The first epoch also counts the frames of files.
            begin = time.process_time()
            clips[name] = [
                transform(source[index], np.random.default_rng(index))
                for index in range(len(source))
            ]
            rates[name] = len(source) / (time.process_time() - begin)
    for first, second in zip(clips["files"], clips["bytes"], strict=True):
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])
    assert rates["jpeg"] > 1.5 * rates["files"], rates
