"""Jester: hand gestures as folders of JPEG frames, listed by CSV files.

Materzynska et al., 2019, "The Jester dataset: a large-scale video dataset of human gestures"::

    jester-v1-labels.csv                               a label in each line
    jester-v1-train.csv, jester-v1-validation.csv      "34870;Drumming Fingers"
    20bn-jester-v1/34870/00001.jpg                     12 frames/s, 100 pixels high

The published test list has no labels; where one with labels is not there, the videos of validation
are tested.
"""

from pathlib import Path

from data.datasets.labelled_files import LabelledFiles
from data.datasets.listed_videos import (
    entries_by_stem,
    find_folder,
    find_list,
    join_videos,
    require_list,
    require_one_split,
    require_root,
)
from data.datasets.something import read_semicolons
from data.files import normal_name, read_lines

RATE = 12.0
"""Frames/s of the folders."""
FRAME_FOLDERS = ("20bn-jester-v1", "frames", "videos")
_PREFIX = "jester-v1-"


def read_jester(root: str | Path, fold: int = 1) -> LabelledFiles:
    """Reads the lists of Jester and finds its folders of frames.

    Args:
        root: folder of ``20bn-jester-v1`` (or ``frames``), with the lists in it or in ``labels``.
        fold: 1, as there is one split.

    Returns:
        The folders, under labels in the order of their list. Missing ones are noted.

    Raises:
        FileNotFoundError: the root, a list, the folder of the frames or all training videos.
        ValueError: another line, a label that is not listed, or a class without training videos.
    """
    base = require_root(root, "Jester")
    require_one_split(fold, "Jester")
    paths = {
        part: require_list(base, (f"{_PREFIX}{part}.csv", f"{part}.csv"), f"the list of {part}")
        for part in ("labels", "train", "validation")
    }
    class_names = tuple(normal_name(line) for _, line in read_lines(paths["labels"]))
    there = entries_by_stem(find_folder(base, FRAME_FOLDERS, "the folders of frames"))
    videos = [
        video
        for split in ("train", "validation")
        for video in read_semicolons(paths[split], split, there)
    ]
    usual = ("test-answers.csv", "test.csv")
    test = find_list(base, [f"{prefix}{name}" for name in usual for prefix in (_PREFIX, "")])
    if test is not None and all(";" in line.rstrip(";") for _, line in read_lines(test)):
        videos += read_semicolons(test, "test", there)
    return join_videos(
        videos,
        base,
        layout="Jester",
        source=str(paths["train"].parent),
        class_names=class_names,
    )
