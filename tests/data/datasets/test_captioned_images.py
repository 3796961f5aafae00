"""Readers of captioned images: Flickr8k's files, Karpathy's JSON, and their shared checks."""

import json
import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.captions.vocabulary import Vocabulary, split_words
from data.datasets import coco_captions, flickr8k, karpathy
from data.datasets.captioned_images import CaptionedImages
from tests.data.pictures import touch

SHARED = Path(__file__).parents[3].parent / "shared/data"


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    touch(tmp_path / "Flicker8k_Dataset", "b.jpg", "a.jpg", "c#d.jpg")
    texts = tmp_path / "Flickr8k_text"
    texts.mkdir()
    (texts / "Flickr8k.token.txt").write_text(
        "a.jpg#1\tA second .\na.jpg#0\tA first .\nb.jpg#0\tThe café .\n\n"
        "c#d.jpg#0\tA sharp .\nd.jpg#0\tLost .\n",
        encoding="utf-8",
    )
    (texts / "Flickr_8k.trainImages.txt").write_text("b.jpg\na.jpg\n\n")
    (texts / "Flickr_8k.devImages.txt").write_text("c#d.jpg")
    (texts / "Flickr_8k.testImages.txt").write_text("d.jpg\n")
    return tmp_path


def test_flickr8k_keeps_an_image_s_captions_together(flickr: Path) -> None:
    images = flickr8k.read_split(flickr, "train")
    assert images.image_ids == ("b.jpg", "a.jpg")
    assert images.captions == (("The café .",), ("A first .", "A second ."))
    assert images.paths[0] == str(flickr / "Flicker8k_Dataset/b.jpg")
    assert flickr8k.read_split(flickr, "dev") == flickr8k.read_split(flickr, "validation")
    assert flickr8k.read_split(flickr, "dev").captions == (("A sharp .",),)


