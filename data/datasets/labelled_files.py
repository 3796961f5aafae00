"""Labelled videos, images or sounds in class folders, in lists, or in UCF101's layout.

Class folders, with or without folders of splits above them; files may lie deeper::

    ROOT/Wave/1.mp4                     ROOT/train/Wave/1.mp4
    ROOT/Clap/anna/2.MOV                ROOT/val/Clap/2.mov      (also valid, validation)
    ROOT/Wave/train/3.mp4               ROOT/test/Wave/3.avi

Where there are no video files, a folder of frames is a video: ``ROOT/Wave/1/00001.jpg`` and so on.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.datasets import ucf101
from data.datasets.list_file import (
    LABEL,
    PATH,
    SPLIT_NAMES,
    ListedFile,
    read_class_list,
    read_list,
    some,
)
from data.files import (
    check_names,
    file_size,
    find_files,
    find_stored,
    normal_name,
    read_manifest,
)
from data.loader import describe_examples

VIDEO_ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"),
    *(".ts", ".mts", ".m2ts", ".ogv", ".gif", ".mxf", ".nut", ".vob", ".asf", ".dv", ".mjpeg"),
)
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"),
)
AUDIO_ENDINGS = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".au"),
    *(".caf", ".w64", ".wv", ".amr", ".sph", ".mp4", ".webm", ".mka"),
)
"""Endings of the files that are read, in any letter case."""
ENDINGS = {"video": VIDEO_ENDINGS, "image": IMAGE_ENDINGS, "recording": AUDIO_ENDINGS}

CONVERTED_LIST, CONVERTED_CLASSES = "files.csv", "classes.txt"
"""List of the files of a converted folder (``python -m data.convert``), and of its classes."""

FOREIGN = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "__pycache__"})
"""Folders of archives made on macOS, of file servers and the like, which hold no data; nor do
hidden ones."""


@dataclass(frozen=True)
class LabelledFiles:
    """Files with their classes; equal positions of the tuples belong together.

    Attributes:
        paths: the files.
        labels: class indices >= 0.
        groups: recording group of each file (the same person, place or recording); "" if unknown.
        splits: "train", "validation" or "test" of each file; "" for all if the data have none.
        class_names: name of each class, by label.
        names: path of each file relative to the root, "/" between folders, in NFC.
        layout: how the files were found, in words.
        official_folds: True if the data come in folds of their own, as UCF101, or a list with a
            column of folds.
        notes: sentences about what was left out or looks wrong.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    layout: str = ""
    official_folds: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_splits(self) -> bool:
        """True if the data say which split each file belongs to."""
        return all(self.splits)

    def indices(self, split: str) -> list[int]:
        """Returns the positions of a split's files.

        Raises:
            ValueError: no such split.
        """
        if split not in ucf101.SPLITS:
            expected = ", ".join(ucf101.SPLITS)
            raise ValueError(f"split: expected one of {expected}, received {split!r}")
        return [index for index, name in enumerate(self.splits) if name == split]

    def take(self, indices: Sequence[int]) -> "LabelledFiles":
        """Returns the files at these positions, under the same classes."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices),
            splits=tuple(self.splits[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
        )

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the files, wherever they lie, for JSON: classes and digests."""
        labels = [self.class_names[label] for label in self.labels]
        return {"class_names": list(self.class_names), **describe_examples(self.names, labels)}


