"""Kinetics: ten-second clips of YouTube videos, listed by CSV files.

Kay et al., 2017, arXiv:1705.06950; Kinetics-400, -600 and -700 have the same format::

    train.csv, val.csv (validate.csv), test.csv     label,youtube_id,time_start,time_end,split
    …/YOUTUBEID_000010_000020.mp4                   in folders of any depth

Videos vanish from YouTube, so some are usually missing: they are counted, named and left out.
"""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

from data.datasets.labelled_files import LabelledFiles
from data.datasets.list_file import SPLIT_NAMES
from data.datasets.listed_videos import (
    LIST_FOLDERS,
    ListedVideo,
    join_videos,
    require_one_split,
    require_root,
    videos_below,
)
from data.files import normal_name, read_text

_COLUMNS = ("youtube_id", "time_start", "time_end")
_SPLITS = {**SPLIT_NAMES, "validate": "validation"}


def read_kinetics(root: str | Path, fold: int = 1) -> LabelledFiles:
    """Reads the lists of Kinetics and finds the clips that are on disk.

    The recording group of a clip is its YouTube video. Test lists without labels are left out, and
    the clips of validation are then tested.

    Args:
        root: folder of the clips, at any depth, and of the lists, in it or in ``annotations``.
        fold: 1, as there is one split.

    Raises:
        FileNotFoundError: the root, a list or all training clips are missing.
        ValueError: a damaged line, a clip in two splits, or a class without training clips.
    """
    base = require_root(root, "Kinetics")
    require_one_split(fold, "Kinetics")
    lists = [
        path
        for folder in LIST_FOLDERS
        if (base / folder).is_dir()
        for path in sorted((base / folder).glob("*.csv"))
        if _is_list(path)
    ]
    if not lists:
        raise FileNotFoundError(
            f"root: expected lists of Kinetics, train.csv and so on with the columns label, "
            f"{', '.join(_COLUMNS)} and split, in {base} or its folder annotations; found none"
        )
    there: dict[str, str] = {}
    for file in videos_below(base):
        there.setdefault(normal_name(os.path.splitext(os.path.basename(file))[0]), file)
    videos: list[ListedVideo] = []
    unlabelled = 0
    for path in lists:
        for video in _read_list(path, there):
            if video.class_name:
                videos.append(video)
            else:
                unlabelled += 1
    notes = [f"{unlabelled} clips are listed without a label and were left out"]
    names = ", ".join(path.name for path in lists)
    return join_videos(
        videos,
        base,
        layout=f"Kinetics, {names}",
        source=f"{lists[0].parent} ({names})",
        notes=notes if unlabelled else (),
    )


def _is_list(path: Path) -> bool:
    with open(path, "rb") as file:
        header = file.readline(1000).decode("utf-8", "replace")
    return set(_COLUMNS) <= {name.strip(' "\r\n\ufeff') for name in header.split(",")}


def _read_list(path: Path, there: dict[str, str]) -> Iterator[ListedVideo]:
    of_file = next((s for name, s in _SPLITS.items() if name in path.stem.lower()), "")
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    for row in reader:
        try:
            start, end = (int(float(row[name])) for name in _COLUMNS[1:])
            split = _SPLITS[row["split"].strip().lower()] if row.get("split") else of_file
        except (TypeError, ValueError, KeyError):
            split = ""
        video = (row.get("youtube_id") or "").strip()
        if not split or not video:
            raise ValueError(
                f"{path}: expected a YouTube id, times in seconds and the split train, validate or "
                f"test in line {reader.line_num}, received "
                f"{','.join(str(value) for value in row.values())[:60]!r}"
            )
        name = f"{video}_{start:06d}_{end:06d}"
        label = normal_name((row.get("label") or "").strip())
        yield ListedVideo(name, there.get(normal_name(name), ""), label, split, video)
