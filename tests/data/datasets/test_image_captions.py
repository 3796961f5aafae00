"""Captioned images of one's own: every form of a list, folders with texts, splits, bad input."""

import csv
import doctest
import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datasets import image_captions
from data.datasets.caption_splits import make_split
from data.datasets.image_captions import ImageCaptions, read_captioned_images, write_list

CAPTIONS = {
    "a.jpg": ("A dog, running.", 'A "wet" dog\nin the water.'),
    "Übung é.JPG": ("Ein Hund.",),
    "sub folder/c d.png": ("两只狗。", "Two dogs."),
}


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    touch(tmp_path / "images", *CAPTIONS)
    return tmp_path / "images"


def found(listed: ImageCaptions) -> dict[str, tuple[str, ...]]:
    return dict(zip(listed.names, listed.images.captions, strict=True))


def rows() -> list[list[str]]:
    return [[name, text] for name, texts in CAPTIONS.items() for text in texts]


def write_rows(path: Path, header: list[str], delimiter: str, end: str, encoding: str) -> None:
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
        writer.writerows([header, *rows()])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("delimiter", "header"),
    [
        (",", ["image", "caption"]),
        ("\t", ["File Name", "Text"]),
        (";", ["filepath", "captions"]),
        ("|", ["image_name", "comment"]),
    ],
)
def test_tables(root: Path, delimiter: str, header: list[str], end: str, encoding: str) -> None:
    path = root / "list"
    write_rows(path, header, delimiter, end, encoding)
    listed = read_captioned_images(root, path)
    assert found(listed) == CAPTIONS
    assert listed.images.image_ids == tuple(CAPTIONS)
    assert listed.form.endswith(f"with the columns {', '.join(header)}")
    assert not listed.has_splits


def records() -> list[dict[str, object]]:
    return [{"image": name, "captions": list(texts)} for name, texts in CAPTIONS.items()]


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ("\n".join(map(json.dumps, records())), "JSON lines"),
        (json.dumps(records()), "a JSON list"),
        (json.dumps(records(), indent=1), "a JSON list"),
        (json.dumps({name: list(texts) for name, texts in CAPTIONS.items()}), "JSON of captions"),
        (
            "\n".join(json.dumps({"path": name, "text": text}) for name, text in rows()),
            "JSON lines",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt"])
def test_json(root: Path, content: str, form: str, suffix: str) -> None:
    path = root.parent / f"list{suffix}"
    path.write_text(content, encoding="utf-8")
    listed = read_captioned_images(root, path)
    assert found(listed) == CAPTIONS
    assert listed.form.startswith(form)


def test_coco_and_karpathy(root: Path) -> None:
    names = list(CAPTIONS)
    coco = {
        "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 7 * i, "image_id": 10 + names.index(name), "caption": text}
            for i, (name, text) in enumerate(rows())
        ],
    }
    (root / "captions.json").write_text(json.dumps(coco))
    listed = read_captioned_images(root)  # A list of this name need not be given.
    assert found(listed) == CAPTIONS
    assert listed.images.image_ids == (10, 11, 12)
    assert listed.form == "COCO's JSON"
    sides = {"a.jpg": "restval", "Übung é.JPG": "val", "sub folder/c d.png": "test"}
    karpathy = {
        "images": [
            {
                "filename": Path(name).name,
                "filepath": str(Path(name).parent),
                "imgid": i,
                "split": sides[name],
                "sentences": [{"raw": text} for text in texts],
            }
            for i, (name, texts) in enumerate(CAPTIONS.items())
        ]
    }
    (root / "other.json").write_text(json.dumps(karpathy))
    listed = read_captioned_images(root, "other.json")  # It starts at the root.
    assert found(listed) == CAPTIONS
    assert listed.splits == ("train", "validation", "test")
    assert listed.form == "Karpathy's JSON"


@pytest.mark.parametrize("ending", ["txt", "TXT"])
def test_folders_of_images_and_texts(root: Path, ending: str) -> None:
    single = {name: tuple(t.replace("\n", " ") for t in texts) for name, texts in CAPTIONS.items()}
    for name, texts in single.items():
        text = "\r\n".join(["", *texts, ""])
        (root / name).with_suffix(f".{ending}").write_bytes(b"\xef\xbb\xbf" + text.encode())
    touch(root, "README.txt", "._a.jpg", "__MACOSX/a.jpg", "bare.jpg")
    listed = read_captioned_images(root)
    assert found(listed) == single
    assert listed.uncaptioned == ("bare.jpg",)
    touch(root, "x.txt", "y.txt")
    with pytest.raises(FileNotFoundError, match=r"2 texts have no image of .*x\.txt, .*y\.txt"):
        read_captioned_images(root)
    kept = read_captioned_images(root, missing="skip")
    assert found(kept) == single
    assert [Path(path).name for path in kept.images.missing] == ["x.txt", "y.txt"]


