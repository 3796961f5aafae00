"""Identity of the data: trained at A, used and resumed at B; other data are refused."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.classification.video_clips import ClipsConfig
from flaxnets.inference.trained_captioner import TrainedCaptioner
from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.checkpoint import DataChanged
from flaxnets.training.config import describe_run
from flaxnets.training.loop import train
from flaxnets.training.workdir import Workdir, WorkdirError
from launch.program import config_of
from launch.reports.run_page import write_report
from tests.data.video_files import write_video
from tests.experiments import grid
from tests.launch import captioners
from tests.launch.programs import finish, sentence, start, succeed

# ml_collections loads the file of an experiment by a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

EXPERIMENT = "experiments/lrcn_ucf101.py"
NUM_FRAMES = ClipsConfig.num_frames
CLASSES = ("Wave", "Clap", "Kick")
SIZE, CROP = (48, 64), 32


def name_of(class_name: str, group: int) -> str:
    return f"{class_name}/v_{class_name}_g{group:02d}_c01.avi"


def write_data(root: Path, *, seed: int = 0) -> Path:
    """Writes a data set of three classes in four groups, of which the first is tested."""
    train_list, test_list = [], []
    original = write_video(root / "original.avi", NUM_FRAMES + 2, size=SIZE).read_bytes()
    (root / "original.avi").unlink()
    for label, class_name in enumerate(CLASSES, start=1):
        for group in range(1, 5):
            path = root / "videos" / name_of(class_name, group)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(original)
            if group == 1:
                test_list.append(name_of(class_name, group))
            else:
                train_list.append(f"{name_of(class_name, group)} {label}")
    lists = root / "splits"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Wave\n2 Clap\n3 Kick\n")
    (lists / "trainlist01.txt").write_text("\n".join(train_list) + "\n")
    (lists / "testlist01.txt").write_text("\n".join(test_list) + "\n")
    return root


def permute_classes(root: Path) -> None:
    (root / "splits/classInd.txt").write_text("1 Clap\n2 Wave\n3 Kick\n")
    listed = root / "splits/trainlist01.txt"
    listed.write_text("".join(f"{line.split()[0]}\n" for line in listed.read_text().splitlines()))


def shuffle_list(root: Path) -> None:
    listed = root / "splits/trainlist01.txt"
    listed.write_text("\n".join(listed.read_text().splitlines()[::-1]) + "\n")


def drop_a_file(root: Path) -> None:
    listed = root / "splits/trainlist01.txt"
    listed.write_text("\n".join(listed.read_text().splitlines()[:-1]) + "\n")


def drop_a_class(root: Path) -> None:
    shutil.rmtree(root / "videos/Kick")
    for path in (root / "splits").iterdir():
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line for line in lines if "Kick" not in line) + "\n")


FLAGS = (
    "--config.data.validation_groups=('02',)",
    f"--config.data.frame_size={SIZE}",
    f"--config.data.crop_size={CROP}",
    "--config.data.test_clips=1",
    "--config.data.test_crops=1",
    "--config.batch_size=8",
    "--config.model.encoder.name=small_cnn",
    "--config.model.encoder.weights=",
    "--config.model.encoder.features=(4,8)",
    "--config.model.encoder.strides=(4,2)",
    "--config.model.recurrent.features=4",
    "--config.num_steps=2",
    "--config.eval_every=2",
    "--config.log_every=1",
)


def configure(root: Path, *more: str) -> Any:
    return grid.parse("lrcn_ucf101.py", f"--config.data.root={root}", *FLAGS, *more)


def run(path: Path, config: Any) -> None:
    with Workdir(path) as workdir:
        workdir.claim(EXPERIMENT, config)
        train(config, workdir, show_progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the data at ``A`` and a run of two steps on them at ``run``."""
    folder = tmp_path_factory.mktemp("moved")
    run(folder / "run", configure(write_data(folder / "A")))
    return folder


