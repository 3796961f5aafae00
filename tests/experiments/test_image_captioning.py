"""Captioners of one's own photographs: from a list to captions, a kept split, fine-tuning."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from data.captions import java_scorers
from data.captions.vocabulary import Vocabulary
from data.datasets.image_captions import read_captioned_images, write_list
from experiments import image_captioning
from experiments.captioning.config import VOCABULARY
from experiments.image_captioning import SPLIT, extend_variables
from flaxnets.inference import trained_captioner, trained_model
from flaxnets.inference.trained_captioner import TrainedCaptioner
from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.loop import make_variables, train
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir, WorkdirError
from launch.program import config_of
from launch.reports.run_page import write_report

EXPERIMENT = "experiments/image_captioning.py"
COLOURS = {"red": (220, 30, 30), "green": (20, 200, 40), "blue": (30, 40, 210)}


def make_photographs(root: Path, count: int = 24) -> Path:
    """Writes images of one colour each and their captions; returns the list."""
    rng = np.random.default_rng(0)
    (root / "photos").mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(count):
        colour = list(COLOURS)[number % 3]
        pixels = np.clip(COLOURS[colour] + rng.normal(0, 9, (20, 24, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"photos/{number}.png")
        lines += [f"{number}.png,A {colour} wall .", f'{number}.png,"One wall, all {colour}"']
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return root / "captions.csv"


def make_config(root: Path, **changes: Any) -> Any:
    """Returns a small configuration: feature maps of 2×2 of a random frozen encoder."""
    config = image_captioning.get_config()
    config.data.root, config.data.list = str(root / "photos"), str(root / "captions.csv")
    config.data.cache = str(root / "features")
    config.data.image_size, config.data.num_corners, config.data.num_buckets = 32, 1, 1
    encoder, decoder = config.model.encoder, config.model.decoder
    encoder.name, encoder.weights, encoder.features, encoder.strides = "small_cnn", "", (8,), (16,)
    decoder.features = decoder.embed_features = decoder.attention_features = 16
    config.model.region_features = 16
    config.batch_size, config.num_steps, config.eval_every, config.log_every = 8, 4, 2, 1
    config.search.method, config.search.max_steps = "greedy", 6
    config.strategy = "single"
    config.optimizer.warmup_steps = 0
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def run(path: Path, config: Any) -> None:
    with Workdir(path) as workdir:
        workdir.claim(EXPERIMENT, config)
        train(config, workdir, show_progress=False)


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what is evaluated on one of the session's devices, which compiles sooner."""
    strategy = DataParallel(jax.devices()[:1])
    for module in (trained_model, trained_captioner):
        monkeypatch.setattr(module, "DataParallel", lambda: strategy)
    # METEOR takes seconds to start, and has tests of its own.
    monkeypatch.setattr(java_scorers, "find_java", lambda: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with photographs and a run of four steps on them at ``run``."""
    folder = tmp_path_factory.mktemp("photographs")
    make_photographs(folder)
    run(folder / "run", make_config(folder))
    return folder


def test_what_is_chosen_is_said_before_anything_is_encoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_photographs(tmp_path)
    path.write_text(path.read_text() + "23.png,A blue wall .\n0.png,...\n")
    config = make_config(tmp_path)
    lines = config.describe_choices()
    text = "\n".join(lines)
    assert f"{path}: CSV with the columns image, caption" in text
    assert "24 with 48 captions" in text
    assert "1 captions without words (0.png); 1 repeated rows (23.png)" in text
    assert "train 16, validation 4, test 4" in text
    assert "vocabulary    7 words" in text
    assert "3 views of each training image" in text
    assert 8 <= len(lines) <= 12
    with caplog.at_level(logging.INFO):
        config.make_data("train")
    told = [record.message for record in caplog.records]
    assert told[: len(lines)] == lines


@pytest.mark.slow
def test_the_split_is_kept_beside_the_run_and_is_a_list(trained: Path) -> None:
    kept = read_captioned_images(trained / "photos", trained / "run" / SPLIT)
    made = make_config(trained).data.listed
    assert dict(zip(kept.names, kept.splits, strict=True)) == dict(
        zip(made.names, made.splits, strict=True)
    )
    config = make_config(trained)
    config.data.list = str(trained / "run" / SPLIT)
    for split in ("train", "validation", "test"):
        assert config.describe_data(split) == make_config(trained).describe_data(split)


def test_a_run_is_used_when_its_list_and_its_training_images_are_gone(
    trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    kept = read_captioned_images(trained / "photos", trained / "run" / SPLIT)
    (tmp_path / "photos").mkdir()
    for path in kept.select("test").paths:
        shutil.copy(path, tmp_path / "photos")
    workdir = Workdir(tmp_path / "run")
    overrides = [f"data.root={tmp_path / 'photos'}", f"data.list={tmp_path / 'gone.csv'}"]
    config = config_of(workdir, overrides=overrides)
    metrics = TrainedModel(config, workdir).evaluate("test")
    assert metrics["examples"] == 4
    assert {"BLEU-1", "CIDEr"} <= metrics.keys()
    assert len(read_predictions(workdir.predictions("test"))) == 4
    page = write_report(workdir, "test", config=config_of(workdir, overrides=overrides)).read_text()
    assert "No examples of the split" not in page
    assert page.count('<img src="data:image/jpeg') >= 4
    # Photographs that the run does not know need none of its data.
    shutil.rmtree(tmp_path / "photos")
    new = make_photographs(tmp_path / "new", 3).parent / "photos/2.png"
    model = TrainedModel(config_of(workdir, overrides=overrides), workdir)
    [found] = TrainedCaptioner([model]).caption_files([str(new)])
    assert found.captions
    with pytest.raises(FileNotFoundError, match=r"split\.csv: 4 of the 4 images it names are not"):
        model.evaluate("test")


def test_other_photographs_are_a_test_split(trained: Path, tmp_path: Path) -> None:
    path = make_photographs(tmp_path, 9)
    path.write_text(path.read_text().replace("wall", "door"))
    workdir = Workdir(trained / "run")
    overrides = [f"data.root={tmp_path / 'photos'}", f"data.list={path}"]
    model = TrainedModel(config_of(workdir, overrides=overrides), workdir)
    assert len(model.config.references("test")) == 9  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="split: expected one of test, in which"):
        model.evaluate("validation")
    # A list that only grew has no other split: its further images may be like those in training.
    grown = tmp_path / "grown.csv"
    grown.write_text((trained / "captions.csv").read_text() + "99.png,A red door\n")
    overrides = [f"data.list={grown}"]
    model = TrainedModel(config_of(workdir, overrides=overrides), workdir)
    assert len(model.config.references("test")) == 4  # type: ignore[attr-defined]


def test_a_run_resumes_and_refuses_other_captions(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    config = make_config(trained)
    run(tmp_path / "run", config)
    text = (trained / "captions.csv").read_text()
    (tmp_path / "captions.csv").write_text(text.replace("One wall", "A fence"))
    config = make_config(trained)
    config.data.list = str(tmp_path / "captions.csv")
    with pytest.raises(WorkdirError, match="the same files have other labels or captions"):
        run(tmp_path / "run", config)


@pytest.mark.slow
def test_fine_tuning_keeps_words_and_parameters_and_adds_new_ones(
    trained: Path, tmp_path: Path
) -> None:
    path = make_photographs(tmp_path)
    path.write_text(path.read_text().replace("wall", "door"))
    config = make_config(tmp_path, start=str(trained / "run"))
    known = Vocabulary.load(trained / "run" / VOCABULARY)
    assert config.vocabulary.words == (*known.words, "door")
    config.validate()
    start = TrainedModel(config_of(Workdir(trained / "run")), Workdir(trained / "run"))
    new, old = initial_decoder(config), start.variables["params"]["decoder"]
    np.testing.assert_array_equal(new["embedding"][:-1], old["embedding"])
    np.testing.assert_array_equal(new["vocabulary_kernel"][:, :-1], old["vocabulary_kernel"])
    assert np.abs(new["embedding"][-1]).max() > 0
    other = make_config(tmp_path, start=str(trained / "run"))
    other.model.decoder.features = 8
    with pytest.raises(ValueError, match=r"start: expected parameters of the shape .* at \['param"):
        initial_decoder(other)
    other.data.image_size = 64
    with pytest.raises(
        ValueError, match=r"start: expected a captioner of images .*size: 32 there,"
    ):
        other.validate()
    other.start = str(tmp_path / "none")
    with pytest.raises(
        ValueError, match="start: expected the workdir or folder of a captioner, re"
    ):
        other.validate()


def initial_decoder(config: Any) -> dict[str, np.ndarray]:
    """Returns the decoder's parameters before the first step."""
    with config.make_data("train").batches() as batches:
        batch = next(batches)
    variables = make_variables(config, config.make_model(), config.make_task(), batch)
    decoder = variables["params"]["decoder"]
    return {name: np.asarray(value) for name, value in decoder.items() if value is not None}


def test_extended_variables_hold_the_trained_ones() -> None:
    new = {"params": {"embedding": np.zeros((5, 2)), "kernel": np.zeros((2, 5)), "w": np.ones(3)}}
    old = {"params": {"embedding": np.ones((4, 2)), "kernel": np.ones((2, 4)), "w": np.zeros(3)}}
    found = extend_variables(old, new, 5, "runs/a")["params"]
    np.testing.assert_array_equal(found["embedding"], [[1, 1]] * 4 + [[0, 0]])
    np.testing.assert_array_equal(found["kernel"], [[1, 1, 1, 1, 0]] * 2)
    np.testing.assert_array_equal(found["w"], 0)
    with pytest.raises(ValueError, match=r"start: expected parameters of the shape \(3,\)"):
        extend_variables({"params": {**old["params"], "w": np.zeros(2)}}, new, 5, "runs/a")
    with pytest.raises(ValueError, match="start: expected a captioner with the same parts"):
        extend_variables({"params": {"embedding": np.ones((4, 2))}}, new, 5, "runs/a")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"root": "", "list": ""}, ValueError, r"data\.root, data\.list: expected the folder of"),
        ({"kind": "file"}, ValueError, r"data\.kind: unknown 'file'; did you mean 'files'"),
        ({"missing": "skp"}, ValueError, r"data\.missing: unknown 'skp'; did you mean 'skip'"),
        ({"list": "none.csv"}, FileNotFoundError, r"none\.csv: expected a text file, which does"),
        ({"test_share": 1.0}, ValueError, "validation_share, test_share: expected shares whose"),
        ({"min_count": 99}, ValueError, "captions: expected words that occur 99 times"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_encoded(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    make_photographs(tmp_path)
    config = make_config(tmp_path)
    for name, value in changes.items():
        setattr(config.data, name, value)
    with pytest.raises(error, match=message):
        config.make_model()
    assert not (tmp_path / "features").exists()


def test_a_run_that_resumes_keeps_its_split(tmp_path: Path) -> None:
    listing, folder = make_photographs(tmp_path), tmp_path / "run"
    before = make_config(tmp_path).data.listed
    (folder / "checkpoints" / "2").mkdir(parents=True)
    write_list(folder / SPLIT, before)
    shutil.copy(tmp_path / "photos/0.png", tmp_path / "photos/new.png")
    with listing.open("a") as file:
        file.write("new.png,A new wall\n")
    config = make_config(tmp_path)
    config.resume_assets(folder)
    assert (config.data.listed.names, config.data.listed.splits) == (before.names, before.splits)
    assert "1 images" in config.data.listed.notes[-1]
    assert "left out (new.png)" in config.data.listed.notes[-1]
    # Without a checkpoint the run starts anew.
    (folder / "checkpoints" / "2").rmdir()
    image_captioning._list_images.cache_clear()  # As in a new process.
    config = make_config(tmp_path)
    config.resume_assets(folder)
    assert "new.png" in config.data.listed.names


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="no such variant; did you mean 'finetune'"):
        image_captioning.get_config("fine_tune")


def test_fine_tuning_starts_from_the_captioner_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = image_captioning.get_config("finetune")
    assert config.start == "captioner"
    monkeypatch.setattr(image_captioning, "shipped_models", dict)
    config.data.root = str(tmp_path)
    # Never from random parameters, silently.
    with pytest.raises(ValueError, match=r"start: .*received 'captioner'.*--config\.start=WORKDIR"):
        config.validate()


COCO = Path(__file__).parents[2].parent / "shared/data/coco"


@pytest.mark.skipif(not COCO.is_dir(), reason="the photographs of COCO are not there")
def test_coco_s_photographs_are_read() -> None:
    listed = read_captioned_images(COCO / "train2017", COCO / "annotations/captions_train2017.json")
    assert (len(listed.names), listed.form) == (80, "COCO's JSON")
    assert all(len(texts) >= 5 for texts in listed.images.captions)
