"""Splits of labelled files into train, validation and test, and the file that keeps them.

A split is made of *units*, which are never divided: the files of one recording group, and files
with the same content. Classes are kept in proportion as far as the units allow.
"""

import csv
import io
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.datasets.labelled_files import LabelledFiles
from data.datasets.list_file import read_list, some
from data.features import digest_file
from data.files import file_size, find_files, write_atomically

COLUMNS = ("path", "label", "group", "split")
"""Columns of the file of a split, a list that ``data.datasets.list_file`` reads."""

_ORDER = ("train", "test", "validation")
"""The sides in the order in which a class with fewer units than sides gets them."""


def make_split(
    files: LabelledFiles,
    *,
    seed: int = 0,
    validation_share: float = 0.15,
    test_share: float = 0.2,
    fold: int = 0,
    num_folds: int = 10,
) -> LabelledFiles:
    """Completes the splits of files; keeps those that the data have.

    Data without splits get all three. Where the data have a train split but no validation or test
    split, that one is cut from the train split. A class with three units or more is on every side,
    as long as no unit holds several classes; one with two is in train and test, with one in train.

    With ``fold`` the files but those of a given test split are cut into ``num_folds`` parts: part
    ``fold`` is the test split, the next one (cyclically) validation, the others train.

    The result depends on the names, labels, groups and contents of the files, not on their order.

    Args:
        files: the files.
        seed: of the draw, >= 0.
        validation_share: share of the files for validation, in (0,1).
        test_share: share of the files for the test, in [0,1); 0 cuts no test split. The rest
            trains.
        fold: fold of a cross-validation, from 1; 0: none.
        num_folds: number of parts, at least 3.

    Returns:
        The files with a split each, in their order, and notes about what was done. Where the data's
        own splits hold one content on two sides, the copy in train, or else in validation, is left
        out.

    Raises:
        ValueError: shares or folds out of range, data with a validation or test split but without
            train, or too few groups.
    """
    if validation_share <= 0 or test_share < 0 or validation_share + test_share >= 1:
        raise ValueError(
            "validation_share, test_share: expected shares above 0, the second one or 0, whose sum "
            f"is below 1, received {validation_share} and {test_share}"
        )
    if num_folds < 3:
        raise ValueError(f"num_folds: expected at least 3, received {num_folds}")
    if not 0 <= fold <= num_folds:
        raise ValueError(f"fold: expected 1 to num_folds = {num_folds}, or 0, received {fold}")
    given = {split for split in files.splits if split}
    if given and "train" not in given:
        raise ValueError(
            f"split: expected training files, received those of {' and '.join(sorted(given))} alone"
        )
    contents = find_copies(files.paths)
    files, notes = _without_leaks(files, contents)
    contents = find_copies(files.paths) if notes else contents
    notes += _note_contradictions(files, contents)
    if fold:
        notes += _fold_notes(given, fold, num_folds)
        kept = [i for i, split in enumerate(files.splits) if split != "test" or not given]
        files, contents = files.take(kept), [contents[i] for i in kept]
        sides = _assign(files, contents, (1 / num_folds,) * num_folds, seed)
        roles = {fold - 1: "test", fold % num_folds: "validation"}
        splits = [roles.get(side, "train") for side in sides]
        if len(set(splits)) < 3:
            raise ValueError(
                f"num_folds: expected at most the number of groups, received {num_folds} folds of "
                f"{len(files)} files"
            )
        return _with_splits(files, splits, notes)
    shares = {"validation": validation_share, "test": test_share}
    missing = {name: share for name, share in shares.items() if share and name not in given}
    if not missing:
        return _with_splits(files, list(files.splits), notes)
    pool = [i for i, split in enumerate(files.splits) if split in ("", "train")]
    names = [name for name in _ORDER if name == "train" or name in missing]
    parts = [1 - sum(missing.values()), *(missing[name] for name in names[1:])]
    found = _assign(files.take(pool), [contents[i] for i in pool], parts, seed)
    splits = list(files.splits)
    for index, side in zip(pool, found, strict=True):
        splits[index] = names[side]
    if absent := set(names) - {splits[index] for index in pool}:
        raise ValueError(
            f"split: expected enough groups of files for {', '.join(names)}, received so few that "
            f"{' and '.join(sorted(absent))} would be empty; give more files, or a list with a "
            "column of splits"
        )
    cut = " and ".join(sorted(missing))
    by = ["group"] * any(files.groups) + ["class"] * (len(files.class_names) > 1)
    what = f"{cut} cut from train" if given else "made"
    notes += (f"split {what}{' by ' if by else ''}{' and '.join(by)}, seed {seed}",)
    return _with_splits(files, splits, notes)


