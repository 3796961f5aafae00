"""Splits: no group or content on two sides, every class on every side, and the file of a split."""

import random
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.datasets import splits
from data.datasets.labelled_files import LabelledFiles, read_labelled_files
from data.datasets.splits import find_copies, make_split, read_split_file, write_split

SIDES = ("train", "validation", "test")


def table(rows: list[tuple[str, str]], given_splits: tuple[str, ...] = ()) -> LabelledFiles:
    """Returns files that do not exist, of (class, group)."""
    classes = sorted({name for name, _ in rows})
    names = tuple(f"{name}/{number:03d}.mp4" for number, (name, _) in enumerate(rows))
    return LabelledFiles(
        paths=tuple(f"/nowhere/{name}" for name in names),
        labels=tuple(classes.index(name) for name, _ in rows),
        groups=tuple(group for _, group in rows),
        splits=given_splits or ("",) * len(rows),
        class_names=tuple(classes),
        names=names,
    )


def sides_by(files: LabelledFiles, values: tuple[object, ...]) -> dict[object, set[str]]:
    found: dict[object, set[str]] = defaultdict(set)
    for value, split in zip(values, files.splits, strict=True):
        found[value].add(split)
    return found


# Classes with groups of their own, as UCF101 has them: the numbers of files of each group.
own_groups = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=12), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(own_groups, st.integers(0, 5), st.integers(0, 9))
def test_every_class_is_on_every_side(classes: list[list[int]], seed: int, order: int) -> None:
    classes[0] = [1, 1, 1, *classes[0]]  # Enough for three sides.
    rows = [
        (f"c{k}", f"c{k}g{g}")
        for k, groups in enumerate(classes)
        for g, count in enumerate(groups)
        for _ in range(count)
    ]
    files = make_split(table(rows), seed=seed)
    assert all(len(found) == 1 for found in sides_by(files, files.groups).values())
    for label, found in sides_by(files, files.labels).items():
        groups = len(classes[int(str(label))])
        expected = [{"train"}, {"train", "test"}, set(SIDES)][min(groups, 3) - 1]
        assert found == expected
    # The order of the files on disk does not matter.
    shuffled = list(range(len(rows)))
    random.Random(order).shuffle(shuffled)
    again = make_split(table(rows).take(shuffled), seed=seed)
    assert dict(zip(again.names, again.splits, strict=True)) == dict(
        zip(files.names, files.splits, strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=12, max_size=60),
    st.lists(st.integers(0, 11), max_size=6),
    st.integers(0, 3),
)
def test_groups_and_copies_stay_together(
    drawn: list[tuple[int, int]], copied: list[int], seed: int
) -> None:
    rows = [(f"c{k}", f"g{g}") for k, g in drawn] + [("c0", f"h{n}") for n in range(3)]
    contents = list(range(len(rows)))
    for index in copied:
        contents[index] = contents[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "find_copies", lambda paths: contents[: len(paths)])
        files = make_split(table(rows), seed=seed)
    assert all(len(found) == 1 for found in sides_by(files, files.groups).values())
    assert all(len(found) == 1 for found in sides_by(files, tuple(contents)).values())
    assert set(files.splits) == set(SIDES)


def test_shares_are_kept_in_each_class() -> None:
    files = make_split(table([(name, "") for name in "ab" for _ in range(100)]))
    for label in (0, 1):
        counts = [
            sum(pair == (label, side) for pair in zip(files.labels, files.splits, strict=True))
            for side in SIDES
        ]
        assert counts == [65, 15, 20]
    seeds = {
        make_split(table([(n, "") for n in "ab" for _ in range(10)]), seed=s).splits
        for s in range(4)
    }
    assert len(seeds) > 1


