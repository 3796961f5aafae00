r"""Captioned images of one's own: a list of any usual form, or a text file beside each image.

A list names images, from the folder ``root`` on, and their captions::

    image,caption                      CSV, TSV, or columns between ";" or "|", several rows for an
    dog.jpg,"A dog, running."          image or several columns (caption_1, caption_2, …)
    {"image": "dog.jpg", "captions": ["A dog.", "Running."]}       JSON lines, or a JSON list
    {"dog.jpg": ["A dog.", "Running."]}                            JSON of captions by image

and COCO's and Karpathy's JSON. The columns may have other names (``IMAGE_COLUMNS``, …); one of
splits is optional. Without a list, each ``NAME.jpg`` has its captions in ``NAME.txt``, one a line;
folders ``train``, ``validation`` and ``test`` are splits.

The form follows from the content, whatever the list's name ends with. Text is UTF-8, or UTF-16 with
a byte-order mark; lines may end as on Windows.
"""

import ast
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data.captions.vocabulary import split_words
from data.datasets import coco_captions, karpathy
from data.datasets.captioned_images import CaptionedImages, Missing, first_few, keep_present
from data.files import check_names, normal_name, read_json, read_lines, read_text, write_atomically

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
"""Endings of image files, in lower or upper case."""
IMAGE_COLUMNS = (
    *("image", "file", "path", "filename", "file_name", "filepath", "file_path"),
    *("image_file", "image_name", "image_path", "img", "photo"),
)
"""Names of the column of images; case, blanks and hyphens do not count."""
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "comment", "description", "sentence", "sentences"),
)
"""Names of the columns of captions, which may end with a number."""
SPLIT_COLUMNS = ("split", "subset", "set", "partition")
"""Names of the column of splits."""
SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Accepted name of a split -> its name here."""
LIST_NAMES = ("captions", "metadata")
"""Names, before the ending, of a list that lies in the folder and need not be given."""
LIST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
DELIMITERS = {"\t": "TSV", ",": "CSV", ";": "CSV with ';'", "|": "CSV with '|'"}

# Texts that accompany data sets and describe no image.
_NO_CAPTIONS = ("readme", "license", "licence", "credits", "attribution", "notice", "copying")


@dataclass(frozen=True)
class ImageCaptions:
    """All captioned images of a list or a folder.

    Attributes:
        images: the images that have a file and captions; ids are COCO's and Karpathy's, else the
            images' names. Captions without words are left out.
        names: path of each image from the root on, "/" between folders, in Unicode's composed form.
        splits: "train", "validation" or "test" of each image; all empty without splits.
        form: description of the format, for people.
        source: the list, or the folder.
        uncaptioned: names of images that were left out because no caption of theirs has words.
        wordless: names of the images of captions without words, one for each of these captions.
        repeated: names of the images of rows that repeat one with the same image and caption, one
            for each of these rows, which are left out.
        notes: sentences on how the splits were made.
    """

    images: CaptionedImages
    names: tuple[str, ...]
    splits: tuple[str, ...]
    form: str
    source: str
    uncaptioned: tuple[str, ...] = ()
    wordless: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_splits(self) -> bool:
        """True if the list or the folder says the split of each image."""
        return all(self.splits)

    def take(self, numbers: Sequence[int], splits: Sequence[str]) -> "ImageCaptions":
        """Returns the images with the given indices, in the splits given for all images."""
        return replace(
            self,
            images=replace(self.images.select(numbers), missing=self.images.missing),
            names=tuple(self.names[i] for i in numbers),
            splits=tuple(splits[i] for i in numbers),
        )

    def select(self, split: str, *, missing: Missing = "error") -> CaptionedImages:
        """Returns the images of a split.

        Args:
            split: "train", "validation" or "test".
            missing: treatment of images without a file, "error" or "skip".

        Raises:
            FileNotFoundError: as ``read_captioned_images``.
            ValueError: no image is in the split.
        """
        there = sorted(set(self.splits))
        if split not in there:
            raise ValueError(
                f"split: expected one of {', '.join(there)}, in which {self.source} has images, "
                f"received {split!r}"
            )
        numbers = [i for i, name in enumerate(self.splits) if name == split]
        return keep_present(self.images.select(numbers), self.source, missing)


@dataclass
class _Entry:
    """An image's part of a list: a row, a record, or a file of text."""

    where: str
    name: str
    captions: list[str]
    split: str = ""
    image_id: int | str | None = None

    @property
    def is_part(self) -> bool:
        """True for one of several rows of an image, which may repeat another one."""
        return len(self.captions) == 1


