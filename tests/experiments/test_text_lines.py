"""Readers of text lines: own folders and lists, splits, other data, bad input, and launch.read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flaxnets
from data.text_lines.synthetic_lines import SyntheticLines
from experiments.transcription import text_lines
from experiments.transcription.config import write_lines
from flaxnets.inference.store import save_run
from flaxnets.inference.trained_model import TrainedModel
from flaxnets.models.column_crnn import make_column_crnn
from flaxnets.training.workdir import Workdir, describe_model
from launch.program import config_of
from tests.experiments import grid

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
SMALL = (
    "--config.data.batch_width=640",
    "--config.data.num_buckets=2",
    "--config.data.height=16",
    "--config.model.encoder.features=(4,4,4,8)",
    "--config.model.recurrent.features=8",
    "--config.model.recurrent.num_layers=1",
    "--config.num_steps=2",
    "--config.optimizer.warmup_steps=0",
    "--config.eval_every=2",
    "--config.checkpoint_every=2",
)


def write_folder(folder: Path, split: str = "train", count: int = 12) -> list[str]:
    folder.mkdir(parents=True)
    lines, texts = SyntheticLines(split, count, height=24), []
    for index in range(count):
        Image.fromarray(np.asarray(lines[index]["image"])[..., 0]).save(folder / f"b_{index}.png")
        texts.append(lines.text(index))
        (folder / f"b_{index}.gt.txt").write_text(texts[-1])
    return texts


def launch(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"launch.{program}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_run_keeps_its_split_and_other_data_are_test_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "mine")
    write_folder(tmp_path / "other", "test", 5)
    flag = f"--config.data.root={tmp_path / 'mine'}"
    config = grid.parse("crnn_text_lines.py", flag)
    config.validate()
    before = config.lines
    assert sorted(set(before.splits)) == ["test", "train", "validation"]
    run = tmp_path / "run"
    run.mkdir()
    config.save_assets(run)
    write_folder(tmp_path / "mine" / "later", "validation", 3)
    again = grid.parse("crnn_text_lines.py", flag)
    again.load_assets(run)
    assert again.alphabet == config.alphabet
    assert (again.lines.names, again.lines.texts, again.lines.splits) == (
        before.names,
        before.texts,
        before.splits,
    )
    other = grid.parse("crnn_text_lines.py", f"--config.data.root={tmp_path / 'other'}")
    other.load_assets(run)
    assert set(other.lines.splits) == {"test"}
    assert len(other.texts("test")) == 5
    first = tmp_path / "other" / "b_0.gt.txt"
    first.write_text(first.read_text() + 9 * "\u0416")
    strange = grid.parse("crnn_text_lines.py", f"--config.data.root={tmp_path / 'other'}")
    strange.load_assets(run)
    with caplog.at_level("INFO"):
        strange.make_data("test")
    assert "characters that training texts lack" in caplog.text
    assert "(U+0416) 9 times" in caplog.text


def test_scores_are_error_rates(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    config = grid.parse("crnn_text_lines.py", f"--config.data.root={tmp_path / 'mine'}")
    texts = config.texts("test")
    score = config.make_scorer("test")
    assert score is not None
    right = [{"index": index, "text": text} for index, text in enumerate(texts)]
    assert score(right) == {
        "character_error_rate": 0.0,
        "word_error_rate": 0.0,
        "exact_line_rate": 1.0,
    }
    wrong = score([{"index": index, "text": ""} for index in range(len(texts))])
    assert wrong["character_error_rate"] == 1.0


def test_what_training_trips_over_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_folder(folder)
    for row in range(3):
        name = folder / f"x_{row}.png"
        Image.fromarray(np.full((24, 30), 200 + row, np.uint8)).save(name)
    table = folder / "lines.csv"
    table.write_text(
        "file,text,split\nx_0.png,ab,train\nx_1.png,aaaaaaaaaaaa,train\nx_2.png,aß,validation\n"
    )
    config = grid.parse(
        "crnn_text_lines.py", f"--config.data.list={table}", "--config.data.test_share=0"
    )
    said = "\n".join(config.describe_choices(config.source("train")))
    assert "1 training texts need more steps" in said
    assert "x_1.png" in said
    assert "validation texts have 1 characters that training texts lack" in said
    assert "U+00DF" in said


def test_the_network_is_not_built_for_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "mine")
    config = grid.parse("crnn_text_lines.py", f"--config.data.root={tmp_path / 'mine'}")
    source = config.source("train")
    assert len(source) > 4
    built = []

    def count(*arguments: Any, **options: Any) -> Any:
        built.append(arguments)
        return make_column_crnn(*arguments, **options)

    monkeypatch.setattr(text_lines, "make_column_crnn", count)
    config.describe_choices(source)
    assert 1 <= len(built) <= 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "data.root: expected a folder of lines"),
        (("--config.data.dataset=synthetik",), "did you mean 'synthetic'"),
        (
            ("--config.data.dataset=synthetic", "--config.accumulate_steps=2"),
            "accumulate_steps: expected 1",
        ),
        (
            ("--config.data.dataset=synthetic", "--config.model.recurrent.cell=convlstm"),
            "convlstm reads feature maps",
        ),
        (
            ("--config.data.dataset=synthetic", "--config.model.row_pool=maen"),
            "did you mean 'mean'",
        ),
        (
            ("--config.data.dataset=synthetic", "--config.model.encoder.name=alexnet"),
            "model.encoder of 48 rows",
        ),
    ],
)
def test_wrong_values_are_refused(flags: tuple[str, ...], message: str) -> None:
    config = grid.parse("crnn_text_lines.py", *flags)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_written_lines_are_read_again(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    config = grid.parse("crnn_text_lines.py", f"--config.data.root={tmp_path / 'mine'}")
    write_lines(tmp_path / "split.csv", config.lines)
    head = (tmp_path / "split.csv").read_text().splitlines()[0]
    assert head == "file,text,group,split"


@pytest.mark.stress
@pytest.mark.subprocess
def test_train_evaluate_and_read_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    run = f"--workdir={tmp_path / 'run'}"
    trained = launch(
        "train",
        "--config=experiments/crnn_text_lines.py",
        run,
        f"--config.data.root={tmp_path / 'mine'}",
        *SMALL,
    )
    assert trained.returncode == 0, trained.stderr
    write_folder(tmp_path / "other", "test", 4)
    evaluated = launch("evaluate", run, f"--config.data.root={tmp_path / 'other'}")
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads(evaluated.stdout)
    assert metrics["examples"] == 4
    assert 0 <= metrics["exact_line_rate"] <= 1
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = [str(path) for path in sorted((tmp_path / "other").glob("*.png"))]
    read = launch("read", run, "--beam_width=3", images[0], str(broken), *images[1:])
    assert read.returncode == 1
    lines = [json.loads(line) for line in read.stdout.splitlines()]
    assert [line["path"] for line in lines] == [images[0], str(broken), *images[1:]]
    assert "error" in lines[1]
    assert str(broken) not in lines[1]["error"]
    workdir = Workdir(tmp_path / "run")
    config: Any = config_of(workdir)
    config.search.width = 3
    for record in TrainedModel(config, workdir).predict(images):
        line = [lines[0], *lines[2:]][record["index"]]
        assert line["text"] == record["text"]
        assert line["confidence"] == pytest.approx(record["confidence"], abs=1e-5)
    # A store keeps the words to which the search does.
    config.search.lexicon = "training"
    described = describe_model(config.describe_inference())
    save_run(workdir, tmp_path / "stored", described=described, words=config.lexicon_words)
    assert json.loads((tmp_path / "stored" / "model.json").read_text())["search"] == {
        **described["search"],
        "lexicon": "lexicon.txt",
    }
    stored: Any = flaxnets.load(tmp_path / "stored")
    for own, kept in zip(config.make_task().lexicon, stored.functions.lexicon, strict=True):
        np.testing.assert_array_equal(own, kept)
    exported = launch("export", run, f"--out={tmp_path / 'exported'}")
    assert exported.returncode == 0, exported.stderr
    again = launch("read", f"--model={tmp_path / 'exported'}", images[0])
    loaded: Any = flaxnets.load(tmp_path / "run")
    assert json.loads(again.stdout)["text"] == loaded.read(images[0]).text
    for line in (lines[0], *lines[2:]):
        assert 0 <= line["confidence"] <= 1
        assert len(line["characters"]) == len(line["text"])
        with Image.open(line["path"]) as image:
            width = image.width
        for _, confidence, left, right in line["characters"]:
            assert 0 <= confidence <= 1
            assert 0 <= left < right <= width


def test_a_report_shows_lines_with_their_names_and_groups(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    flags = (f"--config.data.root={tmp_path / 'mine'}", "--config.data.height=16")
    config = grid.parse("crnn_text_lines.py", *flags)
    count = len(config.texts("test"))
    assert [name.endswith(".png") for name in config.names("test")] == [True] * count
    assert list(config.groups("test")) == [""] * count
    line = config.load_clip("test", 0)
    assert line.shape[:2] == (1, 16)
    assert line.dtype == np.uint8
    text = config.texts("test")[0]
    records = [{"index": 0, "text": "~" + text}]
    assert config.confusions("test", records) == {("", "~"): 1}
    assert config.error_interval("test", records) == (1 / len(text), 1 / len(text))
    (tmp_path / "mine" / config.names("test")[0]).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=config.names("test")[0]):
        config.load_clip("test", 0)
    drawn = grid.parse("crnn_text_lines.py:smoke")
    assert list(drawn.names("test")) == list(drawn.groups("test")) == ["", ""]


@pytest.mark.stress
def test_a_search_is_chosen_and_used(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", count=30)
    run = f"--workdir={tmp_path / 'run'}"
    root = f"--config.data.root={tmp_path / 'mine'}"
    trained = launch("train", "--config=experiments/crnn_text_lines.py", run, root, *SMALL)
    assert trained.returncode == 0, trained.stderr
    options = ("--width=3", "--weights=0,0.5", "--bonuses=-1,0", "--report=half")
    tuned = launch("tune_search", run, *options)
    assert tuned.returncode == 0, tuned.stderr
    result = json.loads(tuned.stdout)
    assert len(result["trials"]) == 4
    assert "validation, every second line | the other lines | ms a line" in tuned.stderr
    chosen = json.loads((tmp_path / "run" / "chosen.json").read_text())
    assert chosen == result["chosen"]
    assert chosen["search.width"] == 3
    best = min(trial[2] for trial in result["trials"])
    assert result["chosen_on"]["chosen"]["character_error_rate"] == best
    # Chosen on all lines, the search of an evaluation is that one.
    whole = launch("tune_search", run, *options[:3])
    assert "optimistic" in whole.stderr
    evaluated = launch("evaluate", run, "--split=validation")
    assert json.loads(evaluated.stdout)["character_error_rate"] == pytest.approx(
        json.loads(whole.stdout)["chosen_on"]["chosen"]["character_error_rate"]
    )
    flags = ("--split=validation", "--config.search.width=0")
    greedy = launch("evaluate", run, *flags)
    assert json.loads(greedy.stdout)["character_error_rate"] == pytest.approx(
        json.loads(whole.stdout)["chosen_on"]["greedy"]["character_error_rate"]
    )
    (tmp_path / "run" / "chosen.json").write_text('{"seed": 1}')
    refused = launch("evaluate", run, "--split=validation")
    assert refused.returncode == 1
    assert "chosen.json: seed: expected a field of evaluation" in refused.stderr