def test_flickr8k_with_something_missing(flickr: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"testImages.txt: 1 of the 1 .*d\.jpg"):
        flickr8k.read_split(flickr, "test")
    with pytest.raises(FileNotFoundError, match=r"testImages.txt: 1 of the 1 .*d\.jpg"):
        flickr8k.read_split(flickr, "test", missing="skip")
    (flickr / "Flicker8k_Dataset/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"trainImages.txt: 1 of the 2 images"):
        flickr8k.read_split(flickr, "train")
    kept = flickr8k.read_split(flickr, "train", missing="skip")
    assert kept.image_ids == ("b.jpg",)
    assert kept.missing == (str(flickr / "Flicker8k_Dataset/a.jpg"),)
    (flickr / "Flickr8k_text/Flickr_8k.testImages.txt").unlink()
    with pytest.raises(FileNotFoundError, match="not there, and the split 'test' needs it"):
        flickr8k.read_split(flickr, "test")
    with pytest.raises(FileNotFoundError, match="expected the folder of Flickr8k"):
        flickr8k.read_split(flickr / "elsewhere", "train")
    with pytest.raises(ValueError, match="missing: expected 'error' or 'skip'"):
        flickr8k.read_split(flickr, "train", missing="ignore")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg#0 A first", "line 1: expected 'NAME.jpg#0<tab>caption'"),
        ("a.jpg\tA first", "line 1: expected 'NAME.jpg#0<tab>caption'"),
        ("a.jpg#0\tA\na.jpg#0\tB", "line 2: expected each caption once, received a.jpg#0"),
        ("a.jpg#0\tA", "1 images of .* have no caption: b.jpg"),
    ],
)
def test_flickr8k_with_other_captions(flickr: Path, content: str, message: str) -> None:
    (flickr / "Flickr8k_text/Flickr8k.token.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        flickr8k.read_split(flickr, "train")


def test_flickr8k_with_an_empty_list(flickr: Path) -> None:
    (flickr / "Flickr8k_text/Flickr_8k.trainImages.txt").write_text("\n")
    with pytest.raises(ValueError, match="expected names of images, received none"):
        flickr8k.read_split(flickr, "train")


def test_flickr8k_s_captions_may_hold_other_characters_that_end_lines(flickr: Path) -> None:
    inside = "\u2028", "\u2029", "\x85", "\f", "\v", "\x1c"
    lines = [f"a.jpg#{n}\tA dog{c}and {n} runs ." for n, c in enumerate(inside)]
    tokens = flickr / "Flickr8k_text/Flickr8k.token.txt"
    for end in ("\n", "\r\n", "\r"):
        text = end.join([*lines, "b.jpg#0\tThe café .", "b.jpg#1\t", ""])
        for content in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16")):
            tokens.write_bytes(content)
            images = flickr8k.read_split(flickr, "train")
            assert images.captions[1] == tuple(line.partition("\t")[2] for line in lines)
            assert images.captions[0] == ("The café .", "")


def test_flickr8k_in_latin_1_is_refused_with_the_command_that_converts_it(flickr: Path) -> None:
    tokens = flickr / "Flickr8k_text/Flickr8k.token.txt"
    tokens.write_bytes("a.jpg#0\tA dog\nb.jpg#0\tThe café .\n".encode("latin-1"))
    message = (
        r"token\.txt, line 2: expected text in UTF-8, received the byte 0xe9 .*iconv -f ISO-8859-1"
    )
    with pytest.raises(ValueError, match=message):
        flickr8k.read_split(flickr, "train")


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_names_in_another_unicode_form_than_on_disk(flickr: Path, listed: Any, stored: Any) -> None:
    name = "Übung é.jpg"
    touch(flickr / "Flicker8k_Dataset", unicodedata.normalize(stored, name))
    texts = flickr / "Flickr8k_text"
    other = "NFD" if listed == "NFC" else "NFC"
    (texts / "Flickr_8k.trainImages.txt").write_text(unicodedata.normalize(listed, name))
    (texts / "Flickr8k.token.txt").write_text(f"{unicodedata.normalize(other, name)}#0\tA dog .")
    images = flickr8k.read_split(flickr, "train")
    assert images.paths == (
        str(flickr / "Flicker8k_Dataset" / unicodedata.normalize(stored, name)),
    )
    assert images.image_ids == (unicodedata.normalize("NFC", name),)
    assert images.captions == (("A dog .",),)


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    names = [f"{number}.jpg" for number in range(16)]
    touch(tmp_path / "Images", *names)
    rows = [
        f'{name},"A dog , {n} ""quoted"" ."\n{name},A cat {n} .' for n, name in enumerate(names)
    ]
    (tmp_path / "captions.txt").write_text("\n".join(["image,caption", *rows, ""]))
    return tmp_path


def test_kaggle_s_flickr8k(kaggle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parts = [flickr8k.read_split(kaggle, split) for split in ("train", "dev", "test")]
    assert "2 images each are held out for validation and test" in caplog.text
    assert [len(part) for part in parts] == [12, 2, 2]
    assert sorted(i for part in parts for i in part.image_ids) == sorted(
        f"{number}.jpg" for number in range(16)
    )
    for part in parts:
        for path, name, captions in zip(part.paths, part.image_ids, part.captions, strict=True):
            number = str(name).removesuffix(".jpg")
            assert path == str(kaggle / "Images" / str(name))
            assert captions == (f'A dog , {number} "quoted" .', f"A cat {number} .")


def test_kaggle_s_flickr8k_with_the_official_lists(kaggle: Path) -> None:
    (kaggle / "Flickr_8k.trainImages.txt").write_text("3.jpg\n1.jpg\n")
    assert flickr8k.read_split(kaggle, "train").image_ids == ("3.jpg", "1.jpg")
    with pytest.raises(FileNotFoundError, match=r"devImages\.txt: not there, .* 'dev' needs it"):
        flickr8k.read_split(kaggle, "dev")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\n", "expected lines 'NAME.jpg,caption', received none"),
        ("image,caption\na.jpg\n", "line 2: expected 'NAME.jpg,caption', received 'a.jpg'"),
        ("image,caption\n\nA dog, a cat\n", "line 3: expected 'NAME.jpg,caption', received 'A do"),
    ],
)
def test_kaggle_s_flickr8k_with_other_content(kaggle: Path, content: str, message: str) -> None:
    (kaggle / "captions.txt").write_text(content)
    with pytest.raises(ValueError, match=rf"captions\.txt(:|,) {message}"):
        flickr8k.read_split(kaggle, "train")
    (kaggle / "captions.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"nor is Kaggle's captions\.txt"):
        flickr8k.read_split(kaggle, "train")


def test_commas_of_captions_without_quotes(kaggle: Path) -> None:
    (kaggle / "captions.txt").write_text("0.jpg,A dog , a cat\n1.jpg,B\n")
    train = flickr8k.read_split(kaggle, "train")
    assert train.captions == (("A dog , a cat",), ("B",))
    with pytest.raises(ValueError, match="expected 8 images or more to hold some out, received 2"):
        flickr8k.read_split(kaggle, "validation")


def karpathy_entry(number: int, split: str, **more: Any) -> dict[str, Any]:
    sentences = [{"raw": f"Caption {number}{letter} . "} for letter in "ab"]
    return {"split": split, "filename": f"{number}.jpg", "imgid": number} | {
        "sentences": sentences,
        **more,
    }


@pytest.fixture
def coco_karpathy(tmp_path: Path) -> Path:
    entries = [
        karpathy_entry(0, "test", filepath="val2014", cocoid=391895),
        karpathy_entry(1, "restval", filepath="val2014", cocoid=522418),
        karpathy_entry(2, "train", filepath="train2014", cocoid=57870),
        karpathy_entry(3, "val", filepath="val2014", cocoid=60623),
    ]
    for entry in entries:
        touch(tmp_path, f"{entry['filepath']}/{entry['filename']}")
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return path


@pytest.mark.parametrize(
    ("split", "restval", "ids"),
    [
        ("train", True, (522418, 57870)),
        ("train", False, (57870,)),
        ("restval", True, (522418,)),
        ("validation", True, (60623,)),
        ("val", True, (60623,)),
        ("dev", True, (60623,)),
        ("test", True, (391895,)),
    ],
)
def test_karpathy_s_splits(
    coco_karpathy: Path, split: str, restval: bool, ids: tuple[int, ...]
) -> None:
    images = karpathy.read_split(coco_karpathy, coco_karpathy.parent, split, restval=restval)
    assert images.image_ids == ids
    if split == "test":
        assert images.paths == (str(coco_karpathy.parent / "val2014/0.jpg"),)
        assert images.captions == (("Caption 0a .", "Caption 0b ."),)


def test_karpathy_s_flickr_has_one_folder_and_ids_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "dataset_flickr8k.json"
    path.write_text(json.dumps({"images": [karpathy_entry(i, "train") for i in range(3)]}))
    touch(tmp_path / "images", "0.jpg", "2.jpg")
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 images .*images/1.jpg"):
        karpathy.read_split(path, tmp_path / "images", "train")
    images = karpathy.read_split(path, tmp_path / "images", "train", missing="skip")
    assert images.image_ids == (0, 2)
    assert images.missing == (str(tmp_path / "images/1.jpg"),)
    with pytest.raises(ValueError, match=r"no image of .* is in 'test', there are: train"):
        karpathy.read_split(path, tmp_path / "images", "test")


@pytest.mark.parametrize(
    ("keys", "ids"),
    [(("cocoid", "imgid"), (50, 51, 52)), (("imgid",), (0, 1, 2)), ((), (0, 1, 2))],
)
def test_karpathy_s_ids_may_be_missing(tmp_path: Path, keys: tuple, ids: tuple) -> None:
    entries = [karpathy_entry(i, "train", cocoid=50 + i) for i in range(3)]
    for entry in entries:
        for key in {"cocoid", "imgid"} - set(keys):
            del entry[key]
    touch(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": entries}), encoding="utf-8-sig")
    assert karpathy.read_split(path, tmp_path, "train").image_ids == ids
    if keys == ("cocoid", "imgid"):
        del entries[1]["cocoid"]  # Missing for one image, no id of COCO's is used.
        path.write_text(json.dumps({"images": entries}))
        assert karpathy.read_split(path, tmp_path, "train").image_ids == (0, 1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": 3}, "with a text 'split', received {'split': 3"),
        ({"filename": None}, "with a text 'filename', received None"),
        ({"filepath": 3}, "with a text 'filepath', received 3"),
        ({"imgid": [3]}, r"with a number or text 'imgid', received \[3\]"),
        (
            {"sentences": [{"tokens": ["a"]}]},
            r"with sentences that have a text 'raw', received \[{'tok",
        ),
    ],
)
def test_karpathy_s_json_with_other_entries(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "dataset.json"
    entries = [karpathy_entry(0, "train"), karpathy_entry(1, "train") | change]
    path.write_text(json.dumps({"images": entries}))
    with pytest.raises(ValueError, match=rf"dataset\.json: expected .*, images\[1\] {message}"):
        karpathy.read_split(path, tmp_path, "train")


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [3]}', "\udcff"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: karpathy.read_split(path, path.parent, "train"),
        lambda path: coco_captions.read_split(path.parents[1], "train"),
    ],
)
def test_another_json(tmp_path: Path, read: Callable, content: str) -> None:
    path = tmp_path / "annotations/captions_train2017.json"
    with pytest.raises(FileNotFoundError):
        read(path)
    path.parent.mkdir()
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"2017\.json: expected (Karpathy|COCO)'s JSON"):
        read(path)


