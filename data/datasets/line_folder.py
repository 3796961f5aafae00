r"""Images of text lines with their texts: files beside the images, or a table.

Files, in folders of splits or groups or in none; the convention of OCRopus, kraken and Calamari::

    ROOT/train/page1_01.png         a line, in any format of ``IMAGE_SUFFIXES``
    ROOT/train/page1_01.gt.txt      its text; or page1_01.txt, where no file is named .gt.txt
    ROOT/test/page7_03.nrm.png      an edited image (``VARIANTS``), read where there is no other
    ROOT/test/page7_03.gt.txt

A table in UTF-8, or UTF-16 with a byte-order mark, its cells between ",", ";", tabs or "|"; a table
without a header has the image first and the text last::

    file,text,book,split
    page1_01.png,"Herzog, F. X.",haus,train

Texts are composed (NFC), blanks at their ends are stripped. With ``NAME.gt.txt``, ``NAME.txt`` is
what another program has read, and not a truth.
"""

import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data.datasets.image_captions import (
    DELIMITERS,
    IMAGE_COLUMNS,
    IMAGE_SUFFIXES,
    SPLIT_COLUMNS,
    SPLITS,
    find_column,
    read_rows,
)
from data.datasets.labelled_files import (
    AUDIO_ENDINGS,
    FOREIGN,
    LabelledFiles,
    find_groups,
    find_listed,
    relative_name,
)
from data.datasets.list_file import COLUMNS, GROUP, some
from data.datasets.splits import make_split
from data.files import check_names, normal_name, read_manifest, read_text
from data.loader import describe_examples
from data.text_lines.alphabet import normalise

FILE_COLUMNS = (
    *(*IMAGE_COLUMNS, "line", "line_image", "audio", "audio_file", "audio_path", "wav"),
    "wav_filename",
)
TEXT_COLUMNS = (
    *("text", "transcription", "transcript", "ground_truth", "gt", "label", "target", "sentence"),
    *("caption", "words", "word"),
)
GROUP_COLUMNS = (*COLUMNS[GROUP], "book", "page", "document", "writer", "volume", "source")
"""Names of the columns of a table, lower-case, with "_" for blanks and hyphens."""
VARIANTS = ("nrm", "bin", "dew", "raw", "gray", "grey", "color")
"""Endings, before that of the format, of edited images of a line, the preferred first."""

CONVERTED_LINES = "lines.csv"
"""Table of the lines of a converted folder (``python -m data.convert``)."""
SUFFIXES = {"image": IMAGE_SUFFIXES, "recording": AUDIO_ENDINGS}
"""Endings of the files with texts, by what they are."""

_TRUTH, _TEXT = ".gt.txt", ".txt"
# Texts that accompany data sets and belong to no image.
_NO_TEXTS = ("readme", "license", "licence", "credits", "attribution", "notice", "copying")
_LINE_ENDS = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class TextLines:
    """Images of lines with their texts; equal positions of the tuples belong together.

    Attributes:
        paths: the images.
        texts: of each, in NFC, without blanks at the ends.
        groups: of each, as its book; "" if unknown.
        splits: "train", "validation" or "test" of each; "" for all if the data have none.
        names: path of each image relative to the root, "/" between folders, in NFC.
        layout: how the lines were found, in words.
        untexted: names of images that were left out because they have no text.
        empty: names of images whose text is empty; left out, unless they were asked for.
        imageless: texts, or rows of a table, that were left out because they have no image.
        decomposed: names of images whose text was not in NFC.
        notes: sentences about what was left out or looks wrong.
    """

    paths: tuple[str, ...]
    texts: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    names: tuple[str, ...]
    layout: str = ""
    untexted: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    imageless: tuple[str, ...] = ()
    decomposed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_splits(self) -> bool:
        """True if the data say which split each line belongs to."""
        return all(self.splits)

    def take(self, indices: Sequence[int]) -> "TextLines":
        """Returns the lines at these positions."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            texts=tuple(self.texts[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices),
            splits=tuple(self.splits[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
        )

    def select(self, split: str) -> "TextLines":
        """Returns the lines of a split.

        Args:
            split: "train", "validation" or "test".

        Raises:
            ValueError: no line is in the split.
        """
        found = [index for index, name in enumerate(self.splits) if name == split]
        if not found:
            there = ", ".join(sorted(set(self.splits) - {""})) or "none: split the lines first"
            raise ValueError(f"split: expected one that has lines ({there}), received {split!r}")
        return self.take(found)

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the lines, wherever they lie, for JSON."""
        return describe_examples(self.names, self.texts)


