"""Text files of several encodings, and files whose names have several Unicode forms."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from data.captions.images import ImageError, read_image
from data.captions.vocabulary import Vocabulary
from data.files import find_files, read_json, read_lines, read_text
from flaxnets.encoders.torch_checkpoint import read_pth


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_of_encodings_that_say_what_they_are(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Übung\n犬".encode(encoding))
    assert read_text(path) == "Übung\n犬"
    path.write_bytes('{"Übung": "犬"}'.encode(encoding))
    assert read_json(path, "a table") == {"Übung": "犬"}


def test_utf_16_of_both_byte_orders(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        path.write_bytes(mark + "é\r\nb".encode(encoding))
        assert read_lines(path) == [(1, "é"), (2, "b")]
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(ValueError, match=r"a\.txt, byte \d+: damaged UTF-16"):
        read_text(path)


def test_lines_end_only_as_files_end_them(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a\r\n\r\n b\x85c\u2028d\fe \rg\x1ch\n\ufeffi".encode())
    assert read_lines(path) == [(1, "a"), (3, "b\x85c\u2028d\fe"), (4, "g\x1ch"), (5, "i")]
    path.write_bytes(b"")
    assert read_lines(path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a\rb\ncafé".encode("latin-1"),
            r"line 3: .* byte 0xe9 after .*caf'; .*iconv -f ISO",
        ),
        (b"\xef\xbb\xbfa\ncaf\xe9", r"line 2: .* byte 0xe9 after 'a\\ncaf'"),
        (b"a\n\x80", "line 2: expected text in UTF-8, received the byte 0x80"),
        ("a\nb".encode("utf-16-le"), "line 1: .*zero byte; .*iconv -f UTF-16LE"),
        (b"ab\nc\0", "line 2: .*zero byte"),
    ],
)
def test_other_encodings(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.txt, {message}"):
        read_text(path)
    with pytest.raises(ValueError, match=rf"a\.txt: expected a table; {message}"):
        read_json(path, "a table")


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1,\n 2", "line 2, column 3: "), ("[" * 100_000, "recursion"), ("", "line 1, column 1")],
)
def test_what_is_no_json(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"a\.json: expected a table; .*{message}"):
        read_json(path, "a table")


def test_files_whose_folders_have_other_forms(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    (tmp_path / decomposed / composed).mkdir(parents=True)
    (tmp_path / decomposed / composed / f"{decomposed}.txt").touch()
    (tmp_path / composed).mkdir()
    (tmp_path / composed / "b.txt").touch()
    wanted = [
        tmp_path / composed / decomposed / f"{composed}.txt",
        tmp_path / decomposed / "b.txt",
        tmp_path / composed / "c.txt",
        tmp_path / "c.txt",
        tmp_path / composed,
    ]
    assert find_files(wanted) == [
        tmp_path / decomposed / composed / f"{decomposed}.txt",
        tmp_path / composed / "b.txt",
        None,
        None,
        None,
    ]


@pytest.mark.skipif(os.name != "posix", reason="other systems have no names of arbitrary bytes")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.touch()
    assert find_files([path, tmp_path / "caf\xe9.txt"]) == [path, None]


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reads: tuple[Callable[[Path], object], ...] = (
        *(read_text, read_lines, lambda path: read_json(path, "a table"), Vocabulary.load),
        *(read_image, read_pth),
    )
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        for read in reads:
            with pytest.raises(FileNotFoundError, match=f"{path}: expected a"):
                read(path)


def test_names_that_are_too_long(tmp_path: Path) -> None:
    names = ["x" * 300, "é" * 300, "x" * 300 + "/a", "é" * 300 + "/é"]
    assert find_files(tmp_path / name for name in names) == [None] * 4
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image(tmp_path / names[0])
