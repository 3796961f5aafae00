"""UCF101's format: splits, groups, and malformed data sets."""

import unicodedata
from pathlib import Path

import pytest

from data.datasets.ucf101 import UT_INTERACTION_GROUP, read_split

UT_INTERACTION = Path(__file__).parents[3].parent / "shared/data/ut_interaction/set1"


def name(class_name: str, group: int, clip: int) -> str:
    return f"{class_name}/v_{class_name}_g{group:02d}_c{clip:02d}.avi"


@pytest.fixture
def root(tmp_path):
    """Writes three classes with groups 1..4 of two clips each; group 1 is the test of fold 1."""
    videos, lists = tmp_path / "UCF-101", tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    train, test = [], []
    for label, class_name in enumerate(["Archery", "Bowling", "Diving"], start=1):
        (videos / class_name).mkdir(parents=True)
        for group in range(1, 5):
            for clip in (1, 2):
                (videos / name(class_name, group, clip)).touch()
                if group == 1:
                    test.append(name(class_name, group, clip))
                else:
                    train.append(f"{name(class_name, group, clip)} {label}")
    (lists / "classInd.txt").write_text("1 Archery\r\n2 Bowling\r\n3 Diving\r\n")
    (lists / "trainlist01.txt").write_text("\n".join(train) + "\n\n")
    (lists / "testlist01.txt").write_text("\n".join(test) + "\n")
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_train_and_test(root):
    train, test = read_split(root, "train"), read_split(root, "test")
    assert train.class_names == ("Archery", "Bowling", "Diving")
    assert (len(train), len(test)) == (18, 6)
    assert not set(train.paths) & set(test.paths)
    for part in (train, test):
        for path, label, group in zip(part.paths, part.labels, part.groups, strict=True):
            assert Path(path).is_file()
            assert Path(path).parent.name == part.class_names[label]
            assert f"_g{group}_" in path
    assert test.labels == (0, 0, 1, 1, 2, 2)


def test_validation_is_held_out_by_groups(root):
    every = read_split(root, "train")
    train = read_split(root, "train", validation_groups=["03"])
    validation = read_split(root, "validation", validation_groups=["03"])
    assert set(validation.groups) == {"03"}
    assert set(train.groups) == {"02", "04"}
    assert sorted(train.paths + validation.paths) == sorted(every.paths)
    test = read_split(root, "test", validation_groups=["03"])
    assert test == read_split(root, "test")


def test_other_folders_and_names(root, tmp_path):
    (root / "UCF-101").rename(root / "clips")
    (root / "ucfTrainTestlist").rename(root / "lists")
    with pytest.raises(FileNotFoundError, match=r"UCF-101 or .*videos"):
        read_split(root, "train")
    part = read_split(root, "test", videos="clips", lists="lists", group_pattern=r"(\d)_c\d+$")
    assert set(part.groups) == {"1"}
    (root / "clips").rename(root / "videos")
    (root / "lists").rename(root / "splits")
    assert len(read_split(root, "train")) == 18


