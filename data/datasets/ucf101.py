"""UCF101's format: videos in class folders, with lists of classes and splits.

Soomro et al., 2012, arXiv:1212.0402. Other data sets use the format, too, such as UT-Interaction
in its common split::

    VIDEOS/CLASS/NAME.avi
    LISTS/classInd.txt       "1 ApplyEyeMakeup"
    LISTS/trainlist01.txt    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"
    LISTS/testlist01.txt     "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.files import find_files, normal_name, read_lines
from data.loader import describe_examples

SPLITS = ("train", "validation", "test")
UCF101_GROUP = r"_g(\d+)_c\d+"
UT_INTERACTION_GROUP = r"^\d+_(\d+)_\d+"
"""Regular expressions whose first group is the recording group in a file's name."""

_VIDEO_FOLDERS = ("UCF-101", "videos")
LIST_FOLDERS = ("ucfTrainTestlist", "splits")
_FOREIGN_FOLDERS = (
    "__MACOSX",
    "@eaDir",
    "lost+found",
)  # of archives made on macOS, of file servers


@dataclass(frozen=True)
class VideoList:
    """One split: video files with their labels.

    Attributes:
        paths: the files.
        labels: class indices >= 0.
        groups: recording group (same people and place) of each file; "" if its name has none.
        class_names: name of each class.
        names: path of each file, relative to the folder of the class folders.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]
    class_names: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the list, wherever it lies, for JSON: classes and digests."""
        labels = [self.class_names[label] for label in self.labels]
        return {
            "class_names": list(self.class_names),
            **describe_examples(self.names, labels),
        }