def read_labelled_files(
    root: str | os.PathLike[str] = "",
    *,
    kind: str = "video",
    list_file: str | os.PathLike[str] = "",
    validation_list: str | os.PathLike[str] = "",
    test_list: str | os.PathLike[str] = "",
    class_list: str | os.PathLike[str] = "",
    group_pattern: str = "",
    fold: int = 1,
    validation_fold: int = 0,
) -> LabelledFiles:
    """Reads which files there are, their classes, groups and splits; opens none of the files.

    Args:
        root: folder of the class folders, of UCF101's layout, or to which the paths of a list are
            relative; empty with a list: the list's folder.
        kind: "video", "image" or "recording", which decides the endings of the files.
        list_file: list of the files (``data/datasets/list_file.py``); empty: the root's folders.
        validation_list: list of the validation files; ``list_file`` then lists training files.
        test_list: likewise of the test files.
        class_list: names of the classes, for lists whose labels are numbers.
        group_pattern: regular expression whose first group (or, without one, whose match) is the
            recording group in a file's name without ending, or in its relative path if the pattern
            has a "/"; empty: the list's column, if there is one.
        fold: number of UCF101's lists, from 1; of a list with a column of folds and none of splits
            the one that is tested, while the others train.
        validation_fold: of such a list the one that validates; 0: none.

    Returns:
        The files in the order of their names; those of UCF101's layout in that of its lists.

    Raises:
        FileNotFoundError: the root, a list or a listed file does not exist.
        ValueError: no files, fewer than two classes, labels outside of the class list, a file that
            stands twice with different labels or splits, or a list that cannot be read.
    """
    if kind not in ENDINGS:
        raise ValueError(f"kind: expected {' or '.join(ENDINGS)}, received {kind!r}")
    if not root and not list_file:
        raise ValueError(
            f"root: expected a folder with a folder of {kind}s for each class, or a list of files, "
            "received neither"
        )
    if (validation_list or test_list) and not list_file:
        raise ValueError(
            "list: expected the list of the training files beside those of validation and test, "
            "received none"
        )
    folder = Path(root) if root else Path(list_file).parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"root: expected the folder of the data, received {folder}, which "
            + ("is a file; give its folder, or list=" if folder.is_file() else "does not exist")
        )
    manifest = None if list_file else read_manifest(folder)
    if manifest is not None:
        _check_kind(folder, manifest["kind"], kind)
        if (folder / CONVERTED_LIST).is_file():
            list_file, class_list = folder / CONVERTED_LIST, folder / CONVERTED_CLASSES
    if list_file:
        lists = {"": list_file}
        if validation_list or test_list:
            given = {"train": list_file, "validation": validation_list, "test": test_list}
            lists = {split: path for split, path in given.items() if path}
        files = _read_lists(folder, lists, class_list, ENDINGS[kind], (fold, validation_fold))
    elif kind == "video" and _ucf101_layout(folder):
        files = read_ucf101(folder, fold, group_pattern=group_pattern)
    else:
        files = _read_folders(folder, kind)
    if manifest is not None:
        layout = f"{manifest['layout']}, converted"
        files = replace(files, layout=layout, notes=(*files.notes, *_note_failed(manifest)))
    if group_pattern:
        groups, found = find_groups(files.names, group_pattern)
        files = replace(files, groups=groups, notes=(*files.notes, *found))
    return _checked(files, folder, kind)


def _check_kind(folder: Path, found: str, kind: str) -> None:
    expected = {"recording": "sounds"}.get(kind, kind)
    if found != expected:
        raise ValueError(
            f"root: expected converted {kind}s with labels, received {folder}, a converted data "
            f"set of the kind {found}"
        )