def test_folders_above_are_splits(tmp_path: Path) -> None:
    for folder in ("Train", "val", "test"):
        touch(tmp_path, f"{folder}/a.jpg")
        (tmp_path / folder / "a.txt").write_text(f"A dog of {folder}\n")
    listed = read_captioned_images(tmp_path)
    assert dict(zip(listed.names, listed.splits, strict=True)) == {
        "Train/a.jpg": "train",
        "test/a.jpg": "test",
        "val/a.jpg": "validation",
    }
    touch(tmp_path, "other/b.jpg")
    assert not read_captioned_images(tmp_path).has_splits


def test_names_in_other_forms(root: Path) -> None:
    names = "./a.jpg", unicodedata.normalize("NFD", "Übung é.JPG"), "sub folder\\c d.png"
    text = "".join(f"{name},A dog\n" for name in names)
    (root / "list.csv").write_text(f"image,caption\n{text}{root / 'a.jpg'},The dog\n")
    listed = read_captioned_images(root, "list.csv")
    assert listed.names == tuple(CAPTIONS)  # An absolute path below the root is one of them.
    assert listed.images.captions[0] == ("A dog", "The dog")
    assert all(Path(path).is_file() for path in listed.images.paths)


def test_blanks_around_names(tmp_path: Path) -> None:
    touch(tmp_path, " a .jpg", "b.jpg")
    (tmp_path / " a .txt").write_text("A dog\n")
    (tmp_path / "b.txt").write_text("Two dogs\n")
    expected = {" a .jpg": ("A dog",), "b.jpg": ("Two dogs",)}
    assert found(read_captioned_images(tmp_path)) == expected
    (tmp_path / "list.csv").write_text("image,caption\n a .jpg,A dog\n b.jpg ,Two dogs\n")
    assert found(read_captioned_images(tmp_path, "list.csv")) == expected


