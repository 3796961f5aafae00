"""The check of a data set finds each fault, and nothing where nothing is wrong."""

import csv
import doctest
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from data import check as program
from data import findings
from data.check import check, format_table, main, recognise
from data.convert import convert
from data.findings import (
    ERROR,
    OK,
    WARNING,
    Dataset,
    Finding,
    cross_validate,
    find_problems,
)
from data.inspection import Inspection
from tests.data.audio.wavs import FLOAT, write_wav
from tests.data.pictures import random_image
from tests.data.test_likeness import picture, walk
from tests.data.video_files import truncate

ROOT = Path(__file__).parents[2]
UT_INTERACTION = ROOT.parent / "shared" / "data" / "ut_interaction" / "set1"
FRAKTUR = ROOT.parent / "shared" / "data" / "fraktur"


def write(path: Path, clip: np.ndarray, codec: str = "mpeg4", rate: int = 25) -> Path:
    """Writes a clip (T,H,W,3) uint8 as a video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt, stream.codec_context.bit_rate = "yuv420p", 2_000_000
        for frame in clip:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


def damage_packet(path: Path, number: int) -> None:
    """Overwrites a packet of a video with noise."""
    with av.open(str(path)) as container:
        packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
        start, size = packets[number].pos + 8, packets[number].size
    content = bytearray(path.read_bytes())
    content[start : start + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(content)


def clip(seed: int, num_frames: int = 8) -> np.ndarray:
    return walk(seed, background=1000 + seed, num_frames=num_frames)


def write_class_folders(root: Path) -> Path:
    """Writes 2 classes with 4 videos for training and 2 for testing each, all without fault."""
    seeds = iter(range(100))
    for split, count in (("train", 4), ("test", 2)):
        for name in ("Clap", "Wave"):
            for number in range(count):
                write(root / split / name / f"{number}.mp4", clip(next(seeds)))
    return root


def rows(found: Sequence[Finding], name: str, level: str = "") -> list[Finding]:
    return [row for row in found if row.check == name and level in ("", row.level)]


def write_table(path: Path, lines: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return path


def write_images(folder: Path, count: int, first: int = 0) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.jpg" for number in range(first, first + count)]
    for number, name in enumerate(names, first):
        Image.fromarray(picture(number)).save(folder / name)
    return names


def test_a_data_set_without_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_class_folders(tmp_path / "videos")
    assert main([str(root), f"--json={tmp_path / 'found.json'}"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\nNothing is wrong.\n")
    assert "12 videos of 2 classes" in " ".join(out.split())  # Wrapped where the path is long.
    record = json.loads((tmp_path / "found.json").read_text())
    assert {row["level"] for row in record["findings"]} == {OK}
    assert [row["num_frames"] for row in record["files"]] == [8] * 12
    assert {row["split"] for row in record["files"]} == {"train", "test"}


def test_faults_of_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_class_folders(tmp_path / "videos")
    original = root / "train" / "Clap" / "0.mp4"
    (root / "test" / "Wave" / "kopié.MP4").write_bytes(original.read_bytes())
    again = clip(1)[:, ::2, ::2]  # Half as large, in another codec and rate.
    write(root / "test" / "Clap" / "again.mkv", again, "libx264", rate=30)
    cut = write(root / "train" / "Wave" / "cut.avi", clip(50))
    truncate(cut, 4)
    (root / "train" / "Wave" / "evil\n\x1b[31m.mp4").write_bytes(os.urandom(3000))
    (root / "train" / "Wave" / "empty.mp4").touch()
    write(root / "train" / "Rare" / "long.mp4", clip(60, num_frames=40))
    noisy = write(root / "train" / "Wave" / "noisy.avi", clip(51, num_frames=12))
    damage_packet(noisy, 6)

    found, files = check(str(root))
    [unreadable] = rows(found, "readable")
    assert unreadable.level == ERROR  # 2 of 18 are more than a tenth.
    assert len(unreadable.files) == 2
    assert any("cut.avi (truncated" in name for name in unreadable.files)
    assert len([row for row in files if row["error"]]) == 2
    copies = rows(found, "duplicates", WARNING)
    assert [row.text.split(":")[0] for row in copies] == [
        "in different splits",
        "in different classes",
        "copies of another file",
    ]
    assert set(copies[0].files[0].split(" = ")) == {"train/Clap/0.mp4", "test/Wave/kopié.MP4"}
    [alike] = rows(found, "alike")
    [pair] = alike.files
    assert pair.startswith("test/Clap/again.mkv and train/Clap/1.mp4 (0.9")
    assert rows(found, "classes", WARNING)[0].files == ("Rare",)
    [lengths] = rows(found, "frames", WARNING)
    assert lengths.files == ("train/Rare/long.mp4 (40)",)
    assert rows(found, "rates", WARNING)
    [damaged] = rows(found, "damaged", WARNING)
    assert damaged.files[0].startswith("train/Wave/noisy.avi (1 damaged ")
    assert "empty.mp4" in " ".join(row.text for row in rows(found, "reader", WARNING))

    assert main([str(root)]) == 1
    out = capsys.readouterr().out
    assert "evil\\n\\x1b[31m.mp4" in out
    assert "\x1b" not in out
    assert "Training would fail: 1 error" in out


def test_without_splits_all_files_are_compared_and_groups_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    for number in range(6):
        name = f"v_Wave_g{number // 2:02d}_c{number:02d}.mp4"
        write(root / ("Wave" if number % 2 else "Clap") / name, clip(number))
    write(root / "Clap" / "v_Clap_g07_c01.mp4", clip(3)[:, ::2, ::2])
    found, _ = check(str(root))
    assert "4 recording groups by the pattern _g" in rows(found, "groups")[0].text
    [alike] = rows(found, "alike", WARNING)
    assert alike.text.startswith("that a random split may separate: 1 pair")


def test_a_group_on_two_sides_of_a_split(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    for number in range(8):
        split = "train" if number < 5 else "test"
        write(
            root / split / ("Wave" if number % 2 else "Clap") / f"p{number % 6}.mp4", clip(number)
        )
    found, _ = check(str(root), group_pattern=r"p(\d+)")
    [both] = rows(found, "groups", WARNING)
    assert both.text == "in several splits: 2 groups with 4 files"
    assert len(both.files) == 4


def test_faults_of_captions(tmp_path: Path) -> None:
    names = write_images(tmp_path / "images", 10)
    (tmp_path / "images" / "copy.jpg").write_bytes((tmp_path / "images" / "0.jpg").read_bytes())
    small = Image.fromarray(picture(1)).resize((64, 48))
    small.save(tmp_path / "images" / "small.png")
    broken = (tmp_path / "images" / "2.jpg").read_bytes()
    (tmp_path / "images" / "broken.jpg").write_bytes(broken[: len(broken) // 2])
    header = ["image", "caption", "split"]
    # Of the ten images two have no captions, and one has one without words.
    lines = [[name, f"A {name[0]} of colours in a row.", "train"] for name in names[:8]]
    lines[7][1] = " . "
    lines += [[names[6], "Two colours.", "train"], [names[5], "Word", "train"]]
    others = [["copy.jpg", "A copy.", "test"], ["small.png", "A small one.", "test"]]
    others += [["broken.jpg", "A broken one.", "test"]]
    lists = write_table(tmp_path / "list.csv", [header, *lines, *others])

    found, _ = check(str(tmp_path / "images"), str(lists))
    assert [row.level for row in rows(found, "data set")] == [OK]
    [bare] = [row for row in rows(found, "captions") if "without captions" in row.text]
    assert bare.files == ("7.jpg",)
    [wordless] = [row for row in rows(found, "captions") if "without words" in row.text]
    assert wordless.files == ("7.jpg",)
    [unlisted] = rows(found, "images")
    assert unlisted.files == ("8.jpg", "9.jpg")
    assert rows(found, "readable", WARNING) + rows(found, "readable", ERROR)
    assert rows(found, "duplicates")[0].files[0].split(" = ") == ["0.jpg", "copy.jpg"]
    [alike] = rows(found, "alike")
    assert alike.files[0].startswith("1.jpg and small.png")
    [words] = rows(found, "words")
    assert words.files == ("5.jpg (Word)",)

    lists = write_table(tmp_path / "list.csv", [header, *lines, ["gone.jpg", "Away.", "test"]])
    found, _ = check(str(tmp_path / "images"), str(lists))
    [missing] = rows(found, "images", ERROR)
    assert missing.text == "no file of 1 captioned image"
    assert missing.files[0].endswith("gone.jpg")


def test_images_in_class_folders_and_their_balance(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 30)
    write_images(tmp_path / "dog", 3, first=100)
    found, files = check(str(tmp_path))
    assert rows(found, "data set")[0].text == "class folders: 33 images of 2 classes"
    assert len(files) == 33
    [balance] = rows(found, "balance", WARNING)
    assert balance.text.startswith("3 (dog) to 30 (cat) examples")
    assert "90.9%" in balance.text
    [leakage] = rows(found, "leakage", OK)
    assert "height and width alone reaches 90.9%" in leakage.text


def test_sizes_that_tell_the_class_are_found(tmp_path: Path) -> None:
    for number in range(24):
        folder = tmp_path / ("wide" if number % 2 else "high")
        folder.mkdir(exist_ok=True)
        size = (90, 120 + number) if number % 2 else (120 + number, 90)
        Image.fromarray(picture(number, *size)).save(folder / f"{number}.png")
    found, _ = check(str(tmp_path))
    [leakage] = rows(found, "leakage", WARNING)
    assert "reaches 100.0%" in leakage.text


def test_accuracy_by_group_counts_no_group_twice() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    labels = rng.integers(0, 2, 40)[groups]
    # Each group has inputs of its own, which tell the label only to who has seen the group.
    inputs = rng.normal(size=(40, 60))[groups] + 0.01 * rng.normal(size=(200, 60))
    by_group, folds = cross_validate(inputs, labels, [str(group) for group in groups])
    by_file, _ = cross_validate(inputs, labels, [str(number) for number in range(200)])
    assert folds == 10
    assert by_file > 0.95
    assert by_group < 0.7
    telling = np.stack([labels + 0.1 * rng.normal(size=200), rng.normal(size=200)], 1)
    assert cross_validate(telling, labels, [str(group) for group in groups])[0] > 0.95
    alone, _ = cross_validate(telling[:6], np.array([0, 0, 0, 0, 0, 1]), list("aaaaab"))
    assert alone == pytest.approx(0)


@pytest.mark.parametrize(
    ("name", "lines", "kind"),
    [
        ("k.txt", "abseiling/a b.mp4 0\ndrumming/c.mp4 1\n", "video"),
        ("k.csv", "path,label\nWave/1.MOV,Wave\n", "video"),
        ("i.csv", "file,label\na.jpg,tabby cat\nb.jpg,dog\n", "image"),
        ("i.txt", "a.jpg,cat\nb.jpg,dog\nc.jpg,cat\n", "image"),
        ("c.csv", "image,caption\na.jpg,A cat lies on a mat.\n", "captions"),
        ("c.txt", "a.jpg\tA cat lies on a mat.\nb.jpg\tA dog runs away.\n", "captions"),
        ("c.json", '{"a.jpg": ["A cat."]}', "captions"),
    ],
)
def test_kinds_of_lists(name: str, lines: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(lines)
    assert recognise(str(tmp_path), str(tmp_path / name)) == kind
    assert recognise("", str(tmp_path / name)) == kind


def test_kinds_of_folders(tmp_path: Path) -> None:
    for name in ("v/A/1.mp4", "v/A/poster.jpg", "i/A/1.JPG", "i/B/1.gif", "c/1.jpg", "c/1.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [recognise(str(tmp_path / kind)) for kind in "vic"] == ["video", "image", "captions"]


def test_folders_of_frames_are_videos_and_those_of_images_are_not(tmp_path: Path) -> None:
    for label in "AB":
        for clip in range(2):
            for number in range(4):
                for name in (
                    f"frames/{label}/{clip}/img_{5 * number + 1:05d}.png",
                    f"splits/train/{label}/{clip}/{number}.png",
                    f"images/train/{label}/{4 * clip + number}.png",
                    f"sparse/{label}/{clip}/{number * number + clip}.png",
                    f"named/{label}/{clip}/{'abcd'[number]}{number}.png",
                ):
                    path = tmp_path / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(random_image(8 + clip * (number > 2), 9)).save(path)
    found = {name: recognise(str(tmp_path / name)) for name in os.listdir(tmp_path)}
    assert found == {
        "frames": "video",
        "splits": "video",
        "images": "image",
        "sparse": "image",
        "named": "image",
    }
    findings, _ = check(str(tmp_path / "frames"))
    told = " ".join(format_table(findings).split())  # Lines are as wide as the terminal.
    assert "4 videos" in told
    assert "4 folders of frames, each a video; --kind=image reads images" in told
    assert "expected frames of one size" in told
    with pytest.raises(ValueError, match=r"received 4 folders of frames: .*--kind=image stores"):
        convert(tmp_path / "frames", tmp_path / "out")


@pytest.mark.parametrize("name", ["none", "file.txt", "empty", "one", "odd"])
def test_data_that_no_training_can_read_are_one_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one" / "class", 3)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.doc").touch()
    assert main([str(tmp_path / name)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ERROR    data set       ")
    assert lines[-1] == "Training would fail: 1 error, 0 warnings."


def test_missing_files_of_a_list_are_told(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    lines = [["path", "label"], ["0.jpg", "a"], ["1.jpg", "b"], ["x.jpg", "a"], ["y.jpg", "b"]]
    found, _ = check(str(tmp_path), str(write_table(tmp_path / "list.csv", lines)))
    [row] = found
    assert row.level == ERROR
    assert "2 of 4 files are not in" in row.text


def test_the_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = [Finding("readable", WARNING, "many", tuple(f"{i} " * 30 for i in range(9)))]
    table = format_table(found)
    assert max(map(len, table.splitlines())) <= 80
    assert "…" in table
    assert table.endswith("Training can start; 1 warning.")


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_program_runs_without_flags_of_absl_and_needs_arguments(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 6)
    write_images(tmp_path / "b", 6, first=50)
    command = [sys.executable, "-m", "data.check"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # The bar is for terminals.
    assert done.stdout.endswith("Nothing is wrong.\n")


def test_no_data_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "expected ROOT, a folder of data, or --list=FILE" in capsys.readouterr().err


def write_line(root: Path, name: str, text: str | None, width: int = 90, height: int = 12) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    Image.fromarray(pixels).save(path)
    if text is not None:
        path.with_suffix(".gt.txt").write_text(text, encoding="utf-8")


def test_lines_without_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, number in (("train", 9), ("test", 3)):
        for k in range(number):
            write_line(tmp_path, f"{split}/{k}.png", f"ab{'ab' * k}")
    assert main([str(tmp_path), "--group_pattern=^(.*)/"]) == 0
    out = capsys.readouterr().out
    printed = " ".join(out.split())  # Lines are cut at the terminal's width.
    assert "images with NAME.gt.txt in folders of splits: 12 lines" in printed
    assert "train 9, test 3" in printed
    assert "2 to 18 characters of a line, median 7, 102 in all; 3 lines repeat" in printed
    assert "2 different characters" in printed
    assert "heights 12 pixels" in printed
    assert "enough for every text at a stride of 8 pixels" in printed
    assert out.endswith("Nothing is wrong.\n")


def test_faults_of_lines(tmp_path: Path) -> None:
    for k in range(7):
        write_line(tmp_path, f"train/{k}.png", "abca\u0308c")
    write_line(tmp_path, "train/stray.png", "abx")
    write_line(tmp_path, "train/blank.png", "a\u00a0b\u00adc")
    write_line(tmp_path, "val/copy.png", "abcx", width=60)
    (tmp_path / "train/same.png").write_bytes((tmp_path / "val/copy.png").read_bytes())
    (tmp_path / "train/same.gt.txt").write_text("abba")
    write_line(tmp_path, "test/new.png", "ab€ab€")
    write_line(tmp_path, "test/slim.png", "abababab", width=13)
    write_line(tmp_path, "test/equal.png", "aaaa", width=8, height=8)
    write_line(tmp_path, "test/pixel.png", "a", width=1)
    write_line(tmp_path, "test/long.png", "abc", width=20_000)
    write_line(tmp_path, "test/empty.png", " ")
    write_line(tmp_path, "test/bare.png", None)
    write_line(tmp_path, "test/bad.png", "abc")
    (tmp_path / "test/bad.png").write_bytes(b"no image")
    (tmp_path / "test/alone.gt.txt").write_text("abc")
    found, described = check(str(tmp_path))
    told = {(row.check, row.text.split(":")[0]): row for row in found if row.level == WARNING}
    assert not rows(found, "data set", ERROR)
    assert len(described) == 17
    [hidden] = rows(found, "invisible")
    assert hidden.files == ("train/blank.png",)
    assert hidden.text.endswith("'\\xa0' (U+00A0) once, '\\xad' (U+00AD) once")
    for check_name, text, files in (
        ("images", "left out without a text", ("test/bare.png",)),
        ("images", "left out, texts without an image", ("test/alone.gt.txt",)),
        ("texts", "left out with an empty text", ("test/empty.png",)),
        ("duplicates", "in different splits", ("train/same.png = val/copy.png",)),
        ("duplicates", "with different texts", ("train/same.png = val/copy.png",)),
        ("widths", "wider than 4,096 pixels, which trainings skip", ("test/long.png (80,000)",)),
    ):
        assert told[check_name, text].files == files, check_name
    [composed] = [row for row in rows(found, "texts", WARNING) if "NFC" in row.text]
    assert len(composed.files) == 7
    [rare] = rows(found, "rare", WARNING)
    assert set(rare.files) == {
        "'\\xad' (U+00AD SOFT HYPHEN) 1 ×",
        "'\\xa0' (U+00A0 NO-BREAK SPACE) 1 ×",
        "'x' (U+0078 LATIN SMALL LETTER X) 2 ×",
        "'€' (U+20AC EURO SIGN) 2 ×",
    }
    [unseen] = rows(found, "unseen")
    assert unseen.text.startswith("in test, but not in train: 1 character of 1 line")
    assert unseen.text.endswith("'€' (U+20AC) 2 times")
    steps = rows(found, "steps")
    assert steps[0].files == (
        "test/equal.png (6 of 7)",
        "test/pixel.png (0 of 1)",
        "test/slim.png (6 of 8)",
    )
    assert steps[1].text == "enough for every text at a stride of 4 pixels"
    assert rows(found, "readable")[0].text.startswith("1 of 17 files cannot be decoded")
    assert "test/bad.png (no image in a format" in rows(found, "readable")[0].files[0]


def write_speech(root: Path, name: str, text: str | None, seconds: float = 1.0, **how: Any) -> None:
    seed = sum(name.encode())
    rate, channels = how.pop("rate", 8_000), how.pop("channels", 1)
    samples = 0.1 * np.random.default_rng(seed).normal(size=(int(seconds * rate), channels))
    write_wav(root / name, how.pop("level", 1.0) * samples.clip(-1, 1), rate, **how)
    if text is not None:
        (root / name).with_suffix(".txt").write_text(text, encoding="utf-8")


def test_speech_without_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, number in (("train", 9), ("test", 3)):
        for k in range(number):
            write_speech(tmp_path, f"{split}/{k}.wav", f"ab{'ab' * k}")
    assert recognise(str(tmp_path)) == "speech"
    assert main([str(tmp_path), "--group_pattern=^(.*)/"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "recordings with NAME.txt in folders of splits: 12 recordings" in printed
    assert "2 to 18 characters of a recording, median 7" in printed
    assert "enough for every text at 40 ms a step" in printed
    assert "12 × 8,000 samples/s" in printed
    assert "12 × mono" in printed
    assert printed.endswith("Nothing is wrong.")


def test_faults_of_speech(tmp_path: Path) -> None:
    for k in range(20):
        write_speech(tmp_path, f"train/{k}.wav", "abcx" * 3)
    write_speech(tmp_path, "train/fast.wav", "abc", rate=16_000)
    write_speech(tmp_path, "train/both.wav", "abc", channels=2)
    write_speech(tmp_path, "train/quiet.wav", "abc", level=0.0)
    write_speech(tmp_path, "train/still.wav", "abb", seconds=0.7, level=0.0)
    write_speech(tmp_path, "train/short.wav", "a", seconds=0.05)
    write_speech(tmp_path, "train/hasty.wav", "abcabcabc", seconds=0.2)
    write_speech(tmp_path, "test/endless.wav", "abc", seconds=40)
    write_speech(tmp_path, "test/new.wav", "a€")
    cut = (tmp_path / "test/new.wav").read_bytes()
    (tmp_path / "test/new.wav").write_bytes(cut[:12_044])
    write_speech(tmp_path, "test/blank.wav", " ")
    write_speech(tmp_path, "test/bare.wav", None)
    write_speech(tmp_path, "test/bad.wav", "abc")
    (tmp_path / "test/bad.wav").write_bytes(b"RIFF")
    (tmp_path / "test/alone.txt").write_text("abc")
    (tmp_path / "test/same.wav").write_bytes((tmp_path / "train/0.wav").read_bytes())
    (tmp_path / "test/same.txt").write_text("abc")
    found, described = check(str(tmp_path))
    told = {(row.check, row.text.split(":")[0]): row for row in found if row.level == WARNING}
    for check_name, text, files in (
        ("recordings", "left out without a text", ("test/bare.wav",)),
        ("recordings", "left out, texts without a recording", ("test/alone.txt",)),
        ("texts", "left out with an empty text", ("test/blank.wav",)),
        ("duplicates", "in different splits", ("test/same.wav = train/0.wav",)),
        ("duplicates", "with different texts", ("test/same.wav = train/0.wav",)),
        ("seconds", "shorter than 0.1 s", ("train/short.wav (0.050)",)),
        ("seconds", "longer than 35 s, which trainings skip", ("test/endless.wav (40.0)",)),
        ("silence", "silent, which trainings skip", ("train/quiet.wav", "train/still.wav")),
        (
            "damaged",
            "readable, but damaged",
            ("test/new.wav (cut off: 12,044 of 16,044 bytes)",),
        ),
    ):
        assert told[check_name, text].files == files, (check_name, text)
    assert rows(found, "rates", WARNING)[0].text.startswith("28 × 8,000 samples/s, 1 × 16,000")
    assert rows(found, "channels", WARNING)[0].text.startswith("28 × mono, 1 × stereo")
    assert "'€' (U+20AC) once" in rows(found, "unseen")[0].text
    assert [row.files for row in rows(found, "steps")] == [
        ("train/hasty.wav (5 of 9)",),
        (),
    ]
    assert rows(found, "readable")[0].text.startswith("1 of 30 files cannot be decoded")
    [usable] = rows(found, "usable", ERROR)
    # As in training, whose limit counts the files of its own split.
    assert usable.text == (
        "4 of 30 recordings are damaged, silent or too long, 2 of 26 of train, more than the 5% "
        "that a training skips (max_bad_share)"
    )
    assert {"channels", "peak"} <= described[-1].keys()


@pytest.mark.parametrize(
    ("kind", "bad", "reasons"),
    [
        ("lines", Inspection(num_frames=1, height=48, width=5_000), "damaged or too wide"),
        ("speech", Inspection(num_frames=10, rate=8.0), "damaged, silent or too long"),
    ],
)
def test_what_a_training_skips_counts_as_it_counts(
    kind: str, bad: Inspection, reasons: str
) -> None:
    good = {
        "lines": Inspection(num_frames=1, height=48, width=500),
        "speech": Inspection(num_frames=80, rate=8.0, channels=1, peak=0.5),
    }[kind]

    def usable(inspected: list[Inspection], splits: list[str]) -> list[str]:
        names = tuple(map(str, range(len(inspected))))
        dataset = Dataset(kind, "", names, names, tuple(splits), texts=("ab",) * len(names))
        found = find_problems(dataset, inspected, [])
        return [row.text for row in found if row.level == ERROR]

    # Of 20 for training 1 may be bad, and any of the others.
    splits = ["train"] * 20 + ["test"] * 4
    assert usable([bad, *[good] * 19, *[bad] * 4], splits) == []
    broken = Inspection("damaged")
    [text] = usable([bad, broken, *[good] * 18, *[bad] * 4], splits)
    assert text.startswith(
        f"6 of 24 {'lines' if kind == 'lines' else 'recordings'} are {reasons}, "
    )
    assert "2 of 20 of train, more than the 5%" in text
    # Without splits a training may draw any.
    assert usable([bad, *[good] * 19], [""] * 20) == []
    assert len(usable([bad, bad, *[good] * 18], [""] * 20)) == 1


def test_float_samples_beyond_one_are_told(tmp_path: Path) -> None:
    for k in range(4):
        write_speech(tmp_path, f"{k}.wav", "abc")
    loud = 1.5 * np.sin(np.arange(8_000) / 5)
    write_wav(tmp_path / "loud.wav", loud, format=FLOAT)
    (tmp_path / "loud.txt").write_text("abc")
    found, _ = check(str(tmp_path))
    [row] = rows(found, "peaks", WARNING)
    assert row.files == ("loud.wav (1.5)",)
    assert "which trainings clip" in row.text


def test_labelled_sounds_and_lists_of_them(tmp_path: Path) -> None:
    for label in "ab":
        for k in range(4):
            seconds = 1.0 if label == "a" else 0.2
            write_speech(tmp_path, f"{label}/{k}.wav", None, seconds)
    assert recognise(str(tmp_path)) == "sounds"
    found, _ = check(str(tmp_path))
    assert rows(found, "balance")[0].text == "4 examples of each class"
    for content, kind in (
        ("file,label\na/0.wav,dog bark\nb/1.wav,rain\n", "sounds"),
        ("file,digit,speaker\na/0.wav,1,anna\nb/1.wav,2,anna\n", "sounds"),
        ("path,sentence\na/0.wav,Once upon a time there was\nb/1.wav,a king of old\n", "speech"),
        ("a/0.wav\tOnce upon a time there was\nb/1.wav\ta king of old, they say\n", "speech"),
    ):
        (tmp_path / "list.csv").write_text(content)
        assert recognise("", str(tmp_path / "list.csv")) == kind, content


@pytest.mark.skipif(not FRAKTUR.is_dir(), reason=f"needs the lines in Fraktur in {FRAKTUR}")
def test_lists_of_lines_are_told_from_captions() -> None:
    assert recognise(str(FRAKTUR)) == "lines"
    assert recognise("", str(FRAKTUR / "train.csv")) == "lines"


@pytest.mark.skipif(not UT_INTERACTION.is_dir(), reason=f"needs UT-Interaction in {UT_INTERACTION}")
def test_ut_interaction_leaks_its_classes() -> None:
    found, _ = check(str(UT_INTERACTION))
    levels = {row.check: row.level for row in found}
    assert [name for name, level in levels.items() if level != OK] == ["leakage"]
    assert "alone reaches 58.3% (10 folds by recording group)" in rows(found, "leakage")[0].text


def test_examples_run() -> None:
    assert doctest.testmod(findings).failed == 0
    assert doctest.testmod(program).failed == 0


# ---- Published data sets ---------------------------------------------------------------------


def write_jester(root: Path) -> Path:
    """Writes Jester with 12 videos of 3 frames, the last 2 for validation."""
    lines: dict[str, list[str]] = {"train": [], "validation": []}
    for k in range(12):
        lines["train" if k < 10 else "validation"].append(f"{k};{'Left' if k % 2 else 'Right'}\n")
        for t in (1, 2, 3):
            path = root / "20bn-jester-v1" / str(k) / f"{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_image(20, 24, 3 * k + t)).save(path)
    for split, rows_of_split in lines.items():
        (root / f"jester-v1-{split}.csv").write_text("".join(rows_of_split))
    (root / "jester-v1-labels.csv").write_text("Left\nRight\n")
    return root


def test_a_published_data_set_of_frames(tmp_path: Path) -> None:
    root = write_jester(tmp_path / "jester")
    shutil.rmtree(root / "20bn-jester-v1" / "3")
    Image.fromarray(random_image(30, 24)).save(root / "20bn-jester-v1" / "4" / "00002.png")
    found, described = check(str(root), dataset="jester", num_threads=2)
    assert rows(found, "data set", OK)[0].text == "Jester: 11 videos of 2 classes"
    notes = " ".join(finding.text for finding in rows(found, "reader", WARNING))
    assert "1 of 12 listed videos are missing or empty and were left out: 3" in notes
    [bad] = rows(found, "readable", ERROR)  # More than a tenth of train.
    assert "20bn-jester-v1/4 (expected frames of one size, received 00001.png" in bad.files[0]
    assert described[0]["codec"] == "folder of frames"
    assert described[0]["num_frames"] == 3


def test_missing_flow_is_found(tmp_path: Path) -> None:
    root, flow = write_jester(tmp_path / "jester"), tmp_path / "flow"
    for k in range(12):
        for t in (1, 2):
            for letter in "xy":
                path = flow / str(k) / f"flow_{letter}_{t:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (24, 20), 128).save(path)
    found, _ = check(str(root), dataset="jester", flow=str(flow))
    assert rows(found, "flow", OK)[0].text == "all of 12 videos have flow"
    (flow / "5" / "flow_y_00002.jpg").unlink()
    shutil.rmtree(flow / "7")
    found, _ = check(str(root), dataset="jester", flow=str(flow))
    [bad] = rows(found, "flow", WARNING)
    assert bad.text == "missing or damaged of 2 of 12 videos"
    assert bad.files[0].endswith("5 (1 of 2 flow frames are missing: flow_y_00002.jpg)")
    assert "7: no optical flow" in bad.files[1]
    found, _ = check(str(root), dataset="jester", flow=str(tmp_path / "nowhere"))
    assert "of 12 of 12 videos" in rows(found, "flow", ERROR)[0].text
    assert not (tmp_path / "nowhere").exists()


def test_a_data_set_that_its_reader_refuses(tmp_path: Path) -> None:
    found, _ = check(str(write_jester(tmp_path / "jester")), dataset="hmdb51")
    assert found[0].level == ERROR
    assert "expected the class folders" in found[0].text