@pytest.fixture
def moved(trained: Path, tmp_path: Path) -> Path:
    """A copy, with the data at ``B``; nothing is at the path that the run recorded."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "A", tmp_path / "B")
    record = json.loads((tmp_path / "run/config.json").read_text())
    record["config"]["data"]["root"] = str(tmp_path / "A")
    (tmp_path / "run/config.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.slow
def test_trained_at_a_predicts_evaluates_reports_and_resumes_at_b(moved: Path) -> None:
    workdir = Workdir(moved / "run")
    # Prediction needs no data: neither the folder nor the lists.
    clip = moved / "B/videos" / name_of("Clap", 3)
    model = TrainedModel(config_of(workdir), workdir)
    assert model.class_names == CLASSES
    (record,) = model.predict([str(clip)])
    assert len(record["probabilities"]) == len(CLASSES)

    with pytest.raises(FileNotFoundError, match=r"A: expected the folder .*if the data were"):
        model.evaluate("test")
    there = config_of(workdir, overrides=[f"data.root={moved / 'B'}"])
    for split in ("validation", "test"):
        assert TrainedModel(there, workdir).evaluate(split)["examples"] == len(CLASSES)
    assert [r["label"] for r in read_predictions(workdir.predictions("test"))] == [0, 1, 2]

    assert "No examples of the split test are shown" in write_report(workdir, "test").read_text()
    page = write_report(workdir, "test", config=there).read_text()
    assert "No examples of the split" not in page
    assert page.count('<img src="data:image/jpeg') == len(CLASSES) * 8

    config = configure(moved / "B", "--config.data.num_threads=2")
    run(moved / "run", config)
    recorded = json.loads((moved / "run/config.json").read_text())["config"]["data"]
    assert (recorded["root"], recorded["num_threads"]) == (str(moved / "B"), 2)


@pytest.mark.parametrize(
    ("change", "difference", "evaluates"),
    [
        (permute_classes, "class 0: 'Wave' there, 'Clap' now, the same classes in another", False),
        (shuffle_list, "the same files are listed in another order", True),
        (drop_a_file, r"other files are listed; (train: )?num_examples: 6 there, 5 now", True),
        (drop_a_class, r"classes: 3 there, 2 now \(Kick\)", False),
    ],
)
def test_other_data_are_refused_with_the_difference(
    moved: Path, change: Any, difference: str, evaluates: bool
) -> None:
    before = (moved / "run/config.json").read_text()
    change(moved / "B")
    with pytest.raises(WorkdirError, match=difference):
        run(moved / "run", configure(moved / "B"))
    # The checkpoints know their data, too.
    record = moved / "run/data.json"
    kept = record.read_bytes()
    record.unlink()
    if change is not drop_a_class:  # Else the model has another shape, which is told first.
        with pytest.raises(DataChanged, match=difference):
            run(moved / "run", configure(moved / "B"))
        assert not record.exists()
    record.write_bytes(kept)
    # Data that were refused leave no trace.
    assert (moved / "run/config.json").read_text() == before
    workdir = Workdir(moved / "run")
    model = TrainedModel(config_of(workdir, overrides=[f"data.root={moved / 'B'}"]), workdir)
    if evaluates:  # Of the list that has changed no file is tested.
        assert model.evaluate("test")["examples"] == 3
    else:
        with pytest.raises(WorkdirError, match=difference):
            model.evaluate("test")


def test_another_list_of_the_validation_split_is_refused(moved: Path) -> None:
    listed = moved / "B/splits/trainlist01.txt"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(line for line in lines if line != f"{name_of('Kick', 2)} 3") + "\n")
    workdir = Workdir(moved / "run")
    config = configure(moved / "B")
    with pytest.raises(WorkdirError, match=r"split validation are not .*num_examples: 3"):
        TrainedModel(config, workdir).evaluate("validation")
    # The training split is as it was, so that only the record of the workdir tells.
    with pytest.raises(WorkdirError, match="cannot resume: validation: other files are listed"):
        run(moved / "run", config)


def test_predictions_of_another_list_are_not_shown_beside_its_clips(moved: Path) -> None:
    workdir = Workdir(moved / "run")
    there = config_of(workdir, overrides=[f"data.root={moved / 'B'}"])
    TrainedModel(there, workdir).evaluate("test")
    listed = moved / "B/splits/testlist01.txt"
    listed.write_text("\n".join(listed.read_text().splitlines()[::-1]) + "\n")
    page = write_report(workdir, "test", config=copy.deepcopy(there)).read_text()
    assert "the same files are listed in another order" in page
    assert "data:image/jpeg" not in page


def test_a_workdir_without_the_names_of_its_classes_is_refused(moved: Path) -> None:
    workdir = Workdir(moved / "run")
    for content in ("{", '{"class_names": 3, "preprocessing": {}, "splits": {}}'):
        (moved / "run/data.json").write_text(content)
        with pytest.raises(WorkdirError, match=r"run/data\.json: damaged"):
            TrainedModel(configure(moved / "B"), workdir)
    (moved / "run/data.json").unlink()
    with pytest.raises(WorkdirError, match=r"no data\.json in it, which holds the names of the"):
        TrainedModel(configure(moved / "B"), workdir)


def test_another_preprocessing_is_refused(moved: Path) -> None:
    workdir = Workdir(moved / "run")
    config: Any = config_of(workdir)
    config.data.crop_size = 24
    with pytest.raises(WorkdirError, match=r"another preprocessing: .*transform\.size: \[32, 32\]"):
        TrainedModel(config, workdir)


def test_cached_features_are_found_after_a_move_and_have_the_labels_of_the_list(
    tmp_path: Path,
) -> None:
    root = write_data(tmp_path / "A")
    flags = ("--config.model.encoder.frozen=True", f"--config.data.cache={tmp_path / 'cache'}")
    batches: list[Any] = []
    for change in (None, None, permute_classes):
        if batches:
            root = root.rename(tmp_path / f"moved{len(batches)}")
        if change is not None:
            change(root)
        with configure(root, *flags).make_data("validation").batches() as data:
            batches.append(next(data))
        assert len(list((tmp_path / "cache").iterdir())) == 1  # Nothing was encoded again.
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch["features"], batches[0]["features"])
    assert [batch["label"][:3].tolist() for batch in batches] == [[0, 1, 2], [0, 1, 2], [1, 0, 2]]

    # A shuffled list has the features of its own files.
    other = root / "videos" / name_of("Wave", 2)
    write_video(other, NUM_FRAMES + 5, size=SIZE)
    first = configure(root, *flags).make_data("validation")
    with first.batches() as data:
        straight = next(data)
    shuffle_list(root)
    with configure(root, *flags).make_data("validation").batches() as data:
        reversed_ = next(data)
    np.testing.assert_array_equal(reversed_["label"][:3], straight["label"][:3][::-1])
    np.testing.assert_array_equal(reversed_["features"][:3], straight["features"][:3][::-1])


def test_ut_interaction_describes_the_same_data_wherever_they_lie(tmp_path: Path) -> None:
    def described(root: Path) -> dict[str, Any]:
        config = grid.parse("lrcn_ucf101.py:ut_interaction", f"--config.data.root={root}")
        config.model.encoder.weights, config.eval_split = "", "test"
        return describe_run(config)

    root = tmp_path / "A"
    for class_name in CLASSES:
        (root / "videos" / class_name).mkdir(parents=True)
        for sequence in (1, 2):
            (root / "videos" / class_name / f"1_{sequence}_1.avi").write_bytes(b"")
    (root / "splits").mkdir()
    (root / "splits/classInd.txt").write_text("1 Wave\n2 Clap\n3 Kick\n")
    for kind, sequence in (("train", 1), ("test", 2)):
        lines = [f"{class_name}/1_{sequence}_1.avi" for class_name in CLASSES]
        (root / f"splits/{kind}list01.txt").write_text("\n".join(lines) + "\n")
    before = described(root)
    assert before["class_names"] == list(CLASSES)
    assert described(root.rename(tmp_path / "B")) == before
    (tmp_path / "B/splits/classInd.txt").write_text("1 Clap\n2 Wave\n3 Kick\n")
    assert described(tmp_path / "B") != before


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_programs_take_the_new_folder_as_a_flag(moved: Path) -> None:
    here, root = f"--workdir={moved / 'run'}", f"--config.data.root={moved / 'B'}"
    predicted = json.loads(
        succeed(start("predict", here, str(moved / "B/videos" / name_of("Kick", 1))))
    )
    assert {guess["label"] for guess in predicted["predictions"]} == set(CLASSES)
    printed = json.loads(succeed(start("evaluate", here, "--config.data.root", str(moved / "B"))))
    assert printed["examples"] == 3
    refused = sentence(finish(start("evaluate", here, root, "--config.optimizer.b1=0.5")))
    assert "--config.optimizer.b1: expected as it was in training, 0.9" in refused


def test_fields_that_change_the_results_must_not_differ(moved: Path) -> None:
    workdir = Workdir(moved / "run")
    for override, message in (
        ("data.rot=x", "data.rot: no such field of the configuration; did you mean 'data.root'"),
        ("data.num_threads=x", "data.num_threads: expected int, received 'x'"),
        ("seed=1", "seed: expected as it was in training, 0; only these may differ: .*data.root"),
        ("root", "root: no such field"),
    ):
        with pytest.raises(ValueError, match=message):
            config_of(workdir, overrides=[override])
    config: Any = config_of(workdir, overrides=["data.num_threads=3", "model.encoder.weights=x"])
    assert (config.data.num_threads, config.model.encoder.weights) == (3, "x")


def test_a_captioner_needs_no_data_and_knows_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), 2, 2, 1280), np.float32) + images.mean() / 255

    monkeypatch.setattr("experiments.captioning.data.make_encode", lambda *_: encode)
    monkeypatch.setattr("experiments.features.frozen_features.make_encode", lambda *_: encode)
    config = captioners.make_config(captioners.make_flickr8k(tmp_path / "A"))
    config.search.method = "greedy"  # Quicker to compile.
    captioners.make_run(tmp_path / "run", config)
    moved = (tmp_path / "A").rename(tmp_path / "B")
    workdir = Workdir(tmp_path / "run")

    photograph = moved / "Flicker8k_Dataset" / "test0.jpg"
    model = TrainedModel(config_of(workdir), workdir)
    (found,) = TrainedCaptioner([model]).caption_files([str(photograph)])
    assert found.captions

    overrides = [f"data.root={moved}", f"data.cache={tmp_path / 'cache'}"]
    there = config_of(workdir, overrides=overrides)
    workdir.check_data("validation", there.describe_data("validation"))
    # The splits are read once in a process, so the other captions lie elsewhere.
    other = captioners.make_flickr8k(tmp_path / "C", ["A red dog runs .", "Two", "The dog is big"])
    config = config_of(workdir, overrides=[f"data.root={other}", overrides[1]])
    with pytest.raises(WorkdirError, match="the same files have other labels or captions"):
        TrainedModel(config, workdir).evaluate("validation")
    with pytest.raises(WorkdirError, match="train: the same files have other labels or captions"):
        workdir.check_run(describe_run(config))


def test_a_call_that_failed_before_its_first_checkpoint_leaves_no_identity(tmp_path: Path) -> None:
    with Workdir(tmp_path) as workdir:
        workdir.checkpoints.mkdir()
        (tmp_path / "data.json").write_text("{")
        workdir.record_run(describe_run(configure(write_data(tmp_path / "A"))))
    assert Workdir(tmp_path).read_data()["class_names"] == list(CLASSES)
