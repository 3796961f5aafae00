"""Published data sets of actions: each from a tiny tree of its format, and what is refused."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data.datasets.action_sets import ACTION_SETS
from data.datasets.labelled_files import LabelledFiles
from data.datasets.splits import make_split, read_split_file, write_split

CLASSES = ("brush_hair", "wave")


def fill(path: Path) -> None:
    """Writes a file whose content is its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(path.name).encode())


def make_marked(root: Path, videos: str, lists: str, ending: str = ".avi") -> Path:
    """Writes clips of six films per class; the marks of split s are rotated by s."""
    (root / lists).mkdir(parents=True)
    for name in CLASSES:
        clips = [f"film{k // 2}_{name}_u_nm_np1_ba_goo_{k % 2}" for k in range(12)]
        for clip in clips:
            place = root / videos / name / f"{clip}{ending}"
            fill(place if ending else place / "00001.png")
        for split in (1, 2, 3):
            marks = [(0, 1, 2)[(k // 2 + split) % 3] for k in range(12)]
            lines = [f"{clip}.avi {mark} \n" for clip, mark in zip(clips, marks, strict=True)]
            (root / lists / f"{name}_test_split{split}.txt").write_text("".join(lines))
    return root


def make_hmdb51(root: Path) -> Path:
    return make_marked(root, "hmdb51_org", "testTrainMulti_7030_splits")


def make_jhmdb(root: Path) -> Path:
    return make_marked(root, "Rename_Images", "splits", "")


def make_kinetics(root: Path) -> Path:
    header = "label,youtube_id,time_start,time_end,split"
    rows: dict[str, list[str]] = {"train": [], "validate": []}
    for k in range(8):
        label, split = ("abseiling", '"zumba, fast"')[k % 2], "train" if k < 6 else "validate"
        rows[split].append(f"{label},-id_{k},{k},{k + 10},{split}")
        if k != 1:
            fill(root / split / f"-id_{k}_{k:06d}_{k + 10:06d}.mp4")
    (root / "annotations").mkdir()
    for split, lines in rows.items():
        (root / "annotations" / f"{split}.csv").write_text("\n".join([header, *lines]) + "\n")
    unlabelled = "youtube_id,time_start,time_end,split\nxyz,1,11,test\n"
    (root / "annotations" / "test.csv").write_text(unlabelled)
    return root


def make_something(root: Path) -> Path:
    labels = {"Holding something next to something": "1", "Dropping something": "0"}
    templates = ["Holding [something] next to [something]", "Dropping [something]"]
    for split, ids in (("train", range(4)), ("validation", range(4, 6))):
        entries = [
            {"id": str(k), "label": "holding a cup", "template": templates[k % 2]} for k in ids
        ]
        root.mkdir(exist_ok=True)
        (root / f"something-something-v2-{split}.json").write_text(json.dumps(entries))
        for k in ids:
            fill(root / "20bn-something-something-v2" / f"{k}.webm")
    (root / "something-something-v2-labels.json").write_text(json.dumps(labels))
    return root


def make_jester(root: Path) -> Path:
    labels = ("Swiping Left", "Drumming Fingers")
    for split, ids in (("train", range(4)), ("validation", range(4, 6))):
        lines = [f"{k};{labels[k % 2]}\n" for k in ids]
        for k in ids:
            fill(root / "20bn-jester-v1" / str(k) / "00001.jpg")
        (root / f"jester-v1-{split}.csv").write_text("".join(lines))
    (root / "jester-v1-labels.csv").write_text("\n".join(labels) + "\n")
    (root / "jester-v1-test.csv").write_text("6\n7\n")
    return root


def make_ucf101(root: Path) -> Path:
    (root / "ucfTrainTestlist").mkdir(parents=True)
    (root / "ucfTrainTestlist" / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    for fold in (1, 2, 3):
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(("Archery", "Bowling"), 1):
            for group in (1, 2, 3):
                clip = f"{name}/v_{name}_g{group:02d}_c01.avi"
                fill(root / "UCF-101" / clip)
                if group == fold:
                    lists["test"].append(clip)
                else:
                    lists["train"].append(f"{clip} {label}")
        for side, lines in lists.items():
            path = root / "ucfTrainTestlist" / f"{side}list{fold:02d}.txt"
            path.write_text("\n".join(lines) + "\n")
    return root


MAKE: dict[str, Callable[[Path], Path]] = {
    "hmdb51": make_hmdb51,
    "jester": make_jester,
    "jhmdb": make_jhmdb,
    "kinetics": make_kinetics,
    "something": make_something,
    "ucf101": make_ucf101,
}


def read(name: str, root: Path, fold: int = 1) -> LabelledFiles:
    return ACTION_SETS[name](root, fold)


@pytest.fixture(params=sorted(ACTION_SETS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    return request.param, MAKE[request.param](tmp_path / "root")


def test_every_set_is_read_and_its_split_kept(made: tuple[str, Path]) -> None:
    name, root = made
    files = read(name, root)
    assert len(files.class_names) == 2
    assert set(files.splits) == {"train", "test"}
    assert files.official_folds
    assert len(set(files.names)) == len(files)
    for path, relative in zip(files.paths, files.names, strict=True):
        assert Path(path).exists()
        assert (root / relative).samefile(path)
    # A run keeps its split in a file, from which it reads the same.
    split = make_split(files, validation_share=0.3)
    assert {"train", "test"} <= set(split.splits)
    write_split(root.parent / "split.csv", split)
    again = read_split_file(root.parent / "split.csv", root, split.class_names)
    assert (again.names, again.labels, again.splits) == (split.names, split.labels, split.splits)


def test_a_root_that_is_not_there(made: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = made
    with pytest.raises(FileNotFoundError, match=r"^root: expected .*gone"):
        read(name, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"^root: expected .*empty"):
        read(name, tmp_path / "empty")


def test_another_fold(made: tuple[str, Path]) -> None:
    name, root = made
    if name in ("hmdb51", "jhmdb", "ucf101"):
        tested = []
        for fold in (1, 2, 3):
            files = read(name, root, fold)
            tested.append({files.names[index] for index in files.indices("test")})
        assert len({frozenset(names) for names in tested}) == 3
    with pytest.raises(ValueError, match=r"fold.*received [47]"):
        read(name, root, 7)


def test_classes_and_groups_of_hmdb51(tmp_path: Path) -> None:
    files = read("hmdb51", make_hmdb51(tmp_path))
    assert files.class_names == CLASSES
    assert Counter(files.splits) == {"train": 8, "test": 8}  # Those of mark 0 are unused.
    index = files.names.index("hmdb51_org/wave/film1_wave_u_nm_np1_ba_goo_0.avi")
    assert files.groups[index] == "film1_wave"
    assert files.splits[index] == "test"


def test_jhmdb_as_videos_or_frames(tmp_path: Path) -> None:
    frames = read("jhmdb", make_jhmdb(tmp_path / "frames"))
    assert all(Path(path).is_dir() for path in frames.paths)
    root = make_marked(tmp_path / "videos", "ReCompress_Videos", "splits")
    videos = read("jhmdb", root)
    assert all(path.endswith(".avi") for path in videos.paths)
    assert (frames.labels, frames.splits) == (videos.labels, videos.splits)


def test_missing_clips_of_kinetics_are_counted_and_named(tmp_path: Path) -> None:
    root = make_kinetics(tmp_path)
    (root / "validate" / "-id_6_000006_000016.mp4").write_bytes(b"")
    files = read("kinetics", root)
    assert files.class_names == ("abseiling", "zumba, fast")
    assert "2 of 8 listed videos are missing or empty" in files.notes[1]
    assert "-id_1_000001_000011, -id_6_000006_000016" in files.notes[1]
    assert "1 clips are listed without a label" in files.notes[0]
    assert "the validation videos are tested" in files.notes[2]
    assert files.groups[0] == "-id_0"
    for path in (root / "train").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="none of 6 training videos"):
        read("kinetics", root)


def test_labels_of_something_and_jester_have_their_order(tmp_path: Path) -> None:
    files = read("something", make_something(tmp_path / "something"))
    assert files.class_names == ("Dropping something", "Holding something next to something")
    assert files.labels == (1, 0, 1, 0, 1, 0)
    assert files.paths[0].endswith("0.webm")
    jester = read("jester", make_jester(tmp_path / "jester"))
    assert jester.class_names == ("Swiping Left", "Drumming Fingers")
    assert Path(jester.paths[1]).is_dir()


@pytest.mark.parametrize("name", ["something", "jester"])
def test_labels_of_the_test_videos_where_they_are(tmp_path: Path, name: str) -> None:
    root = MAKE[name](tmp_path)
    label = {"something": "Dropping something", "jester": "Swiping Left"}[name]
    (root / "test-answers.csv").write_text(f"6;{label}\n")
    folder = {"something": "20bn-something-something-v2/6.webm", "jester": "20bn-jester-v1/6/1.jpg"}
    fill(root / folder[name])
    files = read(name, root)
    assert Counter(files.splits) == {"train": 4, "validation": 2, "test": 1}
    assert files.notes == ()


# ---- Bad input -------------------------------------------------------------------------------


def test_split_files_of_another_data_set(tmp_path: Path) -> None:
    root = make_hmdb51(tmp_path / "classes")
    lists = root / "testTrainMulti_7030_splits"
    for path in lists.glob("wave_*"):
        path.rename(lists / path.name.replace("wave", "golf"))
    message = r"received files of golf other classes and none of wave; .*another data set\?"
    with pytest.raises(ValueError, match=message):
        read("hmdb51", root)
    root = make_hmdb51(tmp_path / "clips")
    for path in (root / "hmdb51_org" / "wave").iterdir():
        path.rename(path.with_name("other_" + path.name))
    with pytest.raises(FileNotFoundError, match=r"8 of 16 clips are not in .*another data set\?"):
        read("hmdb51", root)
    root = make_something(tmp_path / "something")
    (root / "something-something-v2-labels.json").write_text('{"Pushing something": "0"}')
    with pytest.raises(ValueError, match=r"a template of the labels in entry 0.*another data set"):
        read("something", root)
    root = make_jester(tmp_path / "jester")
    (root / "jester-v1-labels.csv").write_text("Swiping Left\nThumb Up\n")
    with pytest.raises(ValueError, match=r"1 others: Drumming Fingers; .*another data set"):
        read("jester", root)
    root = make_ucf101(tmp_path / "ucf101")
    (root / "ucfTrainTestlist" / "classInd.txt").write_text("1 Archery\n2 Diving\n")
    with pytest.raises(ValueError, match="classes disagree"):
        read("ucf101", root)


def test_a_group_on_both_sides(tmp_path: Path) -> None:
    root = make_ucf101(tmp_path)
    path = root / "ucfTrainTestlist" / "trainlist01.txt"
    path.write_text(path.read_text() + "Archery/v_Archery_g01_c02.avi 1\n")
    fill(root / "UCF-101" / "Archery" / "v_Archery_g01_c02.avi")
    message = r"each recording group in one split, received 1 in test and train: group 01; move"
    with pytest.raises(ValueError, match=message):
        read("ucf101", root)
    assert read("ucf101", root, 2).official_folds  # The other folds are in order.


def test_a_class_missing_from_training(tmp_path: Path) -> None:
    root = make_ucf101(tmp_path / "ucf101")
    path = root / "ucfTrainTestlist" / "trainlist01.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    message = r"training files of each of 2 classes, received none of 1: Bowling"
    with pytest.raises(ValueError, match=message):
        read("ucf101", root)
    root = make_hmdb51(tmp_path / "hmdb51")
    path = root / "testTrainMulti_7030_splits" / "wave_test_split1.txt"
    path.write_text(path.read_text().replace(" 1 ", " 0 "))
    with pytest.raises(ValueError, match="received none of 1: wave"):
        read("hmdb51", root)
    root = make_kinetics(tmp_path / "kinetics")
    for k in (0, 2, 4):
        (root / "train" / f"-id_{k}_{k:06d}_{k + 10:06d}.mp4").unlink()
    with pytest.raises(ValueError, match=r"and the files in .* received none of 1: abseiling"):
        read("kinetics", root)


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    root = make_hmdb51(tmp_path / "hmdb51")
    path = root / "testTrainMulti_7030_splits" / "wave_test_split1.txt"
    path.write_text("clip.avi 3\n")
    with pytest.raises(ValueError, match=r"0 \(unused\).* in line 1, received 'clip.avi 3'"):
        read("hmdb51", root)
    root = make_kinetics(tmp_path / "kinetics")
    path = root / "annotations" / "train.csv"
    path.write_text(path.read_text() + "abseiling,xyz,soon,later,train\n")
    with pytest.raises(ValueError, match=r"times in seconds .* in line 8, received 'abseiling,xyz"):
        read("kinetics", root)
    root = make_jester(tmp_path / "jester")
    (root / "jester-v1-train.csv").write_text("0,Swiping Left\n")
    with pytest.raises(ValueError, match="expected 'ID;LABEL' in line 1"):
        read("jester", root)
    (root / "jester-v1-train.csv").write_text("4;Drumming Fingers\n")
    with pytest.raises(ValueError, match=r"each video once, received 4 as .* of train and"):
        read("jester", root)
    root = make_something(tmp_path / "something")
    (root / "something-something-v2-train.json").write_text('[{"id": "0"}]')
    with pytest.raises(ValueError, match="an id and a template in entry 0"):
        read("something", root)
    (root / "something-something-v2-train.json").write_text("{}")
    with pytest.raises(ValueError, match="a list of videos, received dict"):
        read("something", root)
    (root / "something-something-v2-labels.json").write_text("[]")
    with pytest.raises(ValueError, match="labels with the numbers from 0 on"):
        read("something", root)