@pytest.mark.parametrize(
    ("split", "hint"),
    [
        ("tset", "did you mean 'test'"),
        ("Train", "did you mean 'train'"),
        ("valid", "did you mean 'val"),
    ],
)
def test_unknown_splits_name_the_nearest(
    flickr: Path, coco_karpathy: Path, split: str, hint: str
) -> None:
    for read in (
        lambda: flickr8k.read_split(flickr, split),
        lambda: karpathy.read_split(coco_karpathy, coco_karpathy.parent, split),
        lambda: coco_captions.read_split(flickr, split),
    ):
        with pytest.raises(ValueError, match=f"split: expected one of train, .*{hint}"):
            read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": ("a",)}, r"one for each image, received \(1, 2, 2\)"),
        ({"captions": (("x",), ())}, "1 images have none: b"),
        ({"image_ids": (1, 1)}, "expected each once, received again 1"),
    ],
)
def test_lists_that_disagree(change: dict, message: str) -> None:
    fields: dict[str, Any] = {
        "paths": ("a", "b"),
        "captions": (("x",), ("y",)),
        "image_ids": (1, 2),
    }
    with pytest.raises(ValueError, match=message):
        CaptionedImages(**{**fields, **change})


def test_selected_images() -> None:
    images = CaptionedImages(("a", "b", "c"), (("x",), ("y",), ("z",)), (1, 2, 3))
    chosen = images.select([2, 0])
    assert (chosen.paths, chosen.captions) == (("c", "a"), (("z",), ("x",)))
    assert (chosen.image_ids, len(chosen)) == ((3, 1), 2)


@pytest.mark.skipif(not (SHARED / "flickr8k").is_dir(), reason="shared/data/flickr8k is missing")
def test_the_real_flickr8k() -> None:
    root = SHARED / "flickr8k"
    train, validation = (flickr8k.read_split(root, split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (6000, 1000)
    assert {len(texts) for texts in (*train.captions, *validation.captions)} == {5}
    assert not set(train.image_ids) & set(validation.image_ids)
    captions = [caption for texts in train.captions for caption in texts]
    assert len(Vocabulary.from_captions(captions, 5)) == 2540
    assert min(len(split_words(caption)) for caption in captions) > 0
    with pytest.raises(FileNotFoundError, match="the split 'test' needs it"):
        flickr8k.read_split(root, "test")
