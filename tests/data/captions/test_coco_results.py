"""COCO's result files: their format, and captions that are refused."""

import json

import numpy as np
import pytest

from data.captions.coco_results import write_results


def test_the_format_is_cocos(tmp_path):
    image_ids = np.array([42])
    captions = {image_ids[0]: "a dog", 7: "", 9: 'a café "near"\nthe beach'}
    write_results(tmp_path / "results.json", captions)
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"image_id": 42, "caption": "a dog"},
        {"image_id": 7, "caption": ""},
        {"image_id": 9, "caption": 'a café "near"\nthe beach'},
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
def test_refused_captions_leave_the_old_file(tmp_path, captions, message):
    path = tmp_path / "results.json"
    write_results(path, {1: "a cat"})
    with pytest.raises(ValueError, match=message):
        write_results(path, captions)
    assert json.loads(path.read_text()) == [{"image_id": 1, "caption": "a cat"}]
