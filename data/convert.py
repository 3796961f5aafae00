r"""Converts a data set to sharded ArrayRecord files, from which trainings read faster.

    python -m data.convert ROOT --out=CONVERTED
    python -m data.convert ROOT --out=CONVERTED --frames=jpeg --short_side=240
    python -m launch.train --config=experiments/video_classification.py --workdir=runs/mine \
        --config.data.root=CONVERTED

``ROOT`` and the lists are those of ``python -m data.check``: videos, images or sounds in class
folders, in UCF101's layout or in a list; captioned images; lines of text; speech with texts. Names,
labels, groups, splits, folds, captions and texts are kept, so that a training on ``CONVERTED`` sees
what it would see on ``ROOT``: the same files in the same splits, and of stored bytes the same
batches.

Files are stored as they are, each with what a training needs to know of it before it decodes: of a
video the number of frames, which else takes decoding it once. ``--frames=jpeg`` stores every frame
of a video as a JPEG picture, of which a training decodes only those of its clip; images are stored
as JPEG, too. That loses some detail (``--quality``), and takes more space than a video's own codec.

Every file is decoded once. One that cannot be is left out, counted, and named with the reason in
``manifest.json``. A conversion that was interrupted continues by the same command, and the result
is that of an uninterrupted one, byte for byte. With other files, labels or options, or after files
have changed, it is refused: that takes another ``--out``.

``convert_sources`` stores the examples of any source.
"""

import argparse
import csv
import functools
import hashlib
import io
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from data.audio.decoding import read_sound
from data.batches import Source
from data.captions.images import read_image
from data.check import KINDS, TEXT_FILES, recognise
from data.datasets import flickr8k, ucf101
from data.datasets.captioned_images import CaptionedImages
from data.datasets.image_captions import ImageCaptions, read_captioned_images, write_list
from data.datasets.labelled_files import (
    CONVERTED_CLASSES,
    CONVERTED_LIST,
    ENDINGS,
    LabelledFiles,
    find_listed,
    read_labelled_files,
    relative_name,
)
from data.datasets.line_folder import CONVERTED_LINES, TextLines, read_text_lines
from data.datasets.list_file import read_list, some
from data.features import pack_example
from data.files import Record, normal_name, pack_file, read_lines, read_text, write_atomically
from data.loader import available_cpus
from data.shards import Item, Packed, Written, write_shards
from data.video.decoding import decode_all, probe