def read_captioned_images(
    root: str | Path, list_file: str | Path = "", *, missing: Missing | Literal["keep"] = "error"
) -> ImageCaptions:
    """Reads all images of a list, or of a folder of images and texts.

    Args:
        root: folder from which the names of the images start; empty: the folder of the list.
        list_file: the list; a relative path may start at ``root``. Empty: a file ``captions.*`` or
            ``metadata.*`` in ``root`` (``LIST_SUFFIXES``), else a text beside each image.
        missing: treatment of captions whose image has no file: "error", "skip", or "keep" without
            looking for the files.

    Returns:
        The images in the order of their first captions in the list; those of a folder by name.

    Raises:
        FileNotFoundError: the folder, the list, or images (those of texts) are missing; says how
            many and names the first three.
        ValueError: no image or no caption at all, a list of another form, an image in two splits, a
            damaged line, which is named, or text of another encoding.
    """
    if not str(root) and not str(list_file):
        raise ValueError(
            "root: expected the folder of the images, or a list of images and captions"
        )
    base = Path(root) if str(root) else Path(list_file).parent
    if not base.is_dir() and missing != "keep":
        raise FileNotFoundError(f"{base}: expected the folder of the images, which does not exist")
    path = Path(list_file) if str(list_file) else _find_list(base)
    if path is not None:
        path = base / path if not path.exists() and (base / path).is_file() else path
        form, entries = _read_list(path)
        listed = _collect(base, path, form, entries)
    else:
        listed = _collect(base, base, "images with a text file beside each", _read_folder(base))
        if listed.images.missing and missing == "error":
            raise FileNotFoundError(
                f"{base}: {len(listed.images.missing)} texts have no image of the same name beside "
                f"them: {first_few(listed.images.missing)}"
            )
    if missing == "keep":
        return listed
    present = keep_present(listed.images, listed.source, missing)
    left = set(present.image_ids)
    kept = [i for i, image_id in enumerate(listed.images.image_ids) if image_id in left]
    images = replace(present, missing=(*listed.images.missing, *present.missing))
    return replace(listed.take(kept, listed.splits), images=images)


def write_list(path: str | Path, listed: ImageCaptions) -> None:
    """Writes images, captions and splits as CSV that ``read_captioned_images`` reads.

    A row holds an image, with its captions as a JSON list, and ``image_id`` where the ids are
    numbers.
    """
    numbered = all(isinstance(image_id, int) for image_id in listed.images.image_ids)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(["image_id"] if numbered else []), "image", "captions", "split"])
    for name, split, captions, image_id in zip(
        listed.names, listed.splits, listed.images.captions, listed.images.image_ids, strict=True
    ):
        cell = json.dumps(captions, ensure_ascii=False)
        writer.writerow([*([image_id] if numbered else []), name, cell, split])
    write_atomically(path, lambda place: place.write_text(text.getvalue(), encoding="utf-8"))


def find_column(header: Sequence[str], names: Iterable[str]) -> list[int]:
    """Returns the positions of the columns that have one of the names, which may end with a number.

    >>> find_column(["File Name", "caption_1", "Caption 2"], ["caption"])
    [1, 2]
    """
    plain = [re.sub(r"[\s-]+", "_", column.strip().lower()) for column in header]
    return [i for i, name in enumerate(plain) if re.sub(r"_?\d+$", "", name) in names]


def _find_list(root: Path) -> Path | None:
    names = [name + suffix for name in LIST_NAMES for suffix in LIST_SUFFIXES]
    return next((root / name for name in names if (root / name).is_file()), None)