def find_copies(paths: Sequence[str]) -> list[int]:
    """Returns a number for each file, equal for files of the same content.

    Only files of the same size are read. A file that cannot be read equals no other, nor does a
    folder of frames.
    """
    sizes: dict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        try:
            if not os.path.isdir(path):
                sizes[file_size(path)].append(index)
        except OSError:
            continue
    numbers = list(range(len(paths)))
    for indices in sizes.values():
        if len(indices) == 1:
            continue
        first: dict[str, int] = {}
        for index in indices:
            try:
                digest = digest_file(paths[index])
            except OSError:
                continue
            numbers[index] = first.setdefault(digest, index)
    return numbers


def write_split(path: str | os.PathLike[str], files: LabelledFiles) -> None:
    """Writes a split as CSV with the columns ``path``, ``label``, ``group`` and ``split``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in zip(files.names, files.labels, files.groups, files.splits, strict=True):
        name, label, group, split = row
        writer.writerow((name, files.class_names[label], group, split))
    write_atomically(path, lambda place: place.write_text(text.getvalue(), encoding="utf-8"))


def read_split_file(
    path: str | os.PathLike[str], root: str | os.PathLike[str], class_names: Sequence[str]
) -> LabelledFiles:
    """Reads what ``write_split`` wrote.

    Args:
        path: the file.
        root: folder to which its paths are relative.
        class_names: names of the classes, by label.

    Raises:
        FileNotFoundError: a listed file is not there.
        ValueError: a damaged file, or a label that is no class.
    """
    rows = read_list(path, ())
    label = {name: number for number, name in enumerate(class_names)}
    if unknown := sorted({row.label for row in rows} - set(label)):
        raise ValueError(f"{path}: expected classes of the run, received {some(unknown)}")
    found = find_files((Path(root) / row.path for row in rows), folders=True)
    missing = [row.path for row, file in zip(rows, found, strict=True) if file is None]
    if missing:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(rows)} files are not in {root}: {some(missing)}"
        )
    return LabelledFiles(
        paths=tuple(str(file) for file in found),
        labels=tuple(label[row.label] for row in rows),
        groups=tuple(row.group for row in rows),
        splits=tuple(row.split for row in rows),
        class_names=tuple(class_names),
        names=tuple(row.path for row in rows),
        layout=f"split of {path}",
    )


def _with_splits(files: LabelledFiles, splits: list[str], notes: tuple[str, ...]) -> LabelledFiles:
    """Returns the files with their splits and a note on classes that a side lacks."""
    there = {(label, split) for label, split in zip(files.labels, splits, strict=True)}
    for split in ("train", "validation", "test"):
        if split not in splits:
            continue
        lacking = [
            files.class_names[label] for label in set(files.labels) if (label, split) not in there
        ]
        if lacking:
            notes += (f"{split} has no file of {len(lacking)} classes: {some(sorted(lacking))}",)
    sides: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(files.groups, splits, strict=True):
        sides[group].add(split)
    if divided := sorted(group for group, found in sides.items() if group and len(found) > 1):
        notes += (
            f"the data's own splits have {len(divided)} groups on two sides: {some(divided)}",
        )
    return replace(files, splits=tuple(splits), notes=(*files.notes, *notes))


def _without_leaks(
    files: LabelledFiles, contents: Sequence[int]
) -> tuple[LabelledFiles, tuple[str, ...]]:
    """Leaves out copies of what another side of the given splits holds, and says so."""
    sides: dict[int, set[str]] = defaultdict(set)
    for content, split in zip(contents, files.splits, strict=True):
        sides[content].add(split)
    left_out = []
    for index, (content, split) in enumerate(zip(contents, files.splits, strict=True)):
        others = sides[content] - {split}
        if (split == "train" and others) or (split == "validation" and "test" in others):
            left_out.append(index)
    if not left_out:
        return files, ()
    names = [files.names[index] for index in left_out]
    kept = sorted(set(range(len(files))) - set(left_out))
    note = (
        f"{len(left_out)} files have the content of one on another side of the given splits and "
        f"were left out: {some(names)}"
    )
    return files.take(kept), (note,)


def _note_contradictions(files: LabelledFiles, contents: Sequence[int]) -> tuple[str, ...]:
    """Returns a note on contents that stand under several classes."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, content in enumerate(contents):
        members[content].append(index)
    found = [
        " = ".join(files.names[i] for i in indices)
        for indices in members.values()
        if len({files.labels[i] for i in indices}) > 1
    ]
    return (f"{len(found)} contents stand in several classes: {some(found)}",) if found else ()


