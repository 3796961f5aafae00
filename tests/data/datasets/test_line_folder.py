"""Lines of text on disk: files beside images, tables, groups, splits, bad input."""

import csv
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datasets.line_folder import TextLines, read_text_lines, split_lines

FRAKTUR = Path(__file__).parents[3].parent / "shared" / "data" / "fraktur"


def write(root: Path, name: str, text: str | None, ending: str = ".gt.txt", shade: int = 0) -> None:
    """Writes an image, and a text beside it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (12, 6), shade).save(path)
    if text is not None:
        plain = path.with_suffix("")
        plain = plain.with_suffix("") if plain.suffix in (".nrm", ".bin") else plain
        Path(f"{plain}{ending}").write_text(text, encoding="utf-8")


def found(lines: TextLines) -> dict[str, str]:
    return dict(zip(lines.names, lines.texts, strict=True))


# ---- Files beside the images -----------------------------------------------------------------


@pytest.mark.parametrize("ending", [".gt.txt", ".txt"])
def test_texts_beside_images(tmp_path: Path, ending: str) -> None:
    write(tmp_path, "b/x_1.png", " ſo\r\n", ending)
    write(tmp_path, "a.tif", "Herzog, F. X.", ending)
    (tmp_path / "README.txt").write_text("no line")
    lines = read_text_lines(tmp_path)
    assert found(lines) == {"a.tif": "Herzog, F. X.", "b/x_1.png": "ſo"}
    assert lines.layout == f"images with NAME{ending}"
    assert not lines.has_splits
    assert lines.notes == ()


def test_a_recognised_text_is_no_truth(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "truth")
    (tmp_path / "1.txt").write_text("what a program read")
    write(tmp_path, "2.png", "what a program read", ".txt")
    lines = read_text_lines(tmp_path)
    assert found(lines) == {"1.png": "truth"}
    assert lines.untexted == ("2.png",)
    assert "texts are read from *.gt.txt; 2 others (*.txt) are not" in lines.notes


def test_one_version_of_each_line_is_read(tmp_path: Path) -> None:
    write(tmp_path, "1.bin.png", "one")
    write(tmp_path, "1.nrm.png", None)
    write(tmp_path, "2.png", "two")
    write(tmp_path, "2.bin.png", None)
    write(tmp_path, "3.odd.png", "three")
    lines = read_text_lines(tmp_path)
    assert found(lines) == {"1.nrm.png": "one", "2.png": "two", "3.odd.png": "three"}
    assert "2 images are other versions of a line and were left out" in lines.notes


def test_folders_of_splits(tmp_path: Path) -> None:
    for name in ("training/1.png", "training/book/2.png", "val/1.png", "test/1.png"):
        write(tmp_path, name, name)
    lines = read_text_lines(tmp_path)
    assert lines.splits == ("test", "train", "train", "validation")
    assert lines.select("validation").texts == ("val/1.png",)
    write(tmp_path, "other/1.png", "other")
    assert set(read_text_lines(tmp_path).splits) == {""}


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "cafe\u0301")
    write(tmp_path, "2.png", " \n ")
    write(tmp_path, "3.png", None)
    write(tmp_path, "4.png", "two\nlines")
    (tmp_path / "5.gt.txt").write_text("no image")
    lines = read_text_lines(tmp_path)
    assert found(lines) == {"1.png": "caf\u00e9", "4.png": "two lines"}
    assert lines.untexted == ("3.png",)
    assert lines.empty == ("2.png",)
    assert lines.imageless == ("5.gt.txt",)
    assert lines.decomposed == ("1.png",)
    assert lines.notes == (
        "1 images without a text were left out: 3.png",
        "1 texts without an image were left out: 5.gt.txt",
        "1 lines with an empty text were left out: 2.png",
        "1 texts of several lines were joined by blanks: 4.png",
    )
    kept = read_text_lines(tmp_path, keep_empty=True)
    assert found(kept)["2.png"] == ""
    assert any("empty text were kept" in note for note in kept.notes)


# ---- Tables ----------------------------------------------------------------------------------

TEXTS = {"a.png": 'He said "ſo", twice; a|b', "ü b/c.png": "Uhr", "d.png": "1,50 M."}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in TEXTS:
        write(tmp_path, name, None)
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("delimiter", "header"),
    [
        (",", ["file", "text", "book", "split"]),
        ("\t", ["File Name", "Transcription", "writer", "Set"]),
        (";", ["image", "ground truth", "page", "subset"]),
        ("|", ["img", "GT", "document", "partition"]),
    ],
)
def test_tables(images: Path, encoding: str, end: str, delimiter: str, header: list[str]) -> None:
    rows = [[name, f" {text} ", "haus", "dev"] for name, text in TEXTS.items()]
    with open(images / "list.csv", "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    lines = read_text_lines(images, "list.csv")
    assert found(lines) == TEXTS
    assert set(lines.groups) == {"haus"}
    assert set(lines.splits) == {"validation"}
    assert found(read_text_lines("", images / "list.csv")) == TEXTS


def test_a_table_without_a_header_and_texts_without_quotes(images: Path) -> None:
    (images / "list.txt").write_text("a.png,Herzog, F. X.\nd.png,\n")
    lines = read_text_lines(images, "list.txt", keep_empty=True)
    assert found(lines) == {"a.png": "Herzog, F. X.", "d.png": ""}
    (images / "list.tsv").write_text('file\ttext\na.png\t"Haus, ſo"\nd.png\tan "dem" 5"\n')
    assert found(read_text_lines(images, "list.tsv"))["d.png"] == 'an "dem" 5"'


def test_names_in_another_unicode_form(images: Path) -> None:
    name = unicodedata.normalize("NFD", "ü b/c.png")
    (images / "list.csv").write_text(f"file,text\n{name},Uhr\n", encoding="utf-8")
    assert found(read_text_lines(images, "list.csv")) == {"ü b/c.png": "Uhr"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "received an empty file"),
        ("name,words\n", "header with the columns file and text"),
        ('file,text\na.png,"one\ntwo"\n', "line 2: expected the text of one line"),
        ("file,text\na.png,x\na.png,y\n", "a.png again, with 'y' after 'x'"),
        ("file,text,split\na.png,x,train\nd.png,y,\n", "1 lines without one: d.png"),
        ("file,text,split\na.png,x,trian\n", "received 'trian'"),
        ("text,file\nx,a.png,3\n", "expected 2 cells as in the header, received 3"),
        ("file,text\na.png,\n", "received 1 images without any: a.png"),
        ('file,text\nd.png,y\na.png,"Haus" sagte er\n', "line 3: expected double quotes around"),
        ('file,text\na.png,"Haus\nd.png,x\n', "expected double quotes around a whole cell"),
        ("file,text\n ,x\n", "line 2: expected the name of an image"),
    ],
)
def test_bad_tables_are_refused(images: Path, content: str, message: str) -> None:
    (images / "list.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_text_lines(images, "list.csv")


def test_missing_files_are_named(images: Path) -> None:
    (images / "list.csv").write_text("file,text\na.png,x\nno.png,y\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are not in .*: no.png"):
        read_text_lines(images, "list.csv")
    lines = read_text_lines(images, "list.csv", missing="skip")
    assert lines.imageless == ("no.png",)
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        read_text_lines(images / "nowhere")
    with pytest.raises(ValueError, match=r"3 images without any in .*: a.png"):
        read_text_lines(images)
    (images / "empty").mkdir()
    with pytest.raises(ValueError, match="a folder without any"):
        read_text_lines(images / "empty")


# ---- Groups and splits -----------------------------------------------------------------------


def test_books_stay_on_one_side(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path, f"book{number % 8}_{number}.png", f"line {number}", shade=number)
    lines = read_text_lines(tmp_path, group_pattern="^(.*?)_")
    made = split_lines(lines, validation_share=0.25)
    assert Counter(made.splits) == {"train": 30, "validation": 10}
    books = {split: set(made.select(split).groups) for split in ("train", "validation")}
    assert not books["train"] & books["validation"]
    assert made.splits == split_lines(lines, validation_share=0.25).splits
    assert made.splits != split_lines(lines, validation_share=0.25, seed=1).splits
    assert made.notes == ("split made by group, seed 0",)
    assert found(made) == found(lines)


def test_copies_of_an_image_stay_on_one_side(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path, f"{number}.png", f"line {number}", shade=number // 2)
    lines = read_text_lines(tmp_path)
    made = split_lines(lines, validation_share=0.2, test_share=0.2)
    assert Counter(made.splits) == {"train": 12, "validation": 4, "test": 4}
    side = {
        int(Path(name).stem): split for name, split in zip(made.names, made.splits, strict=True)
    }
    assert all(side[number] == side[number ^ 1] for number in range(20))
    with pytest.raises(ValueError, match="split the lines first"):
        lines.select("train")


@pytest.mark.skipif(not FRAKTUR.is_dir(), reason="the lines in Fraktur are not on this machine")
def test_lines_in_fraktur() -> None:
    lines = read_text_lines(FRAKTUR, group_pattern="^(.*?)_")
    assert len(lines) == 3915
    assert len(set("".join(lines.texts))) == 102
    assert found(read_text_lines(FRAKTUR, "train.csv")) == found(lines)
    assert set(lines.splits) == {"train"}
    made = split_lines(lines)
    assert len(made.select("validation")) == pytest.approx(391, abs=20)
    assert np.isin(made.select("train").groups, made.select("validation").groups).sum() == 0
