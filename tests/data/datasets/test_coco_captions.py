"""The reader of COCO's own folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.datasets import coco_captions
from tests.data.pictures import touch

SHARED = Path(__file__).parents[3].parent / "shared/data"


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
    (folder / "annotations").mkdir()
    (folder / "annotations/captions_train2017.json").write_text(json.dumps({**COCO, **changes}))
    return folder


def test_coco(tmp_path: Path) -> None:
    write_coco(tmp_path)
    images = coco_captions.read_split(tmp_path, "train")
    assert images.image_ids == (9, 4)
    assert images.captions == (("Nine",), ("Four, first", "Four, second"))
    assert images.paths[1] == str(tmp_path / "train2017/4.jpg")
    (tmp_path / "train2017/9.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 images .*9\.jpg"):
        coco_captions.read_split(tmp_path, "train")
    assert coco_captions.read_split(tmp_path, "train", missing="skip").image_ids == (4,)


@pytest.mark.parametrize(
    ("ids", "order"),
    [((8, 3, 7), (2, 1)), ((8, 3, "7"), (1, 2)), ((8, "x", 7), (1, 2)), ((None,) * 3, (1, 2))],
)
def test_captions_whose_ids_are_not_all_numbers_stay_in_the_file_s_order(
    tmp_path: Path, ids: tuple, order: tuple[int, int]
) -> None:
    notes = [
        {"image_id": image_id, "caption": f"{image_id}, {n}"} | ({} if i is None else {"id": i})
        for n, (image_id, i) in enumerate(zip((9, 4, 4), (ids[1], ids[0], ids[2]), strict=True))
    ]
    images = coco_captions.read_split(write_coco(tmp_path, annotations=notes), "train")
    assert images.captions == (("9, 0",), tuple(f"4, {n}" for n in order))


@pytest.mark.parametrize("kind", [int, str, float, "{:012}".format, "{}.0".format, " {}".format])
def test_ids_of_images_are_numbers_or_text(tmp_path: Path, kind: Callable[[int], Any]) -> None:
    notes = [{**note, "image_id": kind(note["image_id"])} for note in COCO["annotations"]]
    images = coco_captions.read_split(write_coco(tmp_path, annotations=notes), "train")
    assert images.image_ids == (9, 4)
    assert images.captions == (("Nine",), ("Four, first", "Four, second"))
    listed = [{"id": str(image["id"]), "file_name": image["file_name"]} for image in COCO["images"]]
    path = tmp_path / "annotations/captions_train2017.json"
    path.write_text(json.dumps({"images": listed, "annotations": COCO["annotations"]}))
    images = coco_captions.read_split(tmp_path, "train")
    assert images.image_ids == ("9", "4")
    assert images.captions == (("Nine",), ("Four, first", "Four, second"))


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
    # Neither the first nor the last ids, and the same whichever files exist.
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
        ({"images": 3}, "COCO's JSON of captions, received no list 'images'"),
        ({"images": [3]}, r"images\[0\] a record, received 3"),
        ({"images": [{"file_name": "9.jpg"}]}, r"images\[0\] .* text 'id', received None"),
        ({"images": [{"id": True, "file_name": "9.jpg"}]}, r"text 'id', received True"),
        ({"images": [{"id": 9}]}, r"images\[0\] with a text 'file_name', received None"),
        (
            {"images": [*COCO["images"], {"id": 9, "file_name": "8.jpg"}]},
            r"images\[2\] with an id of its own, received 9 again",
        ),
        (
            {"annotations": [{"id": 1, "image_id": 4}]},
            r"annotations\[0\] with a text 'caption', received None",
        ),
        (
            {"annotations": [{"id": 1, "image_id": [4], "caption": "A"}]},
            r"annotations\[0\] with a number or text 'image_id', received \[4\]",
        ),
    ],
)
def test_coco_with_other_content(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coco_captions.read_split(write_coco(tmp_path, **changes), "train")


@pytest.mark.skipif(not (SHARED / "coco").is_dir(), reason="shared/data/coco is missing")
def test_the_real_coco() -> None:
    with pytest.raises(FileNotFoundError, match="5000 of the 5000 images"):
        coco_captions.read_split(SHARED / "coco", "test")
    parts = [coco_captions.read_split(SHARED / "coco", split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [72, 8]
    assert sum(len(texts) for part in parts for texts in part.captions) == 400
    assert not set(parts[0].image_ids) & set(parts[1].image_ids)