def test_missing_folders_and_lists(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: expected the folder"):
        read_split(root / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"classInd.txt and the lists.*elsewhere"):
        read_split(root, "train", lists="elsewhere")
    (root / "ucfTrainTestlist/classInd.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"classInd\.txt: expected the list of classes"):
        read_split(root, "train")


def test_missing_videos_are_counted_and_named(root):
    for clip in range(2, 5):
        (root / "UCF-101" / name("Bowling", clip, 1)).unlink()
    (root / "UCF-101" / name("Diving", 4, 2)).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"4 of 18 files.*g02_c01.*g03_c01.*g04_c01.*\.\.\."
    ):
        read_split(root, "train")
    assert len(read_split(root, "test")) == 6


def test_class_list_against_folders(root):
    (root / "UCF-101/Diving").rename(root / "UCF-101/Fencing")
    with pytest.raises(ValueError, match=r"only in .*classInd\.txt: Diving; .*UCF-101: Fencing"):
        read_split(root, "train")


def test_class_list_against_lists(root):
    path = root / "ucfTrainTestlist/trainlist01.txt"
    replace(path, name("Bowling", 2, 1) + " 2", name("Bowling", 2, 1) + " 3")
    replace(path, name("Diving", 2, 1), name("Dancing", 2, 1))
    with pytest.raises(
        ValueError, match=r"2 lines .*\(3, but classInd.*says 2\).*Dancing.*no such"
    ):
        read_split(root, "train")


def test_a_number_too_long_for_a_label(root):
    path = root / "ucfTrainTestlist" / "trainlist01.txt"
    path.write_text(path.read_text().rstrip() + "1" * 5000)
    with pytest.raises(FileNotFoundError, match=r"trainlist01\.txt: 1 of \d+ files are not in"):
        read_split(root, "train")


def test_class_list_that_is_no_such_list(root):
    path = root / "ucfTrainTestlist/classInd.txt"
    for text in ("", "0 Archery\n1 Bowling\n2 Diving", "Archery\nBowling", "1 Archery\n2 Archery"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"classInd\.txt: expected"):
            read_split(root, "train")


def test_unknown_split_fold_and_groups(root):
    with pytest.raises(ValueError, match=r"train, validation, test, received 'dev'"):
        read_split(root, "dev")
    with pytest.raises(ValueError, match="received 7, there are folds: 01"):
        read_split(root, "test", fold=7)
    with pytest.raises(ValueError, match=r"09 not in .*which has 02, 03, 04"):
        read_split(root, "train", validation_groups=["03", "09"])
    with pytest.raises(ValueError, match=r"leave nothing of .* for train"):
        read_split(root, "train", validation_groups=["02", "03", "04"])
    with pytest.raises(ValueError, match=r"leave nothing of .* for validation"):
        read_split(root, "validation")
    with pytest.raises(ValueError, match="does not fit all names"):
        read_split(root, "train", validation_groups=["3"], group_pattern=UT_INTERACTION_GROUP)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("gap", [" ", "\t", "  \t "])
def test_lists_as_other_programs_write_them(root, encoding, end, gap):
    expected = read_split(root, "train")
    for path in (root / "ucfTrainTestlist").iterdir():
        lines = [gap.join(line.rsplit(maxsplit=1)) for line in path.read_text().splitlines()]
        path.write_bytes(end.join(["", *lines, " ", ""]).encode(encoding))
    (root / "UCF-101/__MACOSX/Archery").mkdir(parents=True)
    (root / "UCF-101/.DS_Store").touch()
    assert read_split(root, "train") == expected


def test_a_byte_order_mark_in_the_middle_of_joined_lists(root):
    expected = read_split(root, "train")
    path = root / "ucfTrainTestlist/trainlist01.txt"
    path.write_text("".join(f"\ufeff{line}\n" for line in path.read_text().splitlines()))
    assert read_split(root, "train") == expected


def test_names_with_spaces(root):
    for old, new in ((name("Diving", 2, 1), "Diving/a dive 2.avi"),):
        (root / "UCF-101" / old).rename(root / "UCF-101" / new)
        replace(root / "ucfTrainTestlist/trainlist01.txt", f"{old} 3", f"{new}\t3")
    assert "a dive 2.avi" in {Path(path).name for path in read_split(root, "train").paths}


@pytest.mark.parametrize("forms", ["NFC NFD NFD", "NFD NFC NFC", "NFD NFD NFC", "NFC NFC NFD"])
def test_names_in_several_unicode_forms(root, forms):
    in_classes, in_list, on_disk = forms.split()
    lists = root / "ucfTrainTestlist"
    for path, form in ((lists / "classInd.txt", in_classes), (lists / "trainlist01.txt", in_list)):
        replace(path, "Diving", unicodedata.normalize(form, "Übung é"))
    for path in sorted((root / "UCF-101").rglob("*Diving*"), reverse=True):
        path.rename(
            path.with_name(path.name.replace("Diving", unicodedata.normalize(on_disk, "Übung é")))
        )
    part = read_split(root, "train")
    assert part.class_names == ("Archery", "Bowling", "Übung é")
    assert part.labels.count(2) == 6
    assert all(Path(path).is_file() for path in part.paths)


@pytest.mark.parametrize("file", ["classInd.txt", "trainlist01.txt"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        (
            "latin-1",
            r"line 1: expected text in UTF-8, received the byte 0xe9 .*iconv -f ISO-8859-1",
        ),
        ("utf-16-le", r"line 1: .* zero byte; .*iconv -f UTF-16LE -t UTF-8"),
        ("utf-16-be", r"line 1: .* zero byte; .*iconv -f UTF-16BE -t UTF-8"),
    ],
)
def test_other_encodings_are_refused_with_the_command_that_converts(root, file, encoding, message):
    path = root / "ucfTrainTestlist" / file
    path.write_bytes(path.read_text().replace("Archery", "Café").encode(encoding))
    with pytest.raises(ValueError, match=rf"{file}, {message}"):
        read_split(root, "train")


def test_errors_name_the_line(root):
    path = root / "ucfTrainTestlist/trainlist01.txt"
    path.write_text(f"\n{name('Archery', 2, 1)} 1\n{name('Archery', 2, 2)} 2\n")
    with pytest.raises(ValueError, match=r"trainlist01\.txt: 1 lines .*: line 3: .*\(2, but"):
        read_split(root, "train")
    (root / "ucfTrainTestlist/classInd.txt").write_text("1 Archery\n\n3 Bowling\n")
    with pytest.raises(ValueError, match=r'"2 CLASS" in line 3, received \'3 Bowling\''):
        read_split(root, "train")


def test_empty_list(root):
    (root / "ucfTrainTestlist/testlist01.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty list"):
        read_split(root, "test")


@pytest.mark.skipif(not UT_INTERACTION.is_dir(), reason=f"no real data in {UT_INTERACTION}")
def test_real_folds_leave_out_one_sequence():
    for fold in range(1, 11):
        held_out = str(fold % 10 + 1)
        parts = {
            split: read_split(
                UT_INTERACTION,
                split,
                fold,
                validation_groups=[held_out],
                group_pattern=UT_INTERACTION_GROUP,
            )
            for split in ("train", "validation", "test")
        }
        assert set(parts["test"].groups) == {str(fold)}
        assert set(parts["validation"].groups) == {held_out}
        assert not {str(fold), held_out} & set(parts["train"].groups)
        assert sum(len(part) for part in parts.values()) == 60