FRAMES = ("original", "jpeg")
"""Forms in which videos and images are stored."""
CAPTIONS = "captions.csv"
"""List of a converted folder of captioned images, which ``read_captioned_images`` finds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts a data set; returns the exit code, 1 where nothing could be converted."""
    parser = argparse.ArgumentParser(
        prog="python -m data.convert",
        description="Converts a data set to sharded ArrayRecord files.",
    )
    add = parser.add_argument
    add("root", metavar="ROOT", nargs="?", default="", help="folder of the data")
    add("--out", required=True, help="folder of the result: new, or of an interrupted conversion")
    add("--list", default="", help="list of files with labels, captions or texts")
    add("--validation_list", default="", help="list of validation files; --list then trains")
    add("--test_list", default="", help="list of test files; --list then trains")
    add("--class_list", default="", help="names of classes, for lists with numbers")
    add("--kind", choices=KINDS, help="kind of the data; recognised if it is not given")
    add("--group_pattern", default="", help="regular expression of recording groups in names")
    add("--frames", choices=FRAMES, default="original", help="jpeg: frames instead of files")
    add("--short_side", type=int, default=0, help="pixels, of JPEG frames; 0: as they are")
    add("--quality", type=int, default=95, help="of JPEG frames, 1 to 95")
    add("--shard_mb", type=int, default=256, help="megabytes of files in a shard, about")
    add("--workers", type=int, default=-1, help="processes; -1: one for each CPU core")
    options = parser.parse_args(arguments)
    if not options.root and not options.list:
        parser.error("expected ROOT, a folder of data, or --list=FILE, received neither")
    begin = time.perf_counter()
    # disable=None: only on a terminal.
    with tqdm(unit="file", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            manifest = convert(
                options.root,
                options.out,
                options.list,
                kind=options.kind or "",
                validation_list=options.validation_list,
                test_list=options.test_list,
                class_list=options.class_list,
                group_pattern=options.group_pattern,
                frames=options.frames,
                short_side=options.short_side,
                quality=options.quality,
                shard_bytes=options.shard_mb * 2**20,
                workers=available_cpus() if options.workers < 0 else options.workers,
                on_progress=show,
            )
        except (OSError, ValueError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    seconds = time.perf_counter() - begin
    shards = manifest["shards"]
    print(f"{manifest['kind']:<10} {manifest['files']} files, {manifest['layout']}")
    print(f"shards     {len(shards)}, {sum(s['bytes'] for s in shards):,} bytes, in {options.out}")
    if failed := manifest["failed"]:
        told = some([f"{row['file']} ({row['reason']})" for row in failed])
        print(f"left out   {len(failed)} files that cannot be read: {told}")
    print(f"seconds    {seconds:.1f}")
    return 0


def convert(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    list_file: str = "",
    *,
    kind: str = "",
    validation_list: str = "",
    test_list: str = "",
    class_list: str = "",
    group_pattern: str = "",
    frames: str = "original",
    short_side: int = 0,
    quality: int = 95,
    shard_bytes: int = 2**28,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Converts a data set, or continues to; returns the manifest.

    Args:
        root: folder of the data; empty with a list: the list's folder.
        out: folder of the result.
        list_file: list of files with labels, captions or texts.
        kind: one of ``data.check.KINDS``; empty: recognised.
        validation_list: list of the validation files of labelled data.
        test_list: likewise of the test files.
        class_list: names of the classes, for lists with numbers.
        group_pattern: regular expression of the recording group in a name.
        frames: "original", or "jpeg" for frames of videos, and images, as JPEG.
        short_side: pixels to which larger frames are scaled; 0: none. JPEG only.
        quality: of JPEG, 1 to 95.
        shard_bytes: bytes of files in a shard, about.
        workers: processes; 0: this one.
        on_progress: called with (files done, files) after each shard.

    Raises:
        FileNotFoundError: no such folder, list or listed file.
        ValueError: options out of range, data that no reader reads, files outside of the folder, or
            as ``data.shards.write_shards``.
        RuntimeError: a worker was killed.
    """
    if frames not in FRAMES:
        raise ValueError(f"frames: expected {' or '.join(FRAMES)}, received {frames!r}")
    if short_side < 0 or not 1 <= quality <= 95:
        raise ValueError(
            "short_side, quality: expected 0 or more pixels, and 1 to 95, received "
            f"{short_side} and {quality}"
        )
    if frames == "original" and short_side:
        raise ValueError(
            f"short_side: expected none with frames=original, which stores the files as they are, "
            f"received {short_side}; give --frames=jpeg"
        )
    kind = kind or recognise(str(root), list_file)
    base = Path(root) if str(root) else Path(list_file).parent
    if kind == "captions":
        found = _captioned(base, list_file)
    elif kind in TEXT_FILES:
        lines = read_text_lines(
            root,
            list_file,
            group_pattern=group_pattern,
            keep_empty=True,
            missing="skip",
            kind=TEXT_FILES[kind],
        )
        found = _Found(
            lines.names, lines.paths, lines.layout, functools.partial(_write_lines, lines)
        )
    else:
        found = _labelled(
            root,
            kind,
            list_file=list_file,
            validation_list=validation_list,
            test_list=test_list,
            class_list=class_list,
            group_pattern=group_pattern,
        )
    media = {"video": "video", "sounds": "sound", "speech": "sound"}.get(kind, "image")
    if media == "sound" and frames != "original":
        raise ValueError(f"frames: expected original for {kind}, received {frames}")
    _check_places(found, base, Path(out))
    preprocessing: dict[str, Any] = {"frames": frames}
    if frames == "jpeg":
        decoder = f"PyAV {av.__version__}" if media == "video" else f"Pillow {PIL.__version__}"
        preprocessing |= {"short_side": short_side, "quality": quality, "decoder": decoder}
    status = [os.stat(path) for path in found.paths]
    rows = zip(found.names, found.paths, status, strict=True)
    return write_shards(
        out,
        [Item(name, path, s.st_size, s.st_mtime_ns) for name, path, s in rows],
        _PackFile(media, frames, short_side, quality),
        described={
            "kind": kind,
            "layout": found.layout,
            "preprocessing": preprocessing,
            "lists_sha256": _digest_lists(found),
        },
        finish=functools.partial(_finish, found, Path(out)),
        shard_bytes=shard_bytes,
        workers=workers,
        on_progress=on_progress,
    )


def convert_sources(
    sources: Mapping[str, Source],
    out: str | os.PathLike[str],
    *,
    described: Mapping[str, Any] | None = None,
    shard_examples: int = 1024,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Stores the examples of any source, which ``StoredExamples`` reads; returns the manifest.

    Args:
        sources: of each split by its name; picklable with ``workers``. Examples are numeric arrays
            (``data.batches``), and those of one index are always the same.
        out: folder of the result.
        described: what tells these examples from others, for JSON; part of the manifest.
        shard_examples: examples in a shard.
        workers: processes; 0: this one.
        on_progress: called with (examples done, examples) after each shard.

    Raises:
        ValueError: as ``data.shards.write_shards``, or names of splits with "/".
        RuntimeError: a worker was killed.
    """
    if any("/" in split or not split for split in sources):
        raise ValueError(f"sources: expected names of splits without '/', received {[*sources]}")
    items = [
        Item(f"{split}/{index:08d}", (split, index), 1)
        for split, source in sources.items()
        for index in range(len(source))
    ]
    counts = {split: len(source) for split, source in sources.items()}
    return write_shards(
        out,
        items,
        _PackExample(dict(sources)),
        described={
            "kind": "examples",
            "layout": "examples",
            "preprocessing": dict(described or {}),
            "splits": counts,
        },
        shard_bytes=shard_examples,
        workers=workers,
        on_progress=on_progress,
    )


# ---- Records -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PackFile:
    """Reads, checks and packs one file; see ``convert``."""

    media: str
    frames: str
    short_side: int
    quality: int

    def __call__(self, item: Item) -> Packed:
        record = self._store(item.source)
        digest, size = hashlib.sha256(), 0
        for part in [record.content] if record.pictures is None else record.pictures:
            digest.update(part)
            size += len(part)
        return Packed(pack_file(item.name, record), size, digest.hexdigest())

    def _store(self, path: str) -> Record:
        if self.media == "sound":
            read_sound(path, None)
            return Record(Path(path).read_bytes())
        if self.media == "image":
            pixels = read_image(path)
            if self.frames == "original":
                return Record(Path(path).read_bytes())
            return Record(self._encode(pixels))
        info = probe(path)
        if self.frames == "original":
            measures = (info.num_frames, info.rate, info.height, info.width)
            return Record(Path(path).read_bytes(), None, measures)
        pictures = []
        for frame in decode_all(path, short_side=self._scaled(info.height, info.width)):
            pictures.append(self._encode(frame))
            height, width = frame.shape[:2]
        return Record(b"", tuple(pictures), (len(pictures), info.rate, height, width))

    def _scaled(self, height: int, width: int) -> int | None:
        """Returns the short side of the result; None if it is not scaled, as small frames."""
        return self.short_side if 0 < self.short_side < min(height, width) else None

    def _encode(self, pixels: np.ndarray) -> bytes:
        image = Image.fromarray(pixels)
        side = self._scaled(image.height, image.width) if self.media == "image" else None
        if side is not None:
            scale = side / min(image.size)
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            image = image.resize(size, Image.Resampling.BICUBIC)
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=self.quality)
        return encoded.getvalue()


@dataclass(frozen=True)
class _PackExample:
    sources: Mapping[str, Source]

    def __call__(self, item: Item) -> Packed:
        split, index = item.source
        packed = pack_example(index, self.sources[split][index])
        return Packed(packed, len(packed), hashlib.sha256(packed).hexdigest())


# ---- Readers, and the lists that are stored with the files -------------------------------------


@dataclass(frozen=True)
class _Found:
    """Files of a data set.

    Attributes:
        names: of each, relative to the folder.
        paths: the files.
        layout: how they were found, in words.
        write: writes the lists into a folder, of the files with the given names; returns entries of
            the manifest.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    layout: str
    write: Callable[[Path, frozenset[str]], Mapping[str, Any]]


def _finish(found: _Found, out: Path, written: Written) -> Mapping[str, Any]:
    return found.write(out, frozenset(row["name"] for row in written.rows))


def _digest_lists(found: _Found) -> str:
    """Returns a digest of labels, groups, splits, folds, captions and texts of all files.

    It is that of the lists as they are written, so that it covers all that a training reads there.
    """
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        found.write(Path(folder), frozenset(found.names))
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_places(found: _Found, base: Path, out: Path) -> None:
    if out.resolve() == base.resolve() or base.resolve() in out.resolve().parents:
        raise ValueError(
            f"out: expected a folder outside of the data, {base}, received {out}, whose files "
            "would be taken for data"
        )
    folders = [n for n, path in zip(found.names, found.paths, strict=True) if os.path.isdir(path)]
    if folders:
        raise ValueError(
            f"root: expected videos as files, received {len(folders)} folders of frames: "
            f"{some(folders)}; trainings read these as they are; --kind=image stores images"
        )
    outside = [name for name in found.names if name.startswith(("/", "../"))]
    if outside:
        raise ValueError(
            f"root: expected files below the folder {base}, received {len(outside)} elsewhere: "
            f"{some(outside)}; give the folder that holds all of them"
        )


def _labelled(
    root: str | os.PathLike[str], kind: str, *, list_file: str, group_pattern: str, **lists: Any
) -> _Found:
    read = functools.partial(
        read_labelled_files,
        root,
        kind="recording" if kind == "sounds" else kind,
        list_file=list_file,
        group_pattern=group_pattern,
        **lists,
    )
    base = Path(root) if str(root) else Path(list_file).parent
    folder = next((n for n in ucf101.LIST_FOLDERS if (base / n / "classInd.txt").is_file()), "")
    if kind == "video" and folder and not list_file:
        return _ucf101(base, folder, read)
    folds: dict[str, str] = {}
    if list_file and not any(lists[n] for n in ("validation_list", "test_list")):
        rows = read_list(list_file, ENDINGS["recording" if kind == "sounds" else kind])
        if all(row.fold and not row.split for row in rows):
            places = find_listed(base, [row.path for row in rows])
            folds = {relative_name(places[r.path] or r.path, base): r.fold for r in rows}
    numbers = sorted({int(fold) for fold in folds.values() if fold.isdecimal()})
    files = read(fold=numbers[0]) if numbers else read()
    layout = "list" if list_file else files.layout
    write = functools.partial(_write_labelled, files, folds)
    return _Found(files.names, files.paths, layout, write)


def _ucf101(base: Path, folder: str, read: Callable[..., LabelledFiles]) -> _Found:
    """Returns the videos of all lists in UCF101's layout."""
    numbers = sorted(
        int(path.stem.removeprefix("trainlist"))
        for path in (base / folder).glob("trainlist*.txt")
        if path.stem.removeprefix("trainlist").isdecimal()
    )
    paths: dict[str, str] = {}
    for number in numbers or [1]:
        files = read(fold=number)
        paths.update(zip(files.names, files.paths, strict=True))
    names = tuple(sorted(paths))
    layout = f"UCF101's layout, {len(numbers)} lists"
    write = functools.partial(_write_ucf101, base, folder, files.class_names)
    return _Found(names, tuple(paths[name] for name in names), layout, write)


def _write_ucf101(
    base: Path, folder: str, class_names: Sequence[str], out: Path, stored: frozenset[str]
) -> Mapping[str, Any]:
    """Writes the lists, without files that could not be stored, and the folders of classes."""
    videos = next(iter(stored)).split("/")[0]
    known = {name.removeprefix(f"{videos}/") for name in stored}
    (out / folder).mkdir(exist_ok=True)
    for path in sorted((base / folder).glob("*.txt")):
        text = read_text(path)
        if path.name != "classInd.txt":
            lines = [line for _, line in read_lines(path)]
            text = "".join(f"{line}\n" for line in lines if _listed(line, known))
        write_atomically(
            out / folder / path.name,
            functools.partial(_write_text, text=text),
        )
    for name in class_names:
        (out / videos / name).mkdir(parents=True, exist_ok=True)
        (out / videos / name / ".keep").touch()  # Archives and object stores keep no empty folder.
    counts = Counter(name.split("/")[0] for name in known)
    return {"classes": {name: counts[name] for name in class_names}}


def _listed(line: str, known: set[str]) -> bool:
    """Returns True if a line of a split names a stored file, with or without a label."""
    first, _, last = line.rpartition(" ")
    return normal_name(first.strip() if last.isdecimal() and first else line) in known


def _write_labelled(
    files: LabelledFiles, folds: Mapping[str, str], out: Path, stored: frozenset[str]
) -> Mapping[str, Any]:
    kept = files.take([i for i, name in enumerate(files.names) if name in stored])
    labels = [kept.class_names[label] for label in kept.labels]
    columns = {
        "path": list(kept.names),
        "label": labels,
        "group": list(kept.groups),
        # The splits of a fold are made of the column of folds.
        "split": [] if folds else list(kept.splits),
        "fold": [folds[name] for name in kept.names] if folds else [],
    }
    _write_table(out / CONVERTED_LIST, columns)
    text = "".join(f"{number}\t{name}\n" for number, name in enumerate(kept.class_names))
    write_atomically(out / CONVERTED_CLASSES, functools.partial(_write_text, text=text))
    counts = Counter(labels)
    return {
        "classes": {name: counts[name] for name in kept.class_names},
        "groups": len({group for group in kept.groups if group}),
        "splits": {} if folds else dict(Counter(split for split in kept.splits if split)),
    }


def _captioned(base: Path, list_file: str) -> _Found:
    """Returns captioned images of a list or folder, or of Flickr8k."""
    if not list_file and (base / "Flickr8k_text").is_dir():
        listed = _flickr8k(base)
    else:
        listed = read_captioned_images(base, list_file, missing="skip")
    write = functools.partial(_write_captions, listed)
    return _Found(listed.names, listed.images.paths, listed.form, write)


def _flickr8k(base: Path) -> ImageCaptions:
    parts: dict[str, CaptionedImages] = {}
    for split in ("train", "validation", "test"):
        try:
            parts[split] = flickr8k.read_split(base, split, missing="skip")
        except FileNotFoundError:  # The test images, say, are not everywhere.
            continue
    paths = tuple(path for part in parts.values() for path in part.paths)
    if not paths:
        raise FileNotFoundError(f"{base}: expected the lists of Flickr8k's splits")
    names = tuple(relative_name(path, base) for path in paths)
    captions = tuple(texts for part in parts.values() for texts in part.captions)
    return ImageCaptions(
        CaptionedImages(paths, captions, names),
        names,
        tuple(split for split, part in parts.items() for _ in part.paths),
        "Flickr8k",
        str(base),
    )


def _write_captions(listed: ImageCaptions, out: Path, stored: frozenset[str]) -> Mapping[str, Any]:
    kept = listed.take([i for i, n in enumerate(listed.names) if n in stored], listed.splits)
    write_list(out / CAPTIONS, kept)
    return {
        "captions": sum(map(len, kept.images.captions)),
        "splits": dict(Counter(split for split in kept.splits if split)),
    }


def _write_lines(lines: TextLines, out: Path, stored: frozenset[str]) -> Mapping[str, Any]:
    kept = lines.take([i for i, name in enumerate(lines.names) if name in stored])
    columns = {
        "file": list(kept.names),
        "text": list(kept.texts),
        "group": list(kept.groups),
        "split": list(kept.splits),
    }
    _write_table(out / CONVERTED_LINES, columns)
    return {
        "groups": len({group for group in kept.groups if group}),
        "splits": dict(Counter(split for split in kept.splits if split)),
    }


def _write_table(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Writes the columns that have a cell with content, as CSV."""
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(filled)
    writer.writerows(zip(*filled.values(), strict=True))
    write_atomically(path, functools.partial(_write_text, text=text.getvalue()))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