def _read_list(path: Path) -> tuple[str, list[_Entry]]:
    """Returns the description of a list's form, and its entries."""
    text = read_text(path)
    start = text.lstrip()[:1]
    if not start:
        raise ValueError(f"{path}: expected images and captions, received an empty file")
    if start not in "[{":
        return _read_table(path, text)
    lines = _lines(text)
    named = path.suffix.lower() in (".jsonl", ".ndjson")
    if start == "{" and len(lines) > 1 and (named or _is_record(lines[0])):
        return "JSON lines", _read_json_lines(path)
    return _read_json(path)


def _lines(text: str) -> list[str]:
    """Returns the lines that are not blank; U+2028 and the like are part of a line."""
    return [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]


def _is_record(line: str) -> bool:
    """Returns True for a line that holds a whole JSON object, as in JSON lines."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _read_json_lines(path: Path) -> list[_Entry]:
    entries = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise ValueError(f"{where}: expected a JSON record, received {reason}") from None
        entries.append(_record(record, where))
    return entries


def _read_json(path: Path) -> tuple[str, list[_Entry]]:
    content = read_json(path, "JSON of images and captions")
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        names, captions = coco_captions.parse_annotations(content, path)
        of_coco = [_Entry(str(path), names[i], [*captions[i]], "", i) for i in names]
        return "COCO's JSON", of_coco
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        listed = karpathy.parse_images(content, path)
        entries = [
            _Entry(
                f"{path}, images[{number}]",
                str(PurePosixPath(entry.get("filepath", ""), entry["filename"])),
                [sentence["raw"] for sentence in entry["sentences"]],
                entry["split"],
                image_id,
            )
            for number, (entry, image_id) in enumerate(
                zip(listed, karpathy.image_ids(listed), strict=True)
            )
        ]
        return "Karpathy's JSON", entries
    if isinstance(content, dict) and find_column([*content], IMAGE_COLUMNS):
        content = [content]  # JSON lines of one line.
    if isinstance(content, dict):
        return "JSON of captions by image", [
            _Entry(f"{path}, {name!r}", name, _texts(captions, f"{path}, {name!r}"))
            for name, captions in content.items()
        ]
    return "a JSON list", [
        _record(record, f"{path}, record {number}") for number, record in enumerate(content, 1)
    ]


def _record(record: Any, where: str) -> _Entry:
    """Returns the entry of a JSON record, as ``{"image": …, "captions": […]}``."""
    if not isinstance(record, dict):
        raise ValueError(
            f"{where}: expected a record with image and caption, received {record!r:.80}"
        )
    keys = [*record]
    image, captions, split = _find_columns(keys)
    if image is None or not captions:
        raise ValueError(f"{where}: {_no_columns(keys)}")
    name = record[keys[image]]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: expected the name of an image, received {name!r:.60}")
    texts = [text for i in captions for text in _texts(record[keys[i]], where)]
    value = record[keys[split]] if split is not None else ""
    return _Entry(where, name, texts, "" if value is None else str(value))


def _texts(value: Any, where: str) -> list[str]:
    """Returns the captions in a value: none, a text, or a list of texts."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{where}: expected a caption or a list of captions, received {value!r:.80}"
        )
    return texts


