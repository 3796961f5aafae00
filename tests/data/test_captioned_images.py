"""The readers of captioned images: Flickr8k's files, Karpathy's JSON, COCO's JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.captions import Vocabulary, split_words
from data.datasets import coco_captions, flickr8k, karpathy
from data.datasets.captioned_images import CaptionedImages

SHARED = Path(__file__).parents[2].parent / "shared/data"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


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


COCO = {
    "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 4, "file_name": "4.jpg"}],
    "annotations": [
        {"id": 8, "image_id": 4, "caption": "Four, second\n"},
        {"id": 3, "image_id": 9, "caption": "Nine"},
        {"id": 7, "image_id": 4, "caption": "Four, first"},
    ],
}


def write_coco(folder: Path, **changes: Any) -> Path:
    touch(folder / "train2017", "4.jpg", "9.jpg")
    path = folder / "captions_train2017.json"
    path.write_text(json.dumps({**COCO, **changes}))
    return path


def test_coco(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    images = coco_captions.read_annotations(path, tmp_path / "train2017")
    assert images.image_ids == (9, 4)
    assert images.captions == (("Nine",), ("Four, first", "Four, second"))
    assert images.paths[1] == str(tmp_path / "train2017/4.jpg")
    (tmp_path / "train2017/9.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 images .*9\.jpg"):
        coco_captions.read_annotations(path, tmp_path / "train2017")
    assert coco_captions.read_annotations(path, tmp_path / "train2017", missing="skip").image_ids


def write_coco_folder(root: Path, part: str, numbers: range) -> None:
    names = [f"{number:012}.jpg" for number in numbers]
    content = {
        "images": [{"id": i, "file_name": n} for i, n in zip(numbers, names, strict=True)],
        "annotations": [{"id": i, "image_id": i, "caption": f"{part} {i}"} for i in numbers],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"annotations/captions_{part}.json").write_text(json.dumps(content))
    touch(root / part, *names)


def test_coco_s_own_folder_holds_a_tenth_of_its_training_images_out(tmp_path: Path) -> None:
    write_coco_folder(tmp_path, "train2017", range(40))
    write_coco_folder(tmp_path, "val2017", range(40, 45))
    parts = [coco_captions.read_split(tmp_path, split) for split in ("train", "val", "test")]
    train, validation, test = parts
    assert (len(train), len(validation), test.image_ids) == (36, 4, tuple(range(40, 45)))
    assert sorted(train.image_ids + validation.image_ids) == list(range(40))
    # Not the first, nor the last, and the same whichever files are there.
    assert validation.image_ids == (8, 9, 29, 39)
    assert validation.captions[0] == ("train2017 8",)
    for number in (7, 8):
        (tmp_path / f"train2017/{number:012}.jpg").unlink()
    kept = coco_captions.read_split(tmp_path, "dev", missing="skip")
    assert kept.image_ids == (9, 29, 39)
    assert len(coco_captions.read_split(tmp_path, "train", missing="skip")) == 35
    with pytest.raises(FileNotFoundError, match=r"train2017.json: 1 of the 36 images .*07\.jpg"):
        coco_captions.read_split(tmp_path, "train")


def test_coco_s_folder_of_either_year(tmp_path: Path) -> None:
    write_coco_folder(tmp_path, "train2014", range(10))
    assert len(coco_captions.read_split(tmp_path, "train")) == 9
    write_coco_folder(tmp_path, "train2017", range(20))
    assert len(coco_captions.read_split(tmp_path, "train")) == 18
    assert len(coco_captions.read_split(tmp_path, "train", year=2014)) == 9
    message = r"captions_val2017.json or captions_val2014.json is not there, .* 'test' needs it"
    with pytest.raises(FileNotFoundError, match=message):
        coco_captions.read_split(tmp_path, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": COCO["images"][:1]}, "2 captions of images not listed: 4, 4"),
        ({"annotations": COCO["annotations"][:1]}, "1 images have none: .*9.jpg"),
        ({"images": []}, "COCO's JSON of captions, received no images"),
        ({"images": 3}, "COCO's JSON of captions; TypeError"),
        ({"annotations": [{"id": 1, "image_id": 4}]}, "COCO's JSON of captions; KeyError"),
    ],
)
def test_coco_with_other_content(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coco_captions.read_annotations(write_coco(tmp_path, **changes), tmp_path / "train2017")


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [3]}', "\udcff"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: karpathy.read_split(path, path.parent, "train"),
        lambda path: coco_captions.read_annotations(path, path.parent),
    ],
)
def test_another_json(tmp_path: Path, read: Callable, content: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"some\.json: expected (Karpathy|COCO)'s JSON"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.json")


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


def test_some_of_the_images() -> None:
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
    assert len(Vocabulary.count(captions, 5)) == 2540
    assert min(len(split_words(caption)) for caption in captions) > 0
    with pytest.raises(FileNotFoundError, match="the split 'test' needs it"):
        flickr8k.read_split(root, "test")


@pytest.mark.skipif(not (SHARED / "coco").is_dir(), reason="shared/data/coco is missing")
def test_the_real_coco() -> None:
    notes = SHARED / "coco/annotations"
    images = coco_captions.read_annotations(
        notes / "captions_train2017.json", SHARED / "coco/train2017"
    )
    assert (len(images), sum(map(len, images.captions))) == (80, 400)
    with pytest.raises(FileNotFoundError, match="5000 of the 5000 images"):
        coco_captions.read_annotations(notes / "captions_val2017.json", SHARED / "coco/val2017")
    parts = [coco_captions.read_split(SHARED / "coco", split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [72, 8]
    assert not set(parts[0].image_ids) & set(parts[1].image_ids)