@dataclass(frozen=True)
class _Row:
    """A line as it was found; ``path`` is None where its image is missing."""

    name: str
    path: str | None
    text: str
    group: str = ""
    split: str = ""
    where: str = ""


def read_text_lines(
    root: str | os.PathLike[str] = "",
    list_file: str | os.PathLike[str] = "",
    *,
    group_pattern: str = "",
    keep_empty: bool = False,
    missing: Literal["error", "skip"] = "error",
    kind: Literal["image", "recording"] = "image",
) -> TextLines:
    r"""Reads which lines there are, their texts, groups and splits; opens none of the images.

    Args:
        root: folder of the lines, or to which the paths of a table are relative; empty with a
            table: the table's folder.
        list_file: the table; a relative path may start at ``root``. Empty: a text beside each
            image.
        group_pattern: regular expression whose first group (or, without one, whose match) is the
            group in an image's name without ending, or in its relative path if the pattern has a
            "/": ``^(.*?)_`` for the name up to "_"; empty: the table's column, if there is one.
        keep_empty: keep lines with empty texts, which a model of blank lines may want.
        missing: treatment of rows of a table whose image does not exist, "error" or "skip".
        kind: of the files: "image" of a line, or "recording" of speech, for which a text stands in
            the same places (``data.datasets.audio_folder``).

    Returns:
        The lines in the order of their names. Images without text, texts without image and, unless
        ``keep_empty``, empty texts are left out, counted and named in ``notes``.

    Raises:
        FileNotFoundError: the root, the table or an image of the table does not exist.
        ValueError: no line with a text, an image with two texts or splits, splits of some lines
            alone, a damaged table, or text of another encoding.
    """
    if not str(root) and not str(list_file):
        raise ValueError(
            f"root: expected a folder of {kind}s with their texts, or a table of files and texts, "
            "received neither"
        )
    if kind not in SUFFIXES:
        raise ValueError(f"kind: expected {' or '.join(SUFFIXES)}, received {kind!r}")
    if missing not in ("error", "skip"):
        raise ValueError(f"missing: expected 'error' or 'skip', received {missing!r}")
    folder = Path(root) if str(root) else Path(list_file).parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"root: expected the folder of the {kind}s, received {folder}, which "
            + ("is a file; give it as the table" if folder.is_file() else "does not exist")
        )
    untexted: list[str] = []
    notes: list[str] = []
    if not str(list_file) and read_manifest(folder) is not None:
        list_file = folder / CONVERTED_LINES
    if str(list_file):
        table = Path(list_file)
        table = folder / table if not table.exists() and (folder / table).is_file() else table
        layout, rows = _read_table(table, folder, missing, kind)
    else:
        table = folder
        layout, rows = _read_folder(folder, untexted, notes, kind)
    lines = _collect(table, layout, rows, untexted, keep_empty, notes, kind)
    if group_pattern:
        groups, found = find_groups(lines.names, group_pattern)
        lines = replace(lines, groups=groups, notes=(*lines.notes, *found))
    return lines


def split_lines(
    lines: TextLines,
    *,
    seed: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.0,
    fold: int = 0,
    num_folds: int = 10,
) -> TextLines:
    """Completes the splits of lines; keeps those that the data have.

    Lines of one group, as a book, and images of the same content are on one side
    (``data.datasets.splits.make_split``, which explains the arguments).
    """
    made = make_split(
        LabelledFiles(
            paths=lines.paths,
            labels=(0,) * len(lines),
            groups=lines.groups,
            splits=lines.splits,
            class_names=("line",),
            names=lines.names,
        ),
        seed=seed,
        validation_share=validation_share,
        test_share=test_share,
        fold=fold,
        num_folds=num_folds,
    )
    number = {name: index for index, name in enumerate(lines.names)}
    kept = lines.take([number[name] for name in made.names])
    return replace(kept, splits=made.splits, notes=(*lines.notes, *made.notes))


# ---- Files beside the images -----------------------------------------------------------------