def _read_table(path: Path, text: str) -> tuple[str, list[_Entry]]:
    first = _lines(text)[0]
    headers = {d: next(csv.reader([first], delimiter=d)) for d in DELIMITERS}
    for delimiter, header in headers.items():
        image, captions, split = _find_columns(header)
        if image is not None and captions:
            named = ", ".join(header[i].strip() for i in sorted({image, *captions}))
            form = f"{DELIMITERS[delimiter]} with the columns {named}"
            form += "" if split is None else f" and {header[split].strip()}"
            rows = read_rows(path, text, delimiter)
            next(rows)
            break
    else:
        named_first = (d for d, row in headers.items() if len(row) > 1 and _is_image_name(row[0]))
        delimiter = next(named_first, "")
        if not delimiter:
            header = max(headers.values(), key=len)
            raise ValueError(f"{path}, line 1: {_no_columns(header)}")
        form = f"{DELIMITERS[delimiter]} without a header: image, caption"
        image, captions, split = 0, [1], None
        header, rows = ["image", "caption"], read_rows(path, text, delimiter)
    [number] = find_column(header, ["image_id"])[:1] or [image]
    entries = []
    for where, row in rows:
        if len(row) > len(header) and captions[-1] == len(header) - 1:
            # A caption with commas that nobody quoted.
            row = [*row[: len(header) - 1], delimiter.join(row[len(header) - 1 :])]
        if len(row) > len(header) or len(row) <= max(image, *captions, split or 0):
            raise ValueError(
                f"{where}: expected {len(header)} columns as in the first line, received "
                f"{len(row)}: {delimiter.join(row)!r:.80}"
            )
        name = re.sub(r"#\d+$", "", row[image])  # As Flickr8k numbers its captions.
        if not name.strip():
            raise ValueError(f"{where}: expected the name of an image, received none")
        texts = [text for i in captions for text in _cell(row[i])]
        given = int(row[number]) if row[number].isdecimal() and len(row[number]) < 16 else None
        side = "" if split is None else row[split]
        entries.append(_Entry(where, name, texts, side, given))
    names = {entry.name for entry in entries}
    if len({(entry.name, entry.image_id) for entry in entries}) > len(names) or len(
        {entry.image_id for entry in entries}
    ) < len(names):  # Numbers of captions, say.
        entries = [replace(entry, image_id=None) for entry in entries]
    return form, entries


def _cell(text: str) -> list[str]:
    """Returns the captions of a table's cell, which may be a list in JSON or Python."""
    text = text.strip()
    if text.startswith(('["', "['")) and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                found = parse(text)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                found = None
        if isinstance(found, list) and all(isinstance(each, str) for each in found):
            return found
    return [text]