def _note_failed(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    if not (failed := manifest["failed"]):
        return ()
    told = some([f"{row['file']} ({row['reason']})" for row in failed])
    return (f"{len(failed)} files could not be read by the conversion: {told}",)


# ---- Class folders ---------------------------------------------------------------------------


def _read_folders(root: Path, kind: str) -> LabelledFiles:
    endings = ENDINGS[kind]
    folders = _subfolders(root)
    splits = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    has_splits = _are_splits(root, folders, splits, endings)
    notes: list[str] = []
    rows: list[tuple[str, str, str, str]] = []  # name, path, class, split
    others: Counter[str] = Counter()
    if has_splits:
        if "train" not in splits.values():
            raise ValueError(
                f"root: expected training files in a folder train/ of {root}, received the folders "
                f"{' and '.join(splits)} alone"
            )
        strange = [
            name
            for name in folders
            if name not in splits
            and any(Path(f).suffix.lower() in endings for f in _files_below(root / name, root))
        ]
        if strange:
            raise ValueError(
                f"root: expected folders of splits alone beside {', '.join(splits)} in {root}, "
                f"received {some(strange)}"
            )
        tops = [(f"{name}/", split) for name, split in splits.items()]
    else:
        tops = [("", "")]
    loose = 0
    for prefix, split in tops:
        for entry in os.scandir(root / prefix):
            loose += _is_read(entry, endings)
        for name in _subfolders(root / prefix):
            for file in _files_below(root / prefix / name, root):
                relative = Path(file).relative_to(root).as_posix()
                if Path(file).suffix.lower() in endings:
                    rows.append((normal_name(relative), file, normal_name(name).strip(), split))
                else:
                    others[Path(file).suffix.lower() or "none"] += 1
    if not rows and kind == "video":
        rows = [
            (normal_name(folder.relative_to(root).as_posix()), str(folder), name.strip(), split)
            for prefix, split in tops
            for name in map(normal_name, _subfolders(root / prefix))
            for folder in _frame_folders(root / prefix / name)
        ]
        if rows:
            others.clear()
    if not rows:
        raise ValueError(_nothing_found(root, kind, loose, others))
    if loose:
        notes.append(f"{loose} {kind}s lie outside of the class folders and were left out")
    if others:
        listed = ", ".join(f"{count} × {ending}" for ending, count in others.most_common(4))
        notes.append(f"files with other endings were left out: {listed}")
    # By names, so that the order is the same on each file system.
    rows.sort(key=lambda row: row[0])
    layout = "class folders" + (" in folders of splits" if has_splits else "")
    names, paths, classes, given = zip(*rows, strict=True)
    if not has_splits:
        inner = [_inner_split(name) for name in names]
        if all(inner) and "train" in inner:
            layout, given = "folders of splits in class folders", tuple(inner)
    return _labelled(paths, names, classes, [""] * len(rows), given, layout, notes)


def _are_splits(
    root: Path, folders: Sequence[str], splits: Mapping[str, str], endings: Collection[str]
) -> bool:
    """Returns True if folders with the names of splits hold class folders.

    A class may be called "train"; its folder then holds files, not folders of files.
    """
    inside = {name: bool(_subfolders(root / name)) for name in splits}
    if splits and len(splits) == len(folders) and all(inside.values()):
        return True
    return any(
        inside[name] and not any(_is_read(entry, endings) for entry in os.scandir(root / name))
        for name, split in splits.items()
        if split == "train"
    )


def _inner_split(name: str) -> str:
    """Returns the split of CLASS/SPLIT/FILE, "" if there is none."""
    parts = name.split("/")
    return SPLIT_NAMES.get(parts[1].lower(), "") if len(parts) > 2 else ""


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.name not in FOREIGN and entry.is_dir()
        )


def _is_read(entry: "os.DirEntry[str]", endings: Collection[str]) -> bool:
    ending = os.path.splitext(entry.name)[1].lower()
    return ending in endings and not entry.name.startswith(".") and entry.is_file()


def _files_below(folder: Path, root: Path) -> Iterator[str]:
    """Yields the files of a folder and those below it, without hidden ones.

    Links are followed once, and never to the root, where other classes are.
    """
    seen = {os.path.realpath(root)}
    waiting = [str(folder)]
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in FOREIGN:
                    continue
                if entry.is_dir():
                    waiting.append(entry.path)
                elif entry.is_file():
                    yield entry.path