def _read_folder(
    root: Path, untexted: list[str], notes: list[str], kind: str
) -> tuple[str, list[_Row]]:
    suffixes = SUFFIXES[kind]
    images: list[tuple[str, str]] = []  # relative folder, file name
    texts: dict[str, dict[tuple[str, str], str]] = {_TRUTH: {}, _TEXT: {}}
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in FOREIGN)
        folder = os.path.relpath(parent, root)
        for name in sorted(name for name in names if not name.startswith(".")):
            lower = name.lower()
            if lower.endswith(suffixes):
                images.append((folder, name))
            elif ending := next((e for e in (_TRUTH, _TEXT) if lower.endswith(e)), ""):
                stem = normal_name(name[: -len(ending)])
                if stem.lower() not in _NO_TEXTS:
                    texts[ending][folder, stem] = os.path.join(parent, name)
    if not images:
        raise ValueError(
            f"root: expected {kind}s ({', '.join(suffixes[:4])}, …) in {root}, "
            "received a folder without any"
        )
    ending = _TRUTH if texts[_TRUTH] else _TEXT
    if texts[_TRUTH] and texts[_TEXT]:
        notes.append(
            f"texts are read from *{_TRUTH}; {len(texts[_TEXT])} others (*{_TEXT}) are not"
        )
    found = texts[ending]
    versions: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for folder, name in images:
        stem = normal_name(os.path.splitext(name)[0])
        plain, _, variant = stem.rpartition(".")
        if (folder, stem) in found:
            versions[folder, stem].append((0, name))
        elif variant.lower() in VARIANTS and (folder, plain) in found:
            versions[folder, plain].append((1 + VARIANTS.index(variant.lower()), name))
        else:
            untexted.append(_join(folder, name))
    if not versions:
        raise ValueError(
            f"root: expected the text of NAME{suffixes[0]} in NAME{_TRUTH} or NAME{_TEXT} beside "
            f"it, received {len(images)} {kind}s without any in {root}: {some(untexted)}; or give "
            "a table of files and texts"
        )
    rows = []
    for key, path in found.items():
        name = _join(key[0], min(versions[key])[1]) if key in versions else ""
        image = str(root / key[0] / min(versions[key])[1]) if name else None
        rows.append(_Row(name, image, read_text(path), where=relative_name(path, root)))
    if surplus := sum(len(found) - 1 for found in versions.values() if found):
        notes.append(f"{surplus} {kind}s are other versions of a line and were left out")
    layout = f"{kind}s with NAME{ending}"
    tops = [row.name.split("/")[0].lower() for row in rows if row.name]
    if all(top in SPLITS for top in tops) and all("/" in row.name for row in rows if row.name):
        rows = [
            replace(row, split=SPLITS[row.name.split("/")[0].lower()]) if row.name else row
            for row in rows
        ]
        layout += " in folders of splits"
    return layout, rows


def _join(folder: str, name: str) -> str:
    return normal_name(Path(folder, name).as_posix())


# ---- Tables ----------------------------------------------------------------------------------


def _read_table(path: Path, root: Path, missing: str, kind: str) -> tuple[str, list[_Row]]:
    content = read_text(path)
    delimiter, header = _sniff(path, content, SUFFIXES[kind])
    columns = _columns(header)
    if delimiter != "\t":
        _check_quotes(path, content, delimiter)
    listed = []
    for number, (where, cells) in enumerate(read_rows(path, content, delimiter)):
        if header and not number:
            continue
        last = len(header or (0, 1)) - 1
        if len(cells) > last + 1 and columns["text"] == last:
            # A text with commas that nobody quoted.
            cells = [*cells[:last], delimiter.join(cells[last:])]
        if len(cells) > last + 1:
            raise ValueError(
                f"{where}: expected {last + 1} cells as in the header, received {len(cells)}; put "
                f"a cell with {delimiter!r} between double quotes"
            )
        padded = [*cells, *[""] * (last + 1 - len(cells))]
        row = {kind: padded[column] for kind, column in columns.items()}
        if not row["file"].strip():
            raise ValueError(f"{where}: expected the name of an image, received none")
        if _LINE_ENDS.search(row["text"].strip()):
            raise ValueError(
                f"{where}: expected the text of one line, received {row['text'][:60]!r}; close its "
                "double quotes, and write those within a text twice"
            )
        split = row.get("split", "").strip()
        if split and split.lower() not in SPLITS:
            raise ValueError(
                f"{where}: expected train, validation or test in the column of splits, received "
                f"{split!r}"
            )
        listed.append((where, row, SPLITS.get(split.lower(), "")))
    found = find_listed(root, [row["file"] for _, row, _ in listed])
    rows = []
    for where, row, split in listed:
        file = found[row["file"]]
        name = relative_name(file or row["file"].strip(), root)
        group = row.get("group", "").strip()
        rows.append(_Row(name, str(file) if file else None, row["text"], group, split, where))
    absent = [row.name for row in rows if row.path is None]
    if absent and (missing == "error" or len(absent) == len(rows)):
        raise FileNotFoundError(
            f"{path}: {len(absent)} of {len(rows)} {kind}s are not in {root}, to which the paths "
            f"are relative: {some(absent)}"
        )
    named = ", ".join(header[column].strip() for column in columns.values()) if header else ""
    layout = f"{DELIMITERS[delimiter]} " + (
        f"with the columns {named}" if header else "without a header: image, text"
    )
    return layout, rows


