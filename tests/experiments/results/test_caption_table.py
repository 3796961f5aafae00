"""Table of captioners: one row for each workdir."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import scst, show_attend_tell, up_down
from flaxnets.training.config import to_dict

ROOT = Path(__file__).parents[3]


def make_workdir(folder: Path, config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": to_dict(config)}))
    scores = {"BLEU-1": 0.641, "CIDEr": 0.558, "step": 3752}
    (folder / "validation.json").write_text(json.dumps(scores))
    (folder / "log.txt").write_text(
        "2026-11-24 20:01:40 INFO started\n  a further line\n2026-11-24 21:06:10 INFO ended\n"
    )
    return folder


@pytest.mark.slow
def test_rows_have_names_metrics_in_percent_steps_and_minutes(tmp_path: Path) -> None:
    sampled: Any = show_attend_tell.get_config("flickr8k_sampled")
    sampled.initialize_from = "runs/show_attend_tell"
    runs: dict[str, Any] = {
        "Show, Attend and Tell, soft attention": show_attend_tell.get_config(),
        "Show, Attend and Tell, soft attention, then scheduled sampling": sampled,
        "Up-Down": up_down.get_config(),
        "SCST, with neighbours' captions": scst.get_config(),
        "SCST": scst.get_config("coco"),
        "SCST, Att2in": scst.get_config("coco"),
        "Show, Attend and Tell, hard attention": show_attend_tell.get_config(),
    }
    runs["SCST, Att2in"].model.decoder.name = "att2in"
    runs["Show, Attend and Tell, hard attention"].model.decoder.name = "hard_attention"
    workdirs = [
        str(make_workdir(tmp_path / f"run{number}", config))
        for number, config in enumerate(runs.values())
    ]
    out = tmp_path / "table.md"
    # A process of its own, because programs define flags of the same names.
    command = [sys.executable, "-m", "experiments.results.caption_table", f"--out={out}"]
    subprocess.run([*command, *workdirs], cwd=ROOT, check=True)
    header, _, *rows = (line.strip("| ").split(" | ") for line in out.read_text().splitlines())
    assert [row[0] for row in rows] == list(runs)
    for row in rows:
        found = dict(zip(header, row, strict=True))
        assert (found["BLEU-1"], found["METEOR"], found["CIDEr"]) == ("64.1", "–", "55.8")
        assert (found["step"], found["minutes"]) == ("3,752", "64")
    # A row of the same name takes the place of the earlier one, others stay or follow.
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"CIDEr": 0.6, "step": [3752, 938]}))
    (tmp_path / "run0" / "validation.json").write_text(json.dumps({"CIDEr": 0.5, "step": 938}))
    again = [f"--previous={out}", workdirs[0], f"ensemble={both}"]
    subprocess.run([*command, *again], cwd=ROOT, check=True)
    _, _, *changed = (line.strip("| ").split(" | ") for line in out.read_text().splitlines())
    dashes = ["–"] * 6
    assert changed == [
        [rows[0][0], *dashes, "50.0", "938", "64"],
        *rows[1:],
        ["ensemble", *dashes, "60.0", "–", "–"],
    ]
    for argument, expected in (
        (workdirs[1], f"expected one run of each model, received 2 of '{rows[1][0]}'"),
        ("ensemble=none.json", "ensemble=none.json: expected NAME=FILE of an evaluation"),
    ):
        done = subprocess.run(
            [*command, argument, workdirs[1]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert f"error: {expected}" in done.stderr
    (tmp_path / "run0" / "validation.json").unlink()
    done = subprocess.run(
        [*command, *workdirs], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"error: {tmp_path / 'run0'}: expected validation.json, received none" in done.stderr
    assert "Traceback" not in done.stderr
