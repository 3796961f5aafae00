"""Something-Something v2: short videos of actions with objects, listed by JSON files.

Goyal et al., 2017, arXiv:1706.04261. Names of the lists as first published, or as by Qualcomm:

    something-something-v2-labels.json     labels.json           {"Holding something": "0", …}
    something-something-v2-train.json      train.json            [{"id": "78687", "template":
                                                                 "Holding [something]", …}, …]
    something-something-v2-validation.json validation.json       the same
                                           test-answers.csv      "ID;Holding something"
    20bn-something-something-v2/ID.webm

A template without its brackets is a label. The published test list has no labels; where
``test-answers.csv`` is not there, the videos of validation are tested.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.datasets.labelled_files import LabelledFiles
from data.datasets.listed_videos import (
    ListedVideo,
    entries_by_stem,
    find_folder,
    find_list,
    join_videos,
    require_list,
    require_one_split,
    require_root,
)
from data.files import normal_name, read_json, read_lines

VIDEO_FOLDERS = ("20bn-something-something-v2", "videos")
_PREFIX = "something-something-v2-"


def read_something(root: str | Path, fold: int = 1) -> LabelledFiles:
    """Reads the lists of Something-Something v2 and finds its videos.

    Args:
        root: folder of ``20bn-something-something-v2`` (or ``videos``), with the lists in it or in
            ``labels``; a video may be a folder of frames.
        fold: 1, as there is one split.

    Returns:
        The videos, under labels in the order of their numbers. Missing ones are noted.

    Raises:
        FileNotFoundError: the root, a list, the folder of the videos or all training videos.
        ValueError: a list of another form, an unknown template, or a class without training videos.
    """
    base = require_root(root, "Something-Something v2")
    require_one_split(fold, "Something-Something")
    paths = {
        part: require_list(base, (f"{_PREFIX}{part}.json", f"{part}.json"), f"the list of {part}")
        for part in ("labels", "train", "validation")
    }
    class_names = _read_labels(paths["labels"])
    there = entries_by_stem(find_folder(base, VIDEO_FOLDERS, "the videos ID.webm"))
    videos = [
        video
        for split in ("train", "validation")
        for video in _read_list(paths[split], split, set(class_names), there)
    ]
    answers = find_list(base, (f"{_PREFIX}test-answers.csv", "test-answers.csv"))
    if answers is not None:
        videos += read_semicolons(answers, "test", there)
    return join_videos(
        videos,
        base,
        layout="Something-Something v2",
        source=str(paths["train"].parent),
        class_names=class_names,
    )


def read_semicolons(path: Path, split: str, there: dict[str, str]) -> Iterator[ListedVideo]:
    """Yields the videos of a list with lines ``ID;LABEL``.

    Args:
        path: the list.
        split: of its videos.
        there: videos on disk by id.

    Raises:
        ValueError: another line.
    """
    for number, line in read_lines(path):
        name, semicolon, label = line.partition(";")
        if not (name.strip() and semicolon and label.strip()):
            raise ValueError(
                f"{path}: expected 'ID;LABEL' in line {number}, received {line[:60]!r}"
            )
        name = normal_name(name.strip())
        yield ListedVideo(name, there.get(name, ""), normal_name(label.strip()), split)


def _read_labels(path: Path) -> tuple[str, ...]:
    found = read_json(path, "labels and their numbers")
    try:
        numbers = {int(number): normal_name(label) for label, number in found.items()}
    except (AttributeError, TypeError, ValueError):
        numbers = {}
    if not numbers or sorted(numbers) != list(range(len(found))):
        raise ValueError(
            f'{path}: expected labels with the numbers from 0 on, as {{"Holding something": "0"}}, '
            f"received {str(found)[:60]}"
        )
    return tuple(numbers[number] for number in sorted(numbers))


def _read_list(
    path: Path, split: str, class_names: set[str], there: dict[str, str]
) -> Iterator[ListedVideo]:
    entries: Any = read_json(path, "a list of videos")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of videos, received {type(entries).__name__}")
    for number, entry in enumerate(entries):
        try:
            name, template = str(entry["id"]), str(entry["template"])
        except (TypeError, KeyError):
            raise ValueError(
                f"{path}: expected an id and a template in entry {number}, received "
                f"{str(entry)[:60]}"
            ) from None
        label = normal_name(template.replace("[", "").replace("]", ""))
        if label not in class_names:
            raise ValueError(
                f"{path}: expected a template of the labels in entry {number}, received "
                f"{template!r}; are the lists of another data set?"
            )
        yield ListedVideo(name, there.get(normal_name(name), ""), label, split)
