"""Table of captioners: one row for each workdir."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import scst, show_attend_tell, up_down
from experiments.results.caption_table import METRICS, format_table, make_row
from flaxnets.training.config import to_dict


def make_workdir(folder: Path, config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": to_dict(config)}))
    scores = {"BLEU-1": 0.641, "CIDEr": 0.558, "step": 3752}
    (folder / "validation.json").write_text(json.dumps(scores))
    (folder / "log.txt").write_text(
        "2026-11-24 20:01:40 INFO started\n  a further line\n2026-11-24 21:06:10 INFO ended\n"
    )
    return folder


def test_a_row_has_metrics_in_percent_steps_and_minutes(tmp_path: Path) -> None:
    row = make_row(
        make_workdir(tmp_path / "run", show_attend_tell.get_config("flickr8k")), "validation"
    )
    assert row[0] == "Show, Attend and Tell, soft attention"
    assert dict(zip(METRICS, row[1:], strict=False)) == {
        "BLEU-1": "64.1",
        **dict.fromkeys(METRICS[1:-1], "–"),
        "CIDEr": "55.8",
    }
    assert row[-2:] == ["3,752", "64"]
    lines = format_table([row]).splitlines()
    assert len(lines) == 3
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("module", "changes", "name"),
    [
        (up_down, {"variant": "flickr8k"}, "Up-Down"),
        (
            show_attend_tell,
            {"variant": "flickr8k_sampled", "initialize_from": "runs/a"},
            "Show, Attend and Tell, soft attention, then scheduled sampling",
        ),
        (scst, {"variant": "flickr8k"}, "SCST, with neighbours' captions"),
        (scst, {"variant": "coco"}, "SCST"),
    ],
)
def test_a_name_tells_attention_sampling_and_neighbours(
    tmp_path: Path, module: Any, changes: dict[str, str], name: str
) -> None:
    config = module.get_config(changes["variant"])
    config.initialize_from = changes.get("initialize_from", "")
    assert make_row(make_workdir(tmp_path / "run", config), "validation")[0] == name