def _check_quotes(path: Path, content: str, delimiter: str) -> None:
    """Raises ValueError for quotes of which a lenient reader would lose some without a word."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        for _ in reader:
            pass
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: expected double quotes around a whole cell, and "
            f"those within it twice, received others ({error})"
        ) from None


def _sniff(path: Path, content: str, suffixes: tuple[str, ...]) -> tuple[str, list[str]]:
    """Returns the delimiter of a table and its header, which is empty if there is none."""
    first = next((line for line in _LINE_ENDS.split(content) if line.strip()), "")
    if not first:
        raise ValueError(f"{path}: expected files and texts, received an empty file")
    headers = {mark: next(read_rows(path, first, mark))[1] for mark in DELIMITERS}
    for mark, cells in headers.items():
        if {"file", "text"} <= _columns(cells).keys():
            return mark, cells
    for mark, cells in headers.items():
        if len(cells) > 1 and cells[0].strip().lower().endswith(suffixes):
            return mark, []
    raise ValueError(
        f"{path}: expected a header with the columns file and text, or the name of an image and "
        f"its text in each line, received {first[:80]!r}"
    )


def _columns(header: Sequence[str]) -> dict[str, int]:
    """Returns the position of each column that a header has, by its meaning."""
    if not header:
        return {"file": 0, "text": 1}
    kinds = (
        *(("file", FILE_COLUMNS), ("text", TEXT_COLUMNS), ("group", GROUP_COLUMNS)),
        ("split", SPLIT_COLUMNS),
    )
    found = {kind: find_column(header, names) for kind, names in kinds}
    return {kind: columns[0] for kind, columns in found.items() if columns}


# ---- Common to both --------------------------------------------------------------------------


def _collect(
    source: Path,
    layout: str,
    rows: Sequence[_Row],
    untexted: Sequence[str],
    keep_empty: bool,
    notes: list[str],
    kind: str,
) -> TextLines:
    """Returns the rows with an image and a text, and notes on the others."""
    lines: dict[str, _Row] = {}
    empty, decomposed, joined = [], [], []
    repeated = 0
    for row in rows:
        if row.path is None:
            continue
        parts = [part.strip() for part in _LINE_ENDS.split(row.text)]
        text = " ".join(part for part in parts if part)
        if sum(map(bool, parts)) > 1:
            joined.append(row.name)
        if not unicodedata.is_normalized("NFC", text):
            decomposed.append(row.name)
        line = replace(row, text=normalise(text))
        if row.name in lines:
            earlier = lines[row.name]
            if (earlier.text, earlier.split) != (line.text, line.split):
                raise ValueError(
                    f"{row.where}: expected one text and one split for each image, received "
                    f"{row.name} again, with {line.text!r} after {earlier.text!r}"
                )
            repeated += 1
            continue
        lines[row.name] = line
        if not text:
            empty.append(row.name)
    check_names(lines, str(source))
    kept = [line for line in lines.values() if line.text or keep_empty]
    if not kept:
        raise ValueError(
            f"{source}: expected lines with texts, received {len(lines)} {kind}s without any: "
            f"{some([*lines])}"
        )
    bare = [line.name for line in kept if not line.split]
    if 0 < len(bare) < len(kept):
        raise ValueError(
            f"{source}: expected a split of every line or of none, received {len(bare)} lines "
            f"without one: {some(bare)}"
        )
    imageless = [
        row.where if layout.startswith(f"{kind}s with") else row.name
        for row in rows
        if row.path is None
    ]
    article = "an image" if kind == "image" else f"a {kind}"
    what = "were kept" if keep_empty else "were left out"
    for names, told in (
        (untexted, f"{kind}s without a text were left out"),
        (imageless, f"texts without {article} were left out"),
        (empty, f"lines with an empty text {what}"),
        (joined, "texts of several lines were joined by blanks"),
    ):
        if names:
            notes.append(f"{len(names)} {told}: {some(names)}")
    if repeated:
        notes.append(f"{repeated} rows repeat an earlier one and were left out")
    kept.sort(key=lambda line: line.name)
    return TextLines(
        paths=tuple(str(line.path) for line in kept),
        texts=tuple(line.text for line in kept),
        groups=tuple(line.group for line in kept),
        splits=tuple(line.split for line in kept),
        names=tuple(line.name for line in kept),
        layout=layout,
        untexted=tuple(untexted),
        empty=tuple(empty),
        imageless=tuple(imageless),
        decomposed=tuple(decomposed),
        notes=tuple(notes),
    )
