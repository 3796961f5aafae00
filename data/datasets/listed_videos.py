"""Videos that the lists of a published data set name: found on disk, checked, and counted.

The readers of HMDB51, JHMDB, Kinetics, Something-Something and Jester share it.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.datasets.labelled_files import FOREIGN, VIDEO_ENDINGS, LabelledFiles
from data.datasets.list_file import some
from data.datasets.ucf101 import check_classes
from data.files import normal_name

LIST_FOLDERS = ("", "labels", "annotations", "annotation")
"""Folders of the lists, relative to the root."""


@dataclass(frozen=True)
class ListedVideo:
    """One line of a list.

    Attributes:
        name: of the video in the list.
        path: the file or folder of frames; "" if there is none.
        class_name: name of its class.
        split: "train", "validation" or "test".
        group: recording group; "" if unknown.
    """

    name: str
    path: str
    class_name: str
    split: str
    group: str = ""


def join_videos(
    videos: Iterable[ListedVideo],
    root: Path,
    *,
    layout: str,
    source: str,
    class_names: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> LabelledFiles:
    """Returns listed videos as labelled files; those that are not on disk are counted and named.

    Where no test videos are listed, those of validation are tested, as papers on such data sets do.

    Args:
        videos: the lines of all lists.
        root: the data set's folder, to which names are relative.
        layout: the data set in words.
        source: its lists, for errors.
        class_names: all classes, by label; empty: those of the videos, sorted.
        notes: of the reader.

    Raises:
        FileNotFoundError: no listed video, or none of training, is on disk.
        ValueError: a video is listed twice with different classes or splits, a class is none of
            ``class_names``, or a class has test videos, but none of training.
    """
    found: dict[str, ListedVideo] = {}
    for video in videos:
        known = found.setdefault(video.name, video)
        if (known.class_name, known.split) != (video.class_name, video.split):
            raise ValueError(
                f"{source}: expected each video once, received {video.name} as "
                f"{known.class_name!r} of {known.split} and as {video.class_name!r} of "
                f"{video.split}"
            )
    names = tuple(class_names) or tuple(sorted({v.class_name for v in found.values()}))
    label = {name: number for number, name in enumerate(names)}
    if strange := sorted({v.class_name for v in found.values()} - set(label)):
        raise ValueError(
            f"{source}: expected labels among the {len(label)} classes, received "
            f"{len(strange)} others: {some(strange)}; are the lists of another data set?"
        )
    there, missing = [], []
    for video in found.values():
        if video.path and not _is_empty(video.path):
            there.append(video)
        else:
            missing.append(video.name)
    if not any(video.split == "train" for video in there):
        count = sum(video.split == "train" for video in found.values())
        raise FileNotFoundError(
            f"{source}: expected the listed videos below {root}, received none of {count} "
            f"training videos, as {some(missing)}; are the lists of another data set?"
        )
    said = list(notes)
    if missing:
        said.append(
            f"{len(missing)} of {len(found)} listed videos are missing or empty and were left "
            f"out: {some(missing)}"
        )
    present = {video.class_name for video in there}
    if absent := [name for name in names if name not in present]:
        said.append(
            f"{len(absent)} of {len(names)} classes have no video and were left out: {some(absent)}"
        )
        names = tuple(name for name in names if name in present)
        label = {name: number for number, name in enumerate(names)}
    trained = [video.class_name for video in there if video.split == "train"]
    check_classes(f"{source} and the files in {root}" if missing else source, trained, names)
    splits = [video.split for video in there]
    if "test" not in splits and "validation" in splits:
        splits = ["test" if split == "validation" else split for split in splits]
        said.append("no labels of test videos, so the validation videos are tested")
    return LabelledFiles(
        paths=tuple(video.path for video in there),
        labels=tuple(label[video.class_name] for video in there),
        groups=tuple(video.group for video in there),
        splits=tuple(splits),
        class_names=names,
        names=tuple(normal_name(Path(os.path.relpath(v.path, root)).as_posix()) for v in there),
        layout=layout,
        official_folds=True,
        notes=tuple(said),
    )


def require_root(root: str | Path, what: str) -> Path:
    """Returns the folder of a data set; raises FileNotFoundError where there is none."""
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"root: expected the folder of {what}, received {root}, which "
            + ("is a file" if folder.is_file() else "does not exist")
        )
    return folder


def find_folder(root: Path, usual: Sequence[str], what: str) -> Path:
    """Returns the first of some folders that exists; raises FileNotFoundError where none does."""
    for name in usual:
        if (root / name).is_dir():
            return root / name
    listed = " or ".join(name or str(root) for name in usual)
    raise FileNotFoundError(f"root: expected {what} in {root}, in the folder {listed}")


def find_list(root: Path, names: Sequence[str]) -> Path | None:
    """Returns the first file of some names in the usual folders, or None."""
    for folder in LIST_FOLDERS:
        for name in names:
            if (root / folder / name).is_file():
                return root / folder / name
    return None


def require_list(root: Path, names: Sequence[str], what: str) -> Path:
    """Returns the first file of some names; raises FileNotFoundError where there is none."""
    found = find_list(root, names)
    if found is None:
        folders = ", ".join(name for name in LIST_FOLDERS if name)
        raise FileNotFoundError(
            f"root: expected {what}, {' or '.join(names)}, in {root} or its folder {folders}; "
            "found none"
        )
    return found


def require_one_split(fold: int, what: str) -> None:
    """Raises ValueError for a fold of a data set that has one split."""
    if fold != 1:
        raise ValueError(f"fold: expected 1, as {what} has one split, received {fold}")


def entries_by_stem(folder: Path) -> dict[str, str]:
    """Returns the video files and folders in a folder by their names without ending."""
    found: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            stem, ending = os.path.splitext(entry.name)
            if entry.name.startswith(".") or entry.name in FOREIGN:
                continue
            if ending.lower() in VIDEO_ENDINGS:
                found[normal_name(stem)] = entry.path
            elif entry.is_dir():
                found.setdefault(normal_name(entry.name), entry.path)
    return found


def videos_below(root: Path) -> Iterator[str]:
    """Yields the video files below a folder, in the order of their paths."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in FOREIGN)
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_ENDINGS:
                yield os.path.join(folder, name)


def class_folders(root: Path) -> list[str]:
    """Returns the names of the folders in a folder, without hidden and foreign ones."""
    with os.scandir(root) as entries:
        return sorted(
            normal_name(entry.name)
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".") and entry.name not in FOREIGN
        )


def _is_empty(path: str) -> bool:
    return not os.path.isdir(path) and os.path.getsize(path) == 0