def read_split(
    root: str | Path,
    split: str,
    fold: int = 1,
    *,
    validation_groups: Collection[str] = (),
    group_pattern: str = UCF101_GROUP,
    videos: str | Path | None = None,
    lists: str | Path | None = None,
) -> VideoList:
    """Reads one split of a data set in UCF101's format.

    The clips of a group show the same people at the same place, so whole groups of the train list
    are held out for validation, never single clips, and no group may be in both lists.

    Args:
        root: the data set's folder.
        split: "train", "validation" or "test".
        fold: number of the lists, from 1 on.
        validation_groups: groups of the train list that form the split "validation".
        group_pattern: regular expression whose first group is the recording group in a file's name.
        videos: folder of the class folders, relative to ``root``; None takes "UCF-101" or "videos".
        lists: folder of the lists, relative to ``root``; None takes "ucfTrainTestlist" or "splits".

    Returns:
        The videos of the split, in the list's order. Class names are in Unicode's composed form
        (NFC); on disk and in the lists they may be decomposed.

    Raises:
        FileNotFoundError: a folder, a list or a listed file is missing.
        ValueError: ``split``, ``fold`` or a member of ``validation_groups`` does not exist, class
            list, class folders and split list disagree, a group is in both lists, a class has no
            training video, or a list is not in UTF-8.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, received {split!r}")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: expected the folder of a data set in UCF101's format")
    video_folder = _folder(Path(root), videos, _VIDEO_FOLDERS, "the class folders with the videos")
    list_folder = _folder(Path(root), lists, LIST_FOLDERS, "classInd.txt and the lists of splits")
    class_names = _read_classes(list_folder / "classInd.txt")
    _check_folders(class_names, video_folder, list_folder)

    path = _list_path(list_folder, "test" if split == "test" else "train", fold)
    names, labels = _read_list(path, class_names)
    paths = find_files(video_folder / name for name in names)
    missing = [name for name, found in zip(names, paths, strict=True) if found is None]
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(names)} files are not in {video_folder}: "
            + _some(missing)
        )
    groups = _find_groups(names, group_pattern)
    _check_sides(path, list_folder, split, names, group_pattern, class_names)
    keep = np.ones(len(names), bool)
    if split != "test":
        keep = _held_out(path, groups, set(validation_groups), split, group_pattern)
    chosen = np.flatnonzero(keep)
    return VideoList(
        paths=tuple(str(paths[i]) for i in chosen),
        labels=tuple(labels[i] for i in chosen),
        groups=tuple(groups[i] for i in chosen),
        class_names=class_names,
        names=tuple(names[i] for i in chosen),
    )


def check_groups(source: str, groups: Sequence[str], splits: Sequence[str]) -> None:
    """Raises ValueError if a recording group is in several splits: its people would be known.

    Args:
        source: the lists, for the error.
        groups: recording group of each file; "" if unknown.
        splits: split of each file.
    """
    sides: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        sides.setdefault(group, set()).add(split)
    divided = sorted(group for group, found in sides.items() if group and len(found) > 1)
    if divided:
        found = sorted({split for group in divided for split in sides[group]})
        raise ValueError(
            f"{source}: expected each recording group in one split, received {len(divided)} in "
            f"{' and '.join(found)}: group {_some(divided)}; move all files of a group to one "
            "side, or, if groups of several classes share a number, give a group_pattern that "
            "finds the class, too"
        )


def check_classes(source: str, trained: Iterable[str], class_names: Sequence[str]) -> None:
    """Raises ValueError if a class has no training files.

    Args:
        source: the list, for the error.
        trained: class of each training file.
        class_names: all classes.
    """
    there = set(trained)
    if missing := [name for name in class_names if name not in there]:
        raise ValueError(
            f"{source}: expected training files of each of {len(class_names)} classes, received "
            f"none of {len(missing)}: {_some(missing)}"
        )


def _check_sides(
    path: Path,
    list_folder: Path,
    split: str,
    names: Sequence[str],
    pattern: str,
    class_names: Sequence[str],
) -> None:
    """Checks the groups of both lists of a fold, and that each class is trained."""
    own, opposite = ("test", "train") if split == "test" else ("train", "test")
    other = list_folder / path.name.replace(own, opposite, 1)
    if not other.is_file():
        return
    # A damaged line is an error of the split that reads it.
    others = [re.sub(r"\s+\d{1,9}$", "", line) for _, line in read_lines(other)]
    check_groups(
        f"{path} and {other.name}",
        [*_find_groups(names, pattern), *_find_groups(others, pattern)],
        [own] * len(names) + [opposite] * len(others),
    )
    train, trained = (path, names) if own == "train" else (other, others)
    folders = {normal_name(name.split("/")[0]) for name in trained}
    check_classes(str(train), folders, class_names)


def _find_groups(names: Sequence[str], pattern: str) -> list[str]:
    matches = [re.search(pattern, Path(name).stem) for name in names]
    return [match[1] if match else "" for match in matches]


def _folder(root: Path, given: str | Path | None, usual: Sequence[str], what: str) -> Path:
    candidates = [root / name for name in ([given] if given is not None else usual)]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"{root}: expected {what} in {' or '.join(str(path) for path in candidates)}"
    )


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise FileNotFoundError(f'{path}: expected the list of classes, lines like "1 Archery"')
    names: list[str] = []
    for line_number, line in read_lines(path):
        number, *name = normal_name(line).split(maxsplit=1)
        if number != str(len(names) + 1) or not name:
            raise ValueError(
                f'{path}: expected lines numbered from 1 on, such as "{len(names) + 1} CLASS" in '
                f"line {line_number}, received {line[:60]!r}"
            )
        if name[0] in names:
            raise ValueError(
                f"{path}: expected a name of its own in each line, received {name[0]!r} again in "
                f"line {line_number}"
            )
        names += name
    if not names:
        raise ValueError(f"{path}: expected lines numbered from 1 on, received an empty file")
    return tuple(names)


def _check_folders(class_names: Sequence[str], video_folder: Path, list_folder: Path) -> None:
    folders = {
        normal_name(path.name)
        for path in video_folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in _FOREIGN_FOLDERS
    }
    listed = set(class_names)
    if folders != listed:
        raise ValueError(
            f"classes disagree: only in {list_folder / 'classInd.txt'}: "
            f"{_some(sorted(listed - folders))}; only folders of {video_folder}: "
            f"{_some(sorted(folders - listed))}"
        )


def _list_path(list_folder: Path, kind: str, fold: int) -> Path:
    path = list_folder / f"{kind}list{fold:02d}.txt"
    if not path.is_file():
        there = sorted(list_folder.glob(f"{kind}list*.txt"))
        folds = [match[0] for p in there if (match := re.search(r"\d+", p.stem))]
        raise ValueError(
            f"fold: no {path}, received {fold}, there are folds: {', '.join(folds) or 'none'}"
        )
    return path


def _read_list(path: Path, class_names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Returns file names and labels >= 0; a label in the list must agree with the class folder."""
    number = {name: label for label, name in enumerate(class_names)}
    names, labels, wrong = [], [], []
    for line_number, line in read_lines(path):
        *first, last = line.rsplit(maxsplit=1)
        is_labelled = bool(first) and last.isdecimal() and len(last) < 10
        name, listed = (first[0], int(last)) if is_labelled else (line, None)
        label = number.get(normal_name(name.split("/")[0]))
        if label is None:
            wrong.append(f"line {line_number}: {name} (no such class)")
        elif listed not in (None, label + 1):
            wrong.append(
                f"line {line_number}: {name} ({listed}, but classInd.txt says {label + 1})"
            )
        else:
            names.append(name)
            labels.append(label)
    if wrong:
        raise ValueError(f"{path}: {len(wrong)} lines disagree with classInd.txt: {_some(wrong)}")
    if not names:
        raise ValueError(f"{path}: expected files, received an empty list")
    return names, labels


def _held_out(
    path: Path, groups: Sequence[str], held_out: set[str], split: str, pattern: str
) -> np.ndarray:
    if held_out and "" in groups:
        raise ValueError(f"{path}: group_pattern {pattern!r} does not fit all names")
    if unknown := held_out - set(groups):
        raise ValueError(
            f"validation_groups: {_some(sorted(unknown))} not in {path}, which has "
            f"{', '.join(sorted(set(groups)))}; expected some of these"
        )
    in_validation = np.asarray([group in held_out for group in groups], bool)
    keep = in_validation if split == "validation" else ~in_validation
    if not keep.any():
        raise ValueError(
            f"validation_groups: {sorted(held_out)} leave nothing of {path} for {split}"
        )
    return keep


def _some(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:3])
    return (shown + (", ..." if len(items) > 3 else "")) or "none"
