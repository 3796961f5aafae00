"""Faulty data sets of video files, in their lists and in their pixels."""

import json
from pathlib import Path

import pytest

from flaxnets.training.metric_writer import read_metrics
from tests.data.video_files import truncate, write_video
from tests.launch.programs import (
    finish,
    sentence,
    start,
    succeed,
)

CLASSES = ("Archery", "Bowling", "Diving")
GROUPS = range(1, 5)  # The first tests, the second validates.


def file_name(class_name: str, group: int, clip: int) -> str:
    return f"{class_name}/v_{class_name}_g{group:02d}_c{clip:02d}.avi"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of compiled programs, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small UCF101: 3 classes, 4 groups, 2 clips of 20 frames each."""
    root = tmp_path / "ucf101"
    videos, lists = root / "UCF-101", root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    original = write_video(tmp_path / "original.avi").read_bytes()
    train, test = [], []
    for label, class_name in enumerate(CLASSES, start=1):
        (videos / class_name).mkdir(parents=True)
        for group in GROUPS:
            for clip in (1, 2):
                name = file_name(class_name, group, clip)
                (videos / name).write_bytes(original)
                test.append(name) if group == 1 else train.append(f"{name} {label}")
    (lists / "classInd.txt").write_text(
        "".join(f"{label} {name}\n" for label, name in enumerate(CLASSES, start=1))
    )
    (lists / "trainlist01.txt").write_text("\n".join(train) + "\n")
    (lists / "testlist01.txt").write_text("\n".join(test) + "\n")
    return root


def flags(root: Path, run: str = "run") -> tuple[str, ...]:
    return (
        "--config=experiments/lrcn_ucf101.py",
        f"--workdir={root.parent / run}",
        f"--config.data.root={root}",
        "--config.data.validation_groups=('02',)",
        "--config.data.frame_size=(48, 64)",
        "--config.data.crop_size=32",
        "--config.data.test_clips=1",
        "--config.data.test_crops=1",
        "--config.model.encoder.name=small_cnn",
        "--config.model.encoder.weights=",
        "--config.model.recurrent.features=8",
        "--config.batch_size=4",
        "--config.num_steps=4",
        "--config.eval_every=4",
        "--config.log_every=1",
    )


def error_of_training(root: Path, *more: str) -> str:
    return sentence(finish(start("train", *flags(root), *more)))


@pytest.mark.slow
def test_a_wrong_root_a_wrong_list_and_wrong_classes(root: Path) -> None:
    elsewhere = root.parent / "elsewhere"
    error = error_of_training(elsewhere)
    assert f"{elsewhere}: expected the folder of a data set in UCF101's format" in error
    # A run that failed before its first step does not block its folder.
    error = error_of_training(root, "--config.data.root=")
    assert "data.root: expected the folder of UCF101; give --config.data.root=" in error

    gone = [file_name("Bowling", group, clip) for group in (2, 3) for clip in (1, 2)]
    contents = {name: (root / "UCF-101" / name).read_bytes() for name in gone}
    for name in gone:
        (root / "UCF-101" / name).unlink()
    error = error_of_training(root)
    assert "trainlist01.txt: 4 of 18 files are not in" in error
    assert all(name in error for name in gone[:3])
    assert gone[3] not in error
    for name, content in contents.items():
        (root / "UCF-101" / name).write_bytes(content)

    (root / "UCF-101" / "Surfing").mkdir()
    classes = root / "ucfTrainTestlist" / "classInd.txt"
    classes.write_text(classes.read_text() + "4 Fencing\n")
    error = error_of_training(root)
    assert "classes disagree" in error
    assert "classInd.txt: Fencing" in error
    assert "UCF-101: Surfing" in error


@pytest.mark.slow
def test_one_truncated_video_is_named_counted_and_skipped(
    root: Path, tmp_path: Path, cache: Path
) -> None:
    broken = {
        kind: root / "UCF-101" / file_name("Diving", group, 1)
        for kind, group in {"test": 1, "validation": 2, "train": 3}.items()
    }
    for path in broken.values():
        truncate(path, 9, more=10)
    # 12 clips train, so that 4 steps of 4 see each of them.
    succeed(start("train", *flags(root), "--config.data.max_bad_share=0.2", cache=cache))
    run = root.parent / "run"
    log = (run / "log.txt").read_text()
    for kind in ("train", "validation"):
        skipped = [line for line in log.splitlines() if str(broken[kind]) in line]
        assert len(skipped) == 1, kind
        assert "WARNING data.loader: skipped an unreadable example" in skipped[0]
        assert "truncated" in skipped[0]
    validation = [record for record in read_metrics(run) if record["split"] == "validation"]
    assert [(record["examples"], record["skipped"]) for record in validation] == [(5, 1)]
    printed = json.loads(succeed(start("evaluate", f"--workdir={run}", cache=cache)))
    assert (printed["examples"], printed["skipped"]) == (5, 1)

    good = root / "UCF-101" / file_name("Archery", 1, 1)
    no_video = tmp_path / "text.avi"
    no_video.write_text("this is no video")
    missing = tmp_path / "2026-11-28T12:00:00.avi"
    clips = [str(path) for path in (no_video, missing, good, broken["test"])]
    done = finish(start("predict", f"--workdir={run}", *clips, cache=cache))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: 3 of 4 files could not be read" in done.stderr
    records = {record["path"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert sorted(records) == sorted(clips)
    predictions = records[str(good)]["predictions"]
    assert sorted(entry["label"] for entry in predictions) == sorted(CLASSES)
    probabilities = [entry["probability"] for entry in predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    for path, reason in (
        (no_video, "not a readable video (Invalid data found when processing input)"),
        (missing, "expected a video file, which does not exist"),
        (broken["test"], "truncated: 9 of 20 frames, the next is cut off"),
    ):
        assert records[str(path)]["error"] == reason


@pytest.mark.stress
def test_training_fails_when_too_many_videos_are_bad(root: Path, cache: Path) -> None:
    for clip in (1, 2):
        truncate(root / "UCF-101" / file_name("Bowling", 3, clip), 9, more=10)
    processes = [
        start(
            "train",
            *flags(root, f"workers{workers}"),
            "--config.data.max_bad_share=0.1",
            f"--config.data.num_workers={workers}",
            cache=cache,
        )
        for workers in (0, 2)
    ]
    for process in processes:
        error = sentence(finish(process))
        assert "2 of 12 examples (16.7%) cannot be read, more than the 10.0% allowed" in error
        assert "v_Bowling_g03_c01.avi: truncated" in error
        assert "v_Bowling_g03_c02.avi: truncated" in error
