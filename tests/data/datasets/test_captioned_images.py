"""Readers of captioned images: Flickr8k's files, Karpathy's JSON, and their shared checks."""

import json
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
