"""HMDB51: clips of movies in class folders, and files of three splits with a mark for each clip.

Kuehne et al., 2011, "HMDB: a large video database for human motion recognition"::

    hmdb51_org/CLASS/NAME.avi
    testTrainMulti_7030_splits/CLASS_test_split1.txt     "NAME.avi 1": 0 unused, 1 train, 2 test

A name is SOURCE_CLASS_PROPERTIES_NUMBER; clips of one source and class are a recording group.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from data.datasets.labelled_files import LabelledFiles
from data.datasets.list_file import some
from data.datasets.listed_videos import (
    ListedVideo,
    class_folders,
    entries_by_stem,
    find_folder,
    join_videos,
    require_root,
)
from data.files import normal_name, read_lines

VIDEO_FOLDERS = ("hmdb51_org", "videos", "hmdb51", "HMDB51")
LIST_FOLDERS = (
    *("testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits"),
    *("test_train_splits", "splits"),
)
_MARKS = {"0": "", "1": "train", "2": "test"}
_SPLIT_FILE = re.compile(r"(.+)_test_split(\d+)\.txt")


def read_hmdb51(root: str | Path, fold: int = 1) -> LabelledFiles:
    """Reads one of the three splits of HMDB51, 70 training and 30 test clips of each class.

    Args:
        root: folder of ``hmdb51_org`` (or ``videos``) and ``testTrainMulti_7030_splits`` (or
            ``splits``).
        fold: number of the split, from 1 on.

    Raises:
        FileNotFoundError: the root, a folder in it, or a listed clip does not exist.
        ValueError: no such fold, split files of other classes than the folders', a damaged line, or
            a class without training clips.
    """
    return read_marked_splits(root, fold, "HMDB51", VIDEO_FOLDERS, LIST_FOLDERS)


def read_marked_splits(
    root: str | Path, fold: int, what: str, video_folders: Sequence[str], lists: Sequence[str]
) -> LabelledFiles:
    """Reads class folders with split files ``CLASS_test_splitN.txt``, as ``read_hmdb51``.

    Args:
        root: the data set's folder.
        fold: number of the split, from 1 on.
        what: name of the data set.
        video_folders: folders of the class folders that are looked for, relative to ``root``; in a
            class folder a clip is a file, or a folder of frames of the same name.
        lists: likewise of the split files.
    """
    base = require_root(root, what)
    folder = find_folder(base, video_folders, "the class folders with the clips")
    list_folder = find_folder(base, lists, "the split files CLASS_test_split1.txt")
    listed = {
        match[1]: path
        for path in sorted(list_folder.iterdir())
        if (match := _SPLIT_FILE.fullmatch(normal_name(path.name))) and int(match[2]) == fold
    }
    if not listed:
        matches = [_SPLIT_FILE.fullmatch(path.name) for path in list_folder.iterdir()]
        folds = sorted({int(match[2]) for match in matches if match})
        raise ValueError(
            f"fold: expected a split of {list_folder}, "
            f"{', '.join(map(str, folds)) or 'which has none'}, received {fold}"
        )
    folders = class_folders(folder)
    if set(folders) != set(listed):
        raise ValueError(
            f"{list_folder}: expected split files of the classes in {folder}, received files of "
            f"{some(sorted(set(listed) - set(folders))) or 'no'} other classes and none of "
            f"{some(sorted(set(folders) - set(listed))) or 'none'}; are they of another data set?"
        )
    videos: list[ListedVideo] = []
    for class_name, path in listed.items():
        there = entries_by_stem(folder / class_name)
        videos += _read_marks(path, class_name, there)
    if missing := [video.name for video in videos if not video.path]:
        raise FileNotFoundError(
            f"{list_folder}: {len(missing)} of {len(videos)} clips are not in {folder}: "
            f"{some(missing)}; are the split files of another data set?"
        )
    return join_videos(
        videos,
        base,
        layout=f"{what}, split {fold}",
        source=str(list_folder),
        class_names=tuple(folders),
    )


def _read_marks(path: Path, class_name: str, there: dict[str, str]) -> list[ListedVideo]:
    videos = []
    for number, line in read_lines(path):
        *first, mark = line.rsplit(maxsplit=1)
        if not first or mark not in _MARKS:
            raise ValueError(
                f"{path}: expected 'NAME.avi 1', the mark 0 (unused), 1 (train) or 2 (test), in "
                f"line {number}, received {line[:60]!r}"
            )
        name = normal_name(first[0])
        stem = os.path.splitext(name)[0]
        source, _, _ = stem.rpartition(f"_{class_name}_")
        if _MARKS[mark]:
            videos.append(
                ListedVideo(
                    f"{class_name}/{name}",
                    there.get(stem, ""),
                    class_name,
                    _MARKS[mark],
                    f"{source}_{class_name}" if source else "",
                )
            )
    return videos