def test_missing_splits_are_cut_from_train() -> None:
    given_splits = ("train",) * 16 + ("test",) * 4
    files = make_split(table([(name, "") for name in "ab" * 10], given_splits))
    assert files.splits[16:] == ("test",) * 4
    assert set(files.splits[:16]) == {"train", "validation"}
    given_splits = ("train",) * 16 + ("validation",) * 4
    files = make_split(table([(name, "") for name in "ab" * 10], given_splits))
    assert set(files.splits[:16]) == {"train", "test"}
    with pytest.raises(ValueError, match="expected training files, received those of test"):
        make_split(table([("a", ""), ("b", "")], ("test", "test")))


def test_folds_test_each_file_once() -> None:
    rows = [(name, f"g{number % 5}") for name in "abc" for number in range(15)]
    tested: list[str] = []
    for fold in range(1, 6):
        files = make_split(table(rows), fold=fold, num_folds=5)
        assert all(len(found) == 1 for found in sides_by(files, files.groups).values())
        tested += [n for n, split in zip(files.names, files.splits, strict=True) if split == "test"]
    assert sorted(tested) == sorted(table(rows).names)
    with pytest.raises(ValueError, match="expected 1 to num_folds = 5"):
        make_split(table(rows), fold=6, num_folds=5)
    with pytest.raises(ValueError, match="at most the number of groups"):
        make_split(table(rows), fold=7, num_folds=10)


def test_copies_across_given_splits_are_left_out_of_train(tmp_path: Path) -> None:
    for name, text in (
        ("train/A/1.mp4", "same"),
        ("train/A/2.mp4", "other"),
        ("train/B/3.mp4", "three"),
        ("val/B/4.mp4", "four"),
        ("test/A/5.mp4", "same"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    files = make_split(read_labelled_files(tmp_path))
    assert "train/A/1.mp4" not in files.names
    assert "test/A/5.mp4" in files.names
    assert any("1 files have the content of one on another side" in note for note in files.notes)


def test_copies_in_two_classes_are_noted(tmp_path: Path) -> None:
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        for k in range(4):
            (tmp_path / name / f"{k}.mp4").write_text(f"{name}{k}" if k else "same")
    found = make_split(read_labelled_files(tmp_path))
    assert "1 contents stand in several classes: A/0.mp4 = B/0.mp4" in found.notes
    assert found.splits[0] == found.splits[4]


def test_find_copies(tmp_path: Path) -> None:
    for name, text in (("a", "12"), ("b", "21"), ("c", "12"), ("d", "123")):
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in "abcd"]
    assert find_copies([*paths, "/nowhere/x", "/nowhere/y"]) == [0, 1, 0, 3, 4, 5]


def test_too_few_files_and_bad_shares() -> None:
    with pytest.raises(ValueError, match="received so few that"):
        make_split(table([("a", ""), ("b", "")]))
    for shares in ((0.0, 0.2), (0.5, 0.5), (0.1, -0.1)):
        with pytest.raises(ValueError, match="validation_share, test_share"):
            make_split(table([("a", "")] * 9), validation_share=shares[0], test_share=shares[1])


def test_the_file_of_a_split(tmp_path: Path) -> None:
    for name in ("A/1, ü.mp4", "A/2.mp4", "A/3.mp4", "B/1.mp4", 'B/"2".mp4', "B/3.mp4"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    files = make_split(read_labelled_files(tmp_path / "data", group_pattern="^."))
    write_split(tmp_path / "split.csv", files)
    again = read_split_file(tmp_path / "split.csv", tmp_path / "data", files.class_names)
    for field in ("paths", "labels", "groups", "splits", "names", "class_names"):
        assert getattr(again, field) == getattr(files, field)
    # It is a list as any other, too.
    listed = read_labelled_files(tmp_path / "data", list_file=tmp_path / "split.csv")
    assert listed.splits == files.splits
    assert listed.labels == files.labels
    (tmp_path / "data" / "A" / "2.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 files are not in .*: A/2.mp4"):
        read_split_file(tmp_path / "split.csv", tmp_path / "data", files.class_names)
    with pytest.raises(ValueError, match="expected classes of the run, received B"):
        read_split_file(tmp_path / "split.csv", tmp_path / "data", ("A",))