def _frame_folders(folder: Path) -> Iterator[Path]:
    """Yields the folders below a class folder that hold two images or more."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in FOREIGN)
        images = [n for n in names if os.path.splitext(n)[1].lower() in IMAGE_ENDINGS]
        if Path(parent) != folder and sum(not name.startswith(".") for name in images) > 1:
            yield Path(parent)


def _nothing_found(root: Path, kind: str, loose: int, others: Mapping[str, int]) -> str:
    if loose:
        received = f"{loose} {kind}s in the folder itself; move them into folders named by class"
    elif others:
        received = f"files with other endings alone: {some(sorted(others))}"
    else:
        received = "an empty folder" if not _subfolders(root) else "folders without files"
    return f"root: expected a folder of {kind}s for each class in {root}, received {received}"


# ---- Lists -----------------------------------------------------------------------------------


def _read_lists(
    root: Path,
    lists: Mapping[str, str | os.PathLike[str]],
    class_list: str | os.PathLike[str],
    endings: Collection[str],
    folds: tuple[int, int],
) -> LabelledFiles:
    listed = [
        (row, split or row.split, path)
        for split, path in lists.items()
        for row in read_list(path, endings)
    ]
    has_folds = all(row.fold and not split for row, split, _ in listed)
    if has_folds:
        listed = [(row, split, path) for (row, _, path), split in _of_fold(listed, *folds)]
    found = find_listed(root, [row.path for row, _, _ in listed])
    rows: dict[str, tuple[ListedFile, str, str | os.PathLike[str]]] = {}
    repeated = 0
    for row, given, path in listed:
        name = relative_name(found[row.path] or row.path, root)
        known = rows.get(name)
        if known is None:
            rows[name] = (row, given, path)
            continue
        earlier, before, source = known
        for what, then, now in (
            ("label", earlier.label, row.label),
            ("split", before, given),
        ):
            if then != now:
                raise ValueError(
                    f"{path}: expected one {what} for each file, received {row.path!r} with "
                    f"{then!r} in line {earlier.line}"
                    + ("" if source == path else f" of {source}")
                    + f" and {now!r} in line {row.line}"
                )
        repeated += 1
    notes = [f"{repeated} lines repeat an earlier one and were left out"] if repeated else []
    missing = [row for row, _, _ in rows.values() if found[row.path] is None]
    if missing:
        header = ""
        if [row.line for row in missing] == [1]:
            header = f"; if line 1 is a header, name its columns {PATH} and {LABEL}"
        raise FileNotFoundError(
            f"{' and '.join(str(path) for path in lists.values())}: {len(missing)} of {len(rows)} "
            f"files are not in {root}, to which the paths are relative: "
            f"{some([row.path for row in missing])}{header}"
        )
    classes, class_names = _classes([row for row, _, _ in rows.values()], class_list)
    ordered = sorted(zip(rows, classes, strict=True))
    values = [rows[name] for name, _ in ordered]
    layout = f"list {', '.join(Path(path).name for path in lists.values())}"
    files = _labelled(
        [str(found[row.path]) for row, _, _ in values],
        [name for name, _ in ordered],
        [name for _, name in ordered],
        [row.group for row, _, _ in values],
        [split for _, split, _ in values],
        f"{layout}, fold {folds[0]}" if has_folds else layout,
        notes,
        class_names,
    )
    return replace(files, official_folds=has_folds)


_Listed = tuple[ListedFile, str, str | os.PathLike[str]]


def _of_fold(
    listed: Sequence[_Listed], fold: int, validation_fold: int
) -> list[tuple[_Listed, str]]:
    """Returns the rows with their split: one fold tests, one validates, the others train."""
    names = [row.fold.lstrip("0") or "0" for row, _, _ in listed]
    roles = {str(fold): "test"}
    if validation_fold:
        roles[str(validation_fold)] = "validation"
    if missing := [name for name in roles if name not in names]:
        raise ValueError(
            f"{listed[0][2]}: expected a fold of its column of folds, "
            f"{', '.join(sorted(set(names)))}, received fold {missing[0]}"
        )
    if validation_fold == fold:
        raise ValueError(
            f"validation_fold: expected another fold than fold = {fold}, received {validation_fold}"
        )
    return [(row, roles.get(name, "train")) for row, name in zip(listed, names, strict=True)]


def find_listed(root: Path, names: Sequence[str]) -> dict[str, Path | None]:
    """Returns the file of each name in a list, None where there is none.

    Blanks around a name, and backslashes, are part of it where there is such a file.
    """
    found: dict[str, Path | None] = dict.fromkeys(names)
    for form in (str, str.strip, lambda name: name.strip().replace("\\", "/")):
        waiting = [name for name, path in found.items() if path is None]
        found.update(zip(waiting, find_files(root / form(name) for name in waiting), strict=True))
    return found


def relative_name(path: str | os.PathLike[str], root: Path | None = None) -> str:
    """Returns a file's path relative to the root, if it lies there, in one form.

    That of a file of a converted folder is its name in the data set, and not that of its shard.
    """
    stored = find_stored(path)
    if stored is not None and read_manifest(Path(stored.shard).parent) is not None:
        return stored.name
    name = os.path.normpath(path)
    if root is not None and Path(os.path.abspath(name)).is_relative_to(os.path.abspath(root)):
        name = os.path.relpath(name, root)
    return normal_name(Path(name).as_posix())


def _classes(
    rows: Sequence[ListedFile], class_list: str | os.PathLike[str]
) -> tuple[list[str], list[str] | None]:
    """Returns the class name of each row, and the order of the classes; None: by name."""
    labels = [normal_name(row.label) for row in rows]
    if not class_list:
        signed = [row for row in rows if row.label[:1] == "-" and row.label[1:].isdecimal()]
        if signed and all(label.removeprefix("-").isdecimal() for label in labels):
            wrong = [f"{row.label} of {row.path} in line {row.line}" for row in signed]
            raise ValueError(
                f"label: expected numbers of classes from 0, received {len(wrong)} below: "
                f"{some(wrong)}"
            )
        numbers = sorted({int(label) for label in labels if label.isdecimal()})
        if all(label.isdecimal() for label in labels):
            return [str(int(label)) for label in labels], [str(number) for number in numbers]
        return labels, None
    names = read_class_list(class_list)
    known = set(names.values())
    by_text = {str(number): name for number, name in names.items()}
    wrong = []
    classes = []
    for row, label in zip(rows, labels, strict=True):
        name = (
            label if label in known else by_text.get(str(int(label)) if label.isdecimal() else "")
        )
        if name is None:
            wrong.append(f"{label} of {row.path} in line {row.line}")
        classes.append(name or "")
    if wrong:
        numbers = sorted(names)
        raise ValueError(
            f"{class_list}: {len(wrong)} labels are none of its {len(names)} classes, numbers "
            f"{numbers[0]} to {numbers[-1]}: {some(wrong)}"
        )
    return classes, [names[number] for number in sorted(names)]


# ---- UCF101's layout -------------------------------------------------------------------------


def _ucf101_layout(root: Path) -> str:
    """Returns the folder of UCF101's lists, "" if there is none."""
    folders = (name for name in ucf101.LIST_FOLDERS if (root / name / "classInd.txt").is_file())
    return next(folders, "")