def read_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the place and the fields of each row of a table that is not blank.

    Args:
        path: of the table, for the places and errors.
        text: its content.
        delimiter: between the fields; those between tabs need no quotes.

    Raises:
        ValueError: a quote that is never closed.
    """
    options: list[dict[str, Any]] = [{"strict": True}, {}]
    if delimiter == "\t":  # Whose fields need no quotes, so that a caption may begin with one.
        options[1] = {"quoting": csv.QUOTE_NONE}
    for attempt in options:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **attempt)
        rows, began = [], 1
        try:
            for row in reader:
                if any(field.strip() for field in row):
                    rows.append((f"{path}, line {began}", row))
                began = reader.line_num + 1
        except csv.Error as error:
            unclosed = "unexpected end of data" in str(error) and delimiter != "\t"
            if attempt is options[-1] or unclosed:
                reason = "a quote that is never closed" if unclosed else str(error)
                raise ValueError(
                    f"{path}, line {began}: expected a row of a table, received {reason}"
                ) from None
        else:
            yield from rows
            return


def _find_columns(header: Sequence[str]) -> tuple[int | None, list[int], int | None]:
    """Returns the positions of the columns of images, captions and splits, where there are any."""
    image, captions, split = (
        find_column(header, names) for names in (IMAGE_COLUMNS, CAPTION_COLUMNS, SPLIT_COLUMNS)
    )
    return image[0] if image else None, captions, split[0] if split else None


def _no_columns(header: Sequence[str]) -> str:
    image, captions, _ = _find_columns(header)
    lacking = []
    if image is None:
        lacking.append("a column of images (image, file, path, filename)")
    if not captions:
        lacking.append("a column of captions (caption, captions, text)")
    received = ", ".join(name.strip() for name in header)
    return f"expected {' and '.join(lacking)}, received {received!r:.200}"


def _is_image_name(text: str) -> bool:
    name = re.sub(r"#\d+$", "", text.strip().lower())
    return PurePosixPath(name).suffix in IMAGE_SUFFIXES


def _read_folder(root: Path) -> list[_Entry]:
    """Returns the entries of images, and those of texts without an image, which have no name."""
    entries = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        texts, images = {}, {}
        for name in sorted(name for name in names if not name.startswith(".")):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                images[name] = normal_name(stem)
            elif suffix.lower() == ".txt" and stem.lower() not in _NO_CAPTIONS:
                texts[normal_name(stem)] = Path(folder, name)
        for name, stem in images.items():
            path = Path(folder, name)
            found = [line for _, line in read_lines(texts[stem])] if stem in texts else []
            entries.append(_Entry(str(path), path.relative_to(root).as_posix(), found))
        alone = texts.keys() - images.values()
        entries += [_Entry(str(texts[stem]), "", []) for stem in sorted(alone)]
    names = sorted(entry.name for entry in entries if entry.name)
    if not names:
        raise ValueError(
            f"{root}: expected images ({', '.join(IMAGE_SUFFIXES[:4])}, …), received a folder "
            "without any"
        )
    if not any(entry.captions for entry in entries):
        raise ValueError(
            f"{root}: expected captions, received {len(names)} images without any "
            f"({first_few(names)}): put those of NAME.jpg into NAME.txt beside it, one a line, or "
            "give a list of images and captions"
        )
    if all(name.split("/")[0].lower() in SPLITS for name in names):
        for entry in entries:
            entry.split = entry.name.split("/")[0]
    return sorted(entries, key=lambda entry: (entry.name, entry.where))


def _collect(root: Path, source: str | Path, form: str, entries: Sequence[_Entry]) -> ImageCaptions:
    """Returns the entries of the same image as one, without what has no words or repeats."""
    captions: dict[str, list[str]] = {}
    ids: dict[str, int | str] = {}
    splits: dict[str, str] = {}
    two_sides: dict[str, str] = {}
    wordless, repeated = [], []
    for entry in entries:
        name, split = _normalise(root, entry), _split(entry)
        if not name:
            continue
        if splits.setdefault(name, split) != split:
            two_sides.setdefault(name, f"{name} ({splits[name] or 'none'}, {split or 'none'})")
        of_image = captions.setdefault(name, [])
        ids.setdefault(name, name if entry.image_id is None else entry.image_id)
        for text in map(str.strip, entry.captions):
            if not split_words(text):
                wordless.append(name)
            elif text in of_image and entry.is_part:
                repeated.append(name)
            else:
                of_image.append(text)
    check_names(captions, str(source))
    if two_sides:
        raise ValueError(
            f"{source}: expected each image in one split, received {len(two_sides)} images in two: "
            f"{first_few([*two_sides.values()])}"
        )
    names = [name for name, texts in captions.items() if texts]
    if not names:
        if not captions:
            raise ValueError(f"{source}: expected images and captions, received none")
        raise ValueError(
            f"{source}: expected captions with words, received {len(captions)} images without any: "
            f"{first_few([*captions])}"
        )
    bare = [name for name in names if not splits[name]]
    if 0 < len(bare) < len(names):
        raise ValueError(
            f"{source}: expected a split of every image or of none, received {len(bare)} images "
            f"without one: {first_few(bare)}"
        )
    images = CaptionedImages(
        paths=tuple(str(root / name) for name in names),
        captions=tuple(tuple(captions[name]) for name in names),
        image_ids=tuple(ids[name] for name in names),
        missing=tuple(entry.where for entry in entries if not entry.name),
    )
    return ImageCaptions(
        images,
        tuple(names),
        tuple(splits[name] for name in names),
        form,
        str(source),
        uncaptioned=tuple(name for name, texts in captions.items() if not texts),
        wordless=tuple(wordless),
        repeated=tuple(repeated),
    )


def _normalise(root: Path, entry: _Entry) -> str:
    """Returns an image's name in one form, so that equal files have equal names."""
    name = entry.name.strip()
    if not name:  # A text without an image.
        return ""
    if name != entry.name and (root / entry.name).exists():
        name = entry.name  # Blanks around a name are part of it.
    if "\\" in name and not (root / name).exists():
        name = name.replace("\\", "/")  # As Windows separates folders.
    name, folder = os.path.normpath(name), os.path.abspath(root)
    if os.path.isabs(name) and Path(name).is_relative_to(folder):
        name = os.path.relpath(name, folder)
    return normal_name(name)


def _split(entry: _Entry) -> str:
    """Returns the split of an entry under its name here, or an empty name."""
    split = entry.split.strip()
    if split.lower() not in SPLITS and split:
        raise ValueError(
            f"{entry.where}: expected a split (train, validation, test), received {split!r}"
        )
    return SPLITS.get(split.lower(), "")