def _fold_notes(given: set[str], fold: int, num_folds: int) -> tuple[str, ...]:
    kept = "; the given test split stays out" if "test" in given else ""
    return (f"split made by cross-validation, fold {fold} of {num_folds}{kept}",)


def _units(files: LabelledFiles, contents: Sequence[int]) -> list[list[int]]:
    """Returns the positions of each unit's files: joined by a group or by a content."""
    parent = list(range(len(files)))

    def top(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str | int], int] = {}
    for index, (group, content) in enumerate(zip(files.groups, contents, strict=True)):
        keys: list[tuple[str, str | int]] = [("content", content)]
        if group:
            keys.append(("group", group))
        for key in keys:
            parent[top(index)] = top(first.setdefault(key, index))
    units: dict[int, list[int]] = defaultdict(list)
    for index in range(len(files)):
        units[top(index)].append(index)
    return list(units.values())


def _assign(
    files: LabelledFiles, contents: Sequence[int], shares: Sequence[float], seed: int
) -> list[int]:
    """Returns the side of each file, 0..len(shares) - 1, near to the shares in every class.

    Iterative stratification (Sechidis et al., 2011): classes with few units first, in each class
    large units first, each to the side that lacks most of the unit's classes. A class with no more
    units left than sides without it fills these sides.
    """
    units = sorted(_units(files, contents), key=lambda unit: min(files.names[i] for i in unit))
    rng = np.random.default_rng(seed)
    units = [units[k] for k in rng.permutation(len(units))]
    classes = [Counter(files.class_names[files.labels[i]] for i in unit) for unit in units]
    of_class: dict[str, list[int]] = defaultdict(list)
    for unit, counts in enumerate(classes):
        for name in counts:
            of_class[name].append(unit)
    lacks = {
        name: [share * sum(classes[unit][name] for unit in members) for share in shares]
        for name, members in of_class.items()
    }
    holds = {name: [0] * len(shares) for name in of_class}  # units
    sizes = [0] * len(shares)  # files
    equal = len(set(shares)) == 1
    sides: dict[int, int] = {}
    for name in sorted(of_class, key=lambda name: (len(of_class[name]), name)):
        waiting = [unit for unit in of_class[name] if unit not in sides]
        waiting.sort(key=lambda unit: -classes[unit][name])
        for position, unit in enumerate(waiting):
            empty = [side for side, count in enumerate(holds[name]) if not count]
            remaining = len(waiting) - position
            candidates = empty if 0 < remaining <= len(empty) else list(range(len(shares)))
            if remaining < len(empty) and not equal:
                side = empty[0]
            else:

                def gain(side: int, unit: int = unit) -> tuple[float, int, int]:
                    needed = sum(n * lacks[label][side] for label, n in classes[unit].items())
                    return (round(needed, 9), -sizes[side], -side)

                side = max(candidates, key=gain)
            sides[unit] = side
            for label, count in classes[unit].items():
                lacks[label][side] -= count
                holds[label][side] += 1
            sizes[side] += len(units[unit])
    result = [0] * len(files)
    for unit, side in sides.items():
        for index in units[unit]:
            result[index] = side
    return result