def read_ucf101(
    root: str | os.PathLike[str], fold: int = 1, *, group_pattern: str = ""
) -> LabelledFiles:
    """Reads a split of UCF101, or of another data set in its layout, as ``ucf101.read_split``.

    Args:
        root: the data set's folder.
        fold: number of its lists, from 1 on; UCF101 has three.
        group_pattern: as of ``read_labelled_files``; empty: UCF101's.

    Raises:
        FileNotFoundError: the root, a list or a listed file does not exist.
        ValueError: lists that disagree, a recording group in both lists, or a class without
            training files.
    """
    root = Path(root)
    lists = _ucf101_layout(root)
    if not lists:
        raise FileNotFoundError(
            f"root: expected UCF101's lists with classInd.txt in {root}, in the folder "
            f"{' or '.join(ucf101.LIST_FOLDERS)}"
        )
    pattern = group_pattern or ucf101.UCF101_GROUP
    parts = {
        split: ucf101.read_split(root, split, fold, group_pattern=pattern, lists=lists)
        for split in ("train", "test")
    }
    joined = {
        name: tuple(value for part in parts.values() for value in getattr(part, name))
        for name in ("paths", "labels", "groups")
    }
    joined["names"] = tuple(relative_name(path, root) for path in joined["paths"])
    splits = tuple(split for split, part in parts.items() for _ in range(len(part)))
    if len(set(joined["names"])) != len(joined["names"]):
        twice = [name for name, count in Counter(joined["names"]).items() if count > 1]
        raise ValueError(
            f"{root / lists}: expected each file in one list once, received {len(twice)} twice: "
            f"{some(twice)}"
        )
    return LabelledFiles(
        **joined,
        splits=splits,
        class_names=parts["train"].class_names,
        layout=f"UCF101's layout, lists {fold:02d}",
        official_folds=True,
    )