def test_names_in_another_encoding_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("A dog")
    (tmp_path / os.fsdecode(b"\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"names in UTF-8, received 1 in another .*udce9\.jpg"):
        read_captioned_images(tmp_path)


def test_other_tables(root: Path) -> None:
    path = root / "list.csv"
    for text, captions in (
        ('a.jpg#0\tA dog, wet\na.jpg#1\t"The" dog\n', ("A dog, wet", '"The" dog')),
        ("image,caption\na.jpg,A dog, running\na.jpg,The dog\n", ("A dog, running", "The dog")),
        ("a.jpg,A dog, running\n", ("A dog, running",)),
        ("image,caption_1,caption_2\na.jpg,A dog,The dog\n", ("A dog", "The dog")),
        ('image,captions\na.jpg,"[""A dog"", ""The dog""]"\n', ("A dog", "The dog")),
        ("caption,other,image\nA dog,7,a.jpg\n", ("A dog",)),
        ('image\tcaption\na.jpg\t"A dog" it says\n', ('"A dog" it says',)),
    ):
        path.write_text(text)
        assert found(read_captioned_images(root, path)) == {"a.jpg": captions}, text


def test_what_is_left_out_is_told(root: Path) -> None:
    lines = ["image,caption", "a.jpg,A dog", "a.jpg,A dog", "a.jpg,...", "Übung é.JPG,", "a.jpg,B"]
    (root / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    listed = read_captioned_images(root, "list.csv")
    assert found(listed) == {"a.jpg": ("A dog", "B")}
    assert listed.repeated == ("a.jpg",)
    assert listed.wordless == ("a.jpg", "Übung é.JPG")
    assert listed.uncaptioned == ("Übung é.JPG",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected images and captions, received an empty file"),
        ("image,caption\n", "expected images and captions, received none"),
        ("[]", "expected images and captions, received none"),
        ('{"image": "a.jpg", "words": "A"}', "record 1: expected a column of captions"),
        (f'{{"data": [{"7," * 99}7]}}', r"a list of captions, received .{80}$"),
        ("image,words\na.jpg,A dog\n", r"line 1: expected a column of captions .*'image, words'"),
        ("name,caption\na.jpg,A dog\n", r"line 1: expected a column of images .*'name, caption'"),
        ("image,caption\na.jpg,...\n", "captions with words, received 1 images without any: a.jpg"),
        ("image,caption\n,A dog\n", "line 2: expected the name of an image, received none"),
        ("image,caption,split\na.jpg,A dog\n", "line 2: expected 3 columns .*received 2: 'a.jpg,A"),
        ('image,caption\na.jpg,"A dog\nb.jpg,The dog\n', "line 2: .*a quote that is never closed"),
        ("image,caption,split\na.jpg,A,trian\n", r"line 2: expected a split .*received 'trian'"),
        (
            "image,caption,split\na.jpg,A,train\na.jpg,B,val\n",
            r"received 1 images in two: a\.jpg \(train, validation\)",
        ),
        (
            "image,caption,split\na.jpg,A,train\nb.jpg,B,\n",
            "a split of every image or of none, received 1 images without one: b.jpg",
        ),
        ('{"image": "a.jpg", "caption": "A"}\n{"image": \n', "line 2: expected a JSON record"),
        ('[{"image": "a.jpg", "caption": "A"},\n{"image": \n', "line 3, column 1"),
        ('[{"image": "a.jpg", "words": "A"}]', "record 1: expected a column of captions"),
        ('[{"image": "a.jpg", "caption": 7}]', "record 1: expected a caption or a list"),
        ('[{"image": 7, "caption": "A"}]', "record 1: expected the name of an image, received 7"),
        ("[7]", "record 1: expected a record with image and caption, received 7"),
        ('{"a.jpg": {"b": 1}}', "'a.jpg': expected a caption or a list of captions"),
        ('{"images": [], "annotations": []}', "expected COCO's JSON of captions, received no im"),
    ],
)
def test_damaged_lists(root: Path, content: str, message: str) -> None:
    (root / "list.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"list\.csv(:|,) .*{message}"):
        read_captioned_images(root, "list.csv")


def test_text_in_latin_1_is_refused_with_the_line(root: Path) -> None:
    (root / "list.csv").write_bytes("image,caption\na.jpg,Le café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"list\.csv, line 2: expected text in UTF-8, .*0xe9"):
        read_captioned_images(root, "list.csv")
    (root / "list.csv").unlink()
    (root / "a.txt").write_bytes("Le café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt, line 1: expected text in UTF-8"):
        read_captioned_images(root)


def test_missing_files(root: Path) -> None:
    lines = [f"{name}.jpg,A dog" for name in ("a", "w", "x", "y", "z")]
    (root / "list.csv").write_text("\n".join(["image,caption", *lines]))
    message = r"list\.csv: 4 of the 5 images it names are not there: .*w\.jpg, .*y\.jpg, \.\.\."
    with pytest.raises(FileNotFoundError, match=message):
        read_captioned_images(root, "list.csv")
    listed = read_captioned_images(root, "list.csv", missing="skip")
    assert listed.names == ("a.jpg",)
    assert len(listed.images.missing) == 4
    assert len(read_captioned_images(root, root / "list.csv", missing="keep").names) == 5
    with pytest.raises(FileNotFoundError, match="none: expected the folder of the images"):
        read_captioned_images(root / "none", root / "list.csv")
    with pytest.raises(FileNotFoundError, match=r"other\.csv: expected a text file"):
        read_captioned_images(root, "other.csv")
    with pytest.raises(ValueError, match="root: expected the folder of the images, or a list"):
        read_captioned_images("")


def test_empty_folders_and_images_without_captions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected images \(\.jpg, .* a folder without any"):
        read_captioned_images(tmp_path)
    touch(tmp_path, *(f"{n}.jpg" for n in range(5)))
    message = r"received 5 images without any \(0\.jpg, 1\.jpg, 2\.jpg, \.\.\.\): put those of"
    with pytest.raises(ValueError, match=message):
        read_captioned_images(tmp_path)


def make_images(root: Path, count: int, *, copies: int = 0) -> ImageCaptions:
    """Returns images of noise, the last ones copies of the first, with a caption each."""
    rng = np.random.default_rng(0)
    root.mkdir()
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).save(root / f"{number}.png")
    for number in range(copies):
        (root / f"copy{number}.png").write_bytes((root / f"{number}.png").read_bytes())
    names = [path.name for path in sorted(root.glob("*.png"))]
    text = "".join(f"{name},A dog {name}\n" for name in names)
    (root / "captions.csv").write_text(f"image,caption\n{text}")
    return read_captioned_images(root)


SHARES = {"validation_share": 0.1, "test_share": 0.1, "least": 20}


def test_a_split_is_made_by_content(tmp_path: Path) -> None:
    listed = make_images(tmp_path / "images", 40, copies=15)
    made = make_split(listed, seed=0, **SHARES)
    counts = Counter(made.splits)
    assert set(counts) == {"train", "validation", "test"}
    assert all(11 <= counts[split] <= 12 for split in ("validation", "test"))  # A fifth of 55.
    side = dict(zip(made.names, made.splits, strict=True))
    assert all(side[f"{n}.png"] == side[f"copy{n}.png"] for n in range(15))
    assert make_split(listed, seed=0, **SHARES).splits == made.splits
    assert make_split(listed, seed=1, **SHARES).splits != made.splits
    again = make_split(
        listed.take(range(len(listed.names))[::-1], listed.splits[::-1]), seed=0, **SHARES
    )
    assert dict(zip(again.names, again.splits, strict=True)) == side
    assert made.notes == ("validation and test drawn from the images by seed 0",)


def test_large_data_hold_out_their_share(tmp_path: Path) -> None:
    listed = make_images(tmp_path / "images", 100)
    made = make_split(listed, validation_share=0.1, test_share=0.2, least=5, seed=0)
    assert Counter(made.splits) == {"train": 70, "validation": 10, "test": 20}
    with pytest.raises(ValueError, match=r"expected shares whose sum is below 1, received 0\.5 an"):
        make_split(listed, validation_share=0.5, test_share=0.5, least=5, seed=0)


def test_given_splits_are_kept_and_completed(tmp_path: Path) -> None:
    listed = make_images(tmp_path / "images", 20, copies=1)
    names = listed.names
    sides = ["test" if name in ("copy0.png", "1.png") else "train" for name in names]
    given = listed.take(range(21), sides)
    made = make_split(given, seed=0, **SHARES)
    assert "0.png" not in made.names  # Its copy is tested.
    assert "left out: 0.png" in made.notes[0]
    assert {n for n, s in zip(made.names, made.splits, strict=True) if s == "test"} == {
        "copy0.png",
        "1.png",
    }
    assert Counter(made.splits)["validation"] == 3
    sides = ["validation" if name < "12" else "train" for name in names]
    kept = make_split(listed.take(range(20), sides), seed=0, **SHARES)
    assert list(kept.splits) == sides[:20]
    with pytest.raises(ValueError, match="expected training images, received those of test alone"):
        make_split(listed.take(range(20), ["test"] * 21), seed=0, **SHARES)


def test_too_few_images_for_a_split(tmp_path: Path) -> None:
    listed = make_images(tmp_path / "images", 5, copies=5)
    with pytest.raises(
        ValueError, match="at least 6 different images to hold some out, received 5"
    ):
        make_split(listed, seed=0, **SHARES)
    made = make_split(make_images(tmp_path / "others", 6), seed=0, **SHARES)
    assert Counter(made.splits) == {"train": 2, "validation": 2, "test": 2}


def test_a_written_list_is_read_back(root: Path, tmp_path: Path) -> None:
    write_rows(root / "list.csv", ["image", "caption"], ",", "\n", "utf-8")
    listed = read_captioned_images(root, "list.csv")
    listed = listed.take(range(3), ["train", "validation", "test"])
    write_list(tmp_path / "split.csv", listed)
    again = read_captioned_images(root, tmp_path / "split.csv")
    assert (again.images, again.splits, again.names) == (
        listed.images,
        listed.splits,
        listed.names,
    )
    assert again.select("test").captions == (CAPTIONS["sub folder/c d.png"],)
    with pytest.raises(ValueError, match="split: expected one of test, train, validation, in whic"):
        again.select("tset")


def test_captions_that_coco_has_twice_are_kept_and_written(root: Path) -> None:
    coco = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "annotations": [
            {"id": i, "image_id": 7, "caption": text}
            for i, text in enumerate(("A dog.", "A dog.", 'A "dog"\u2028here, é'))
        ],
    }
    (root / "coco.json").write_text(json.dumps(coco))
    listed = read_captioned_images(root, "coco.json")
    assert listed.images.captions == (("A dog.", "A dog.", 'A "dog"\u2028here, é'),)
    write_list(root / "split.csv", listed.take([0], ["test"]))
    again = read_captioned_images(root, "split.csv")
    assert again.images == listed.images


def test_the_docstring_s_example() -> None:
    assert doctest.testmod(image_captions) == (0, 1)
