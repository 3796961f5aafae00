"""COCO's result files: written, read, and every way in which one can be wrong."""

import json

import numpy as np
import pytest

from data.captions.coco_results import read_results, write_results


def test_round_trip(tmp_path):
    captions = {42: "a dog runs", 7: "", 9: 'a café "near"\nthe beach'}
    write_results(tmp_path / "results.json", captions)
    assert read_results(tmp_path / "results.json") == captions
    assert list(read_results(tmp_path / "results.json", image_ids=range(50))) == [42, 7, 9]


def test_the_format_is_cocos(tmp_path):
    image_ids = np.array([42])
    write_results(tmp_path / "results.json", {image_ids[0]: "a dog"})
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"image_id": 42, "caption": "a dog"}
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({1: "a dog", 2: None}, r"captions\[2\]: expected a string, received None"),
        ({"1": "a dog"}, "captions: expected an integer as image_id, received '1'"),
        ({True: "a dog"}, "expected an integer as image_id, received True"),
    ],
)
def test_what_is_not_written_leaves_the_old_file(tmp_path, captions, message):
    path = tmp_path / "results.json"
    write_results(path, {1: "a cat"})
    with pytest.raises(ValueError, match=message):
        write_results(path, captions)
    assert read_results(path) == {1: "a cat"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "expected JSON"),
        ('{"image_id": 1}', "expected a list of results, received an object"),
        ("[3]", "entry 0: expected an object, received 3"),
        ('[{"caption": "a dog"}]', "entry 0: expected image_id and caption, image_id is missing"),
        ('[{"image_id": 1}]', "caption is missing"),
        ('[{"image_id": "1", "caption": "a"}]', "expected an integer as image_id, received '1'"),
        ('[{"image_id": 1.0, "caption": "a"}]', "expected an integer as image_id, received 1.0"),
        ('[{"image_id": 1, "caption": 3}]', "expected a string as caption, received 3"),
    ],
)
def test_what_is_not_read(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_results(path)
    assert str(path) in str(error.value)


def test_duplicates_and_unknown_ids_are_named(tmp_path):
    path = tmp_path / "results.json"
    entries = [{"image_id": n, "caption": "a"} for n in (1, 2, 1, 3)]
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"received twice: 1$"):
        read_results(path)
    path.write_text(json.dumps(entries[1:]))
    with pytest.raises(ValueError, match=r"2 unknown image ids: 2, 3$"):
        read_results(path, image_ids=[1])


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "results.json")