# ---- Common to all ---------------------------------------------------------------------------


def _labelled(
    paths: Sequence[str],
    names: Sequence[str],
    classes: Sequence[str],
    groups: Sequence[str],
    splits: Sequence[str],
    layout: str,
    notes: Sequence[str],
    class_names: Sequence[str] | None = None,
) -> LabelledFiles:
    ordered = list(class_names) if class_names is not None else sorted(set(classes))
    label = {name: number for number, name in enumerate(ordered)}
    return LabelledFiles(
        paths=tuple(paths),
        labels=tuple(label[name] for name in classes),
        groups=tuple(groups),
        splits=tuple(splits),
        class_names=tuple(ordered),
        names=tuple(names),
        layout=layout,
        notes=tuple(notes),
    )


def find_groups(names: Sequence[str], pattern: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the recording group in each name, "" where the pattern does not fit, and notes.

    Args:
        names: paths of the files relative to the root.
        pattern: regular expression; its first group, or without one its match, is the recording
            group in the name without ending, or in the path if the pattern has a "/".

    Raises:
        ValueError: no regular expression, or one that fits no name.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"group_pattern: expected a regular expression, received {pattern!r} ({error})"
        ) from None
    texts = [name if "/" in pattern else Path(name).stem for name in names]
    matches = [compiled.search(text) for text in texts]
    groups = [(match[match.re.groups and 1] or "") if match else "" for match in matches]
    without = [name for name, group in zip(names, groups, strict=True) if not group]
    if len(without) == len(groups):
        raise ValueError(
            f"group_pattern: expected an expression that finds the group in the names, received "
            f"{pattern!r}, which fits none of {len(groups)}: {some(without)}"
        )
    if not without:
        return tuple(groups), ()
    note = (
        f"group_pattern fits {len(groups) - len(without)} of {len(groups)} names; each other file "
        f"is a group of its own: {some(without)}"
    )
    return tuple(groups), (note,)


def _checked(files: LabelledFiles, root: Path, kind: str) -> LabelledFiles:
    """Leaves empty files out and refuses data that no classifier can learn from."""
    check_names(files.names, "root")
    if broken := [name for name in files.names if "\r" in name]:  # Of no line in a list.
        raise ValueError(
            f"root: expected names without the character CR, received {len(broken)} with it: "
            f"{some([repr(name) for name in broken])}; rename them"
        )
    if twins := [name for name, count in Counter(files.names).items() if count > 1]:
        raise ValueError(
            f"root: expected names that differ in more than their Unicode form (NFC or NFD), "
            f"received {len(twins)} that two files have: {some(twins)}; rename one of them"
        )
    empty = [
        index
        for index, path in enumerate(files.paths)
        if not os.path.isdir(path) and not file_size(path)
    ]
    if empty:
        names = [files.names[index] for index in empty]
        left = sorted(set(range(len(files))) - set(empty))
        note = f"{len(empty)} empty files (0 bytes) were left out: {some(names)}"
        files = replace(files.take(left), notes=(*files.notes, note))
    counts = Counter(files.labels)
    if len(counts) < 2:
        only = "".join(files.class_names[label] for label in counts)
        fix = "put each class into a folder of its own"
        if files.layout.startswith("list"):
            fix = f"the {files.layout} must have {kind}s of another class, too"
        elif only and (root / only).is_dir() and len(inner := _subfolders(root / only)) > 1:
            fix = f"if the classes are {some(inner)}, give the folder {root / only}"
        raise ValueError(
            f"root: expected at least two classes with {kind}s in {root}, received "
            f"{len(counts)}{f' ({only})' if only else ''}; {fix}"
        )
    notes = files.notes
    if single := [files.class_names[label] for label, count in counts.items() if count == 1]:
        notes += (f"{len(single)} classes have one {kind}: {some(sorted(single))}",)
    return replace(files, notes=notes)
