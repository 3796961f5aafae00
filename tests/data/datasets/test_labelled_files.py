"""Labelled files: class folders, lists of many kinds, UCF101's layout, and what is refused."""

import os
import unicodedata
from pathlib import Path

import pytest

from data.datasets.labelled_files import LabelledFiles, read_labelled_files
from data.datasets.list_file import read_class_list, read_list


def fill(root: Path, *names: str) -> Path:
    """Writes files whose content is their name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def classes_of(files: LabelledFiles) -> dict[str, str]:
    return {
        name: files.class_names[label]
        for name, label in zip(files.names, files.labels, strict=True)
    }


def test_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, "Wave/b.MP4", "Wave/a.avi", "Clap/deep/er/c.MOV", "Clap/d.webm")
    files = read_labelled_files(tmp_path)
    assert files.class_names == ("Clap", "Wave")
    assert files.names == ("Clap/d.webm", "Clap/deep/er/c.MOV", "Wave/a.avi", "Wave/b.MP4")
    assert classes_of(files)["Clap/deep/er/c.MOV"] == "Clap"
    assert not files.has_splits
    assert all(Path(path).is_file() for path in files.paths)


def test_folders_of_frames_where_there_are_no_videos(tmp_path: Path) -> None:
    frames = [f"{n}/000{t}.jpg" for n in ("Wave/a", "Wave/b/deep", "Clap/c") for t in (1, 2)]
    fill(tmp_path, *frames, "Wave/cover/1.jpg", "Clap/notes.txt")
    files = read_labelled_files(tmp_path)
    assert classes_of(files) == {"Clap/c": "Clap", "Wave/a": "Wave", "Wave/b/deep": "Wave"}
    assert all(Path(path).is_dir() for path in files.paths)
    fill(tmp_path, "Clap/c.mp4", "Wave/a.mp4")
    assert set(read_labelled_files(tmp_path).names) == {"Clap/c.mp4", "Wave/a.mp4"}


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Val"])
def test_folders_of_splits(tmp_path: Path, validation: str) -> None:
    names = [f"{split}/{c}/x.mp4" for split in ("train", validation, "test") for c in ("A", "B")]
    files = read_labelled_files(fill(tmp_path, *names))
    assert files.class_names == ("A", "B")
    assert dict(zip(files.names, files.splits, strict=True)) == {
        name: {"train": "train", "test": "test"}.get(name.split("/")[0], "validation")
        for name in names
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    files = read_labelled_files(fill(tmp_path, "train/a.mp4", "bus/b.mp4", "test/c.mp4"))
    assert files.class_names == ("bus", "test", "train")
    assert not files.has_splits


def test_litter_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "A/a b ü.mp4", "B/b.mp4", "A/._a.mp4", "A/.DS_Store", "__MACOSX/A/a.mp4")
    fill(tmp_path, ".hidden/a.mp4", "A/@eaDir/t.mp4", "A/Thumbs.db", "B/notes.txt", "loose.mp4")
    (tmp_path / "B" / "empty.mp4").touch()
    (tmp_path / "C").mkdir()
    os.symlink(tmp_path, tmp_path / "A" / "circle")
    files = read_labelled_files(tmp_path)
    assert files.names == ("A/a b ü.mp4", "B/b.mp4")
    notes = " ".join(files.notes)
    assert "1 empty files" in notes
    assert "1 videos lie outside" in notes
    assert "1 × .txt" in notes


def test_names_are_composed(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Händeschütteln")
    fill(tmp_path, f"{decomposed}/é.mp4", "B/b.mp4")
    files = read_labelled_files(tmp_path)
    assert "Händeschütteln" in files.class_names
    (tmp_path / "l.csv").write_text("path,label\nHändeschütteln/é.mp4,H\nB/b.mp4,B\n")
    listed = read_labelled_files(tmp_path, list_file=tmp_path / "l.csv")
    assert set(listed.names) == set(files.names)


def test_ucf101s_layout(tmp_path: Path) -> None:
    names = [f"{c}/v_{c}_g0{g}_c01.avi" for c in ("A", "B") for g in (1, 2, 3)]
    fill(tmp_path / "UCF-101", *names)
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 A\n2 B\n")
    (lists / "trainlist01.txt").write_text("\n".join(n for n in names if "g03" not in n))
    (lists / "testlist01.txt").write_text("\n".join(n for n in names if "g03" in n))
    files = read_labelled_files(tmp_path)
    assert files.official_folds
    assert files.has_splits
    assert all(name.startswith("UCF-101/") for name in files.names)
    groups = set(zip(files.groups, files.splits, strict=True))
    assert groups == {("01", "train"), ("02", "train"), ("03", "test")}


LISTS = {
    "csv": "path,label\nA/a b.mp4,Wave\nB/b.mp4,Clap\n",
    "columns in another order": "Label;Split;Video\nWave;train;A/a b.mp4\nClap;val;B/b.mp4\n",
    "tsv": "filename\tclass\nA/a b.mp4\tWave\nB/b.mp4\tClap\n",
    "kinetics": "A/a b.mp4 Wave\nB/b.mp4 Clap\n",
    "blank-separated header": "path label\nA/a b.mp4 Wave\nB/b.mp4 Clap\n",
    "csv without header": "A/a b.mp4,Wave\nB/b.mp4,Clap\n",
    "crlf and bom": "\ufeffpath,label\r\nA/a b.mp4,Wave\r\n\r\nB/b.mp4,Clap\r\n",
    "header in words": "Video Path,Class-Name\nA/a b.mp4,Wave\nB/b.mp4,Clap\n",
    "comments": "# made by hand\n\n# path label\nA/a b.mp4 Wave\nB/b.mp4 Clap\n",
    "comments above a header": "# made by hand\npath,label\nA/a b.mp4,Wave\nB/b.mp4,Clap\n",
    "folders of Windows": "path,label\nA\\a b.mp4,Wave\nB\\b.mp4,Clap\n",
    "quoted": 'path,label\n"A/a b.mp4","Wave"\nB/b.mp4,Clap\n',
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS.keys())
def test_lists(tmp_path: Path, text: str) -> None:
    fill(tmp_path, "A/a b.mp4", "B/b.mp4")
    (tmp_path / "list.any").write_bytes(text.encode())
    files = read_labelled_files(tmp_path, list_file=tmp_path / "list.any")
    assert classes_of(files) == {"A/a b.mp4": "Wave", "B/b.mp4": "Clap"}
    # Without a root, paths are relative to the list.
    assert read_labelled_files(list_file=tmp_path / "list.any").names == files.names


def test_numbers_and_their_names(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    path, names = tmp_path / "list.txt", tmp_path / "names.txt"
    path.write_text("a.mp4 2\nb.mp4 10\nc.mp4 2\n")
    assert read_labelled_files(tmp_path, list_file=path).class_names == ("2", "10")
    path.write_text("a.mp4 2\nb.mp4 0\nc.mp4 2\n")
    names.write_text("zero\none two\nalpha\n")
    files = read_labelled_files(tmp_path, list_file=path, class_list=names)
    assert files.class_names == ("zero", "one two", "alpha")
    assert files.labels == (2, 0, 2)
    for text in (
        *("0 zero\n1 one\n", "zero,0\none,1\n", "0\tzero\n1\tone\n"),
        *("id,name\n0,zero\n1,one\n", "class\tindex\nzero,0\none,1\n"),
    ):
        names.write_text(text)
        assert read_class_list(names) == {0: "zero", 1: "one"}
    names.write_text("walk\n3 point shot\n")  # Not a header above a numbered class.
    assert read_class_list(names) == {0: "walk", 1: "3 point shot"}
    names.write_text("0 zero\n1 one\n")
    with pytest.raises(ValueError, match=r"2 labels are none of its 2 classes, numbers 0 to 1"):
        read_labelled_files(tmp_path, list_file=path, class_list=names)


def test_lists_of_splits(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    for split, text in (("train", "a.mp4 0\nb.mp4 1"), ("val", "c.mp4 0"), ("test", "d.mp4 1")):
        (tmp_path / f"{split}.txt").write_text(text)
    files = read_labelled_files(
        tmp_path,
        list_file=tmp_path / "train.txt",
        validation_list=tmp_path / "val.txt",
        test_list=tmp_path / "test.txt",
    )
    assert files.splits == ("train", "train", "validation", "test")
    (tmp_path / "test.txt").write_text("d.mp4 1\nb.mp4 1")
    with pytest.raises(ValueError, match=r"one split for each file, received 'b.mp4'"):
        read_labelled_files(
            tmp_path, list_file=tmp_path / "train.txt", test_list=tmp_path / "test.txt"
        )


def test_groups(tmp_path: Path) -> None:
    fill(tmp_path, "A/s01_1.mp4", "A/s02_1.mp4", "B/s01_2.mp4", "B/other.mp4")
    files = read_labelled_files(tmp_path, group_pattern=r"^(s\d+)_")
    assert dict(zip(files.names, files.groups, strict=True)) == {
        "A/s01_1.mp4": "s01",
        "A/s02_1.mp4": "s02",
        "B/other.mp4": "",
        "B/s01_2.mp4": "s01",
    }
    assert any("fits 3 of 4 names" in note for note in files.notes)
    with pytest.raises(ValueError, match="fits none of 4"):
        read_labelled_files(tmp_path, group_pattern=r"g(\d+)_")
    with pytest.raises(ValueError, match="expected a regular expression"):
        read_labelled_files(tmp_path, group_pattern="(")
    (tmp_path / "l.csv").write_text("path,label,subject\nA/s01_1.mp4,A,anna\nB/s01_2.mp4,B,ben\n")
    assert read_labelled_files(tmp_path, list_file=tmp_path / "l.csv").groups == ("anna", "ben")


def test_same_name_in_two_folders(tmp_path: Path) -> None:
    files = read_labelled_files(fill(tmp_path, "A/1.mp4", "B/1.mp4"))
    assert len(files) == 2


def test_unusual_names(tmp_path: Path) -> None:
    names = ("#1/#a.mp4", "#1/ b .mp4", "B/a,b;c.mp4", 'B/"q".mp4', "B /日本.mp4")
    files = read_labelled_files(fill(tmp_path, *names))
    assert set(files.names) == set(names)
    assert files.class_names == ("#1", "B")
    (tmp_path / "l.csv").write_text("path,label\n#1/#a.mp4,A\n#1/ b .mp4,A\n B /日本.mp4 ,B\n")
    listed = read_labelled_files(tmp_path, list_file=tmp_path / "l.csv")
    assert set(listed.names) == {"#1/#a.mp4", "#1/ b .mp4", "B /日本.mp4"}
    (tmp_path / os.fsdecode(b"B/\xfcber.mp4")).write_text("x")
    with pytest.raises(ValueError, match="names in UTF-8, received 1 in another encoding"):
        read_labelled_files(tmp_path)


def test_images(tmp_path: Path) -> None:
    fill(tmp_path, "A/1.JPG", "B/2.png", "B/3.mp4")
    assert read_labelled_files(tmp_path, kind="image").names == ("A/1.JPG", "B/2.png")


BAD_FOLDERS = {
    "empty": ((), "received an empty folder"),
    "one class": (("A/1.mp4", "A/2.mp4"), r"at least two classes .* received 1 \(A\)"),
    "loose files": (("1.mp4", "2.mp4"), "2 videos in the folder itself"),
    "other endings": (("A/1.txt", "B/2.txt"), "files with other endings alone: .txt"),
    "no training files": (("val/A/1.mp4", "val/B/1.mp4", "test/A/1.mp4"), "a folder train/ of"),
    "test files alone": (("test/A/1.mp4", "test/B/1.mp4"), "received the folders test alone"),
    "a folder too high": (("data/A/1.mp4", "data/B/1.mp4"), r"classes are A, B, give .*data$"),
    "names of two forms": (("A/caf\u00e9.mp4", "A/cafe\u0301.mp4", "B/1.mp4"), "1 that two files"),
    "carriage return": (("A/1\r.mp4", "B/1.mp4"), "without the character CR, received 1"),
    "splits and classes": (("train/A/1.mp4", "train/B/1.mp4", "C/1.mp4"), "folders of splits"),
}


@pytest.mark.parametrize(("names", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys())
def test_bad_folders(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labelled_files(fill(tmp_path, *names))


BAD_LISTS = {
    "no rows": ("path,label\n", "received none"),
    "empty": ("\n\n", "empty file"),
    "no label column": ("path,length\na.mp4,3\n", "a column of labels named label"),
    "paths alone": ("a.mp4\nb.mp4\n", "received paths alone"),
    "unknown split": ("path,label,split\na.mp4,x,eval\n", "received 'eval' in line 2"),
    "a split missing": ("path,label,split\na.mp4,x,train\nb.mp4,y,\n", "1 lines without one"),
    "a label missing": ("path,label\na.mp4,x\nb.mp4,\n", r"1 lines without one: line 3"),
    "two forms of a path": ("a.mp4 x\nb.mp4 y\n./a.mp4 y\n", r"'./a.mp4' with 'x' in line 1"),
    "no path column": ("label,id,split\nx,a,train\ny,b,test\n", "a column of paths named path"),
    "no path column, one label": ("label,id\nx,a\nx,b\n", "received the columns label, id"),
    "a quote left open": ('path,label\n"a.mp4,x\nb.mp4,y\n', "line 2 is damaged .* never closed"),
    "a label with a comma": ("path,label\na.mp4,x, y\nb.mp4,y\n", "expected 2 cells .* in line 2"),
    "a negative label": ("a.mp4 -1\nb.mp4 0\n", "from 0, received 1 below: -1 of a.mp4 in line 1"),
    "two labels": ("a.mp4 x\nb.mp4 y\na.mp4 y\n", r"'a.mp4' with 'x' in line 1 and 'y' in line 3"),
    "one class": ("a.mp4 x\nb.mp4 x\n", "at least two classes"),
    "latin-1": (b"path,label\na.mp4,\xfcber\n", "UTF-8"),
}


@pytest.mark.parametrize(("text", "message"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_bad_lists(tmp_path: Path, text: str | bytes, message: str) -> None:
    fill(tmp_path, "a.mp4", "b.mp4")
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_labelled_files(tmp_path, list_file=path)


def test_missing_files(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4")
    path = tmp_path / "list.txt"
    path.write_text("a.mp4 0\n" + "".join(f"gone{n}.mp4 1\n" for n in range(5)))
    with pytest.raises(FileNotFoundError, match=r"5 of 6 files .*: gone0.mp4, gone1.mp4, gone2"):
        read_labelled_files(tmp_path, list_file=path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_labelled_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="received neither"):
        read_labelled_files()


def test_an_unknown_header_is_told(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "l.csv").write_text("name,kind\na.mp4,x\nb.mp4,y\n")
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 .* if line 1 is a header, name its columns"
    ):
        read_labelled_files(tmp_path, list_file=tmp_path / "l.csv")


def test_splits_within_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, "A/train/1.mp4", "A/test/2.mp4", "B/Train/1.mp4", "B/test/2.mp4")
    files = read_labelled_files(tmp_path)
    assert files.class_names == ("A", "B")
    assert files.splits == ("test", "train", "train", "test")
    fill(tmp_path, "B/other/3.mp4")  # Folders that are no splits, then.
    assert set(read_labelled_files(tmp_path).splits) == {""}


def test_a_stray_file_leaves_folders_of_splits(tmp_path: Path) -> None:
    fill(tmp_path, "train/A/1.mp4", "train/B/1.mp4", "train/stray.mp4", "test/A/1.mp4")
    files = read_labelled_files(tmp_path)
    assert files.splits == ("test", "train", "train")
    assert "1 videos lie outside" in files.notes[0]
    (tmp_path / "train/stray.mp4").unlink()
    fill(tmp_path, "annotations/notes.txt")  # Holds no videos.
    assert read_labelled_files(tmp_path).splits == files.splits


def test_paths_are_relative_to_the_root(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "l.csv").write_text(f"path,label\n{tmp_path}/a.mp4,x\n./b.mp4,y\nb.mp4,y\n")
    files = read_labelled_files(tmp_path, list_file=tmp_path / "l.csv")
    assert files.names == ("a.mp4", "b.mp4")
    assert "1 lines repeat" in files.notes[0]


def test_repeated_rows_count_once(tmp_path: Path) -> None:
    fill(tmp_path, "a.mp4", "b.mp4")
    path = tmp_path / "list.txt"
    path.write_text("a.mp4 x\nb.mp4 y\na.mp4 x\n")
    files = read_labelled_files(tmp_path, list_file=path)
    assert len(files) == 2
    assert "1 lines repeat" in files.notes[0]
    assert [row.line for row in read_list(path, (".mp4",))] == [1, 2, 3]
