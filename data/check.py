r"""Reads a data set before a training does, and tells in one table what training would trip over.

    python -m data.check ROOT
    python -m data.check ROOT --list=FILE --group_pattern='_g(\d+)_' --json=findings.json
    python -m data.check ROOT --dataset=hmdb51 --fold=1 --flow=FLOW

``ROOT`` is a folder of videos, images or sounds in class folders, in UCF101's layout, of images
with captions, of text lines, or of speech with texts; ``--list`` a list of any form that trainings
read; ``--dataset`` names a published data set of videos, which is read in its own format, and
``--flow`` the folder of their optical flow. Every file is decoded once. The exit code is 1 where
training would fail (rows ERROR), and 0 otherwise, also with warnings.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import sys
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from data.audio import decoding as sound_decoding
from data.captions.images import FORMATS
from data.datasets import flickr8k, ucf101
from data.datasets.action_sets import ACTION_SETS
from data.datasets.image_captions import (
    IMAGE_SUFFIXES,
    LIST_NAMES,
    LIST_SUFFIXES,
    ImageCaptions,
    read_captioned_images,
)
from data.datasets.labelled_files import (
    AUDIO_ENDINGS,
    ENDINGS,
    IMAGE_ENDINGS,
    VIDEO_ENDINGS,
    LabelledFiles,
    read_labelled_files,
)
from data.datasets.line_folder import TextLines, read_text_lines
from data.datasets.list_file import read_list
from data.files import normal_name, read_manifest, read_text
from data.findings import ERROR, OK, SPLITS, WARNING, Dataset, Finding, count, find_problems
from data.inspection import (
    Inspection,
    inspect_all,
    inspect_image,
    inspect_sound,
    inspect_video,
)
from data.likeness import find_identical
from data.loader import available_cpus
from data.video import decoding
from data.video.flow import FlowImages
from data.video.frame_folders import list_frames

KINDS = ("video", "image", "captions", "lines", "sounds", "speech")

TEXT_FILES: dict[str, Literal["image", "recording"]] = {"lines": "image", "speech": "recording"}
"""Kinds with texts, and their files."""
INSPECT = {"video": inspect_video, "sounds": inspect_sound, "speech": inspect_sound}
"""Functions that read a file, by kind; others are images."""

_SOUNDS = frozenset(AUDIO_ENDINGS) - frozenset(VIDEO_ENDINGS)
# Endings of files in a list, between its delimiters.
_ENDING = re.compile(r"\.[A-Za-z0-9]{2,5}(?=[\s\"',;|]|$)")
_LINE_RATIO = 3  # of width to height from which images with texts are lines of text
_SAMPLED = 32  # images whose shape is looked at
_SHOWN = 3  # files that a row names; the JSON file names all


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data.check",
        description="Tells what a training would trip over in a data set.",
    )
    add = parser.add_argument
    add("root", metavar="ROOT", nargs="?", default="", help="folder of the data")
    add("--list", default="", help="list of files with labels, captions or texts")
    add("--validation_list", default="", help="list of validation files; --list then trains")
    add("--test_list", default="", help="list of test files; --list then trains")
    add("--class_list", default="", help="names of classes, for lists with numbers")
    add("--dataset", choices=sorted(ACTION_SETS), help="published data set of videos in ROOT")
    add("--flow", default="", help="folder of the optical flow of videos")
    add("--kind", choices=KINDS, help="kind of the data; recognised if it is not given")
    add("--group_pattern", default="", help="regular expression of recording groups in names")
    add("--fold", type=int, default=1, help="number of UCF101's lists, of HMDB51's split")
    add("--threads", type=int, default=0, help="threads that decode; 0: one more than CPU cores")
    add("--json", default="", help="file for all findings, with every file's properties")
    options = parser.parse_args(arguments)
    if not options.root and not options.list:
        parser.error("expected ROOT, a folder of data, or --list=FILE, received neither")
    findings, described = check(
        options.root,
        options.list,
        kind=options.kind or "",
        dataset=options.dataset or "",
        flow=options.flow,
        validation_list=options.validation_list,
        test_list=options.test_list,
        class_list=options.class_list,
        group_pattern=options.group_pattern,
        fold=options.fold,
        num_threads=options.threads,
    )
    print(format_table(findings))
    if options.json:
        record = {"findings": [asdict(finding) for finding in findings], "files": described}
        try:
            Path(options.json).write_text(json.dumps(record, indent=1), encoding="utf-8")
        except OSError as error:
            print(f"error: --json: {error}", file=sys.stderr)
            return 1
    return 1 if any(finding.level == ERROR for finding in findings) else 0


def check(
    root: str,
    list_file: str = "",
    *,
    kind: str = "",
    dataset: str = "",
    flow: str = "",
    validation_list: str = "",
    test_list: str = "",
    class_list: str = "",
    group_pattern: str = "",
    fold: int = 1,
    num_threads: int = 0,
) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Reads a data set and returns its findings, and the properties of each file for JSON.

    Args:
        root: folder of the data; empty with a list: the list's folder.
        list_file: list of files with labels, captions or texts.
        kind: ``video``, ``image``, ``captions``, ``lines``, ``sounds`` (with labels) or ``speech``
            (with texts); empty: recognised.
        dataset: published data set of videos, one of ``ACTION_SETS``; empty: files.
        flow: folder of the optical flow of videos; empty: none is read.
        validation_list: list of the validation files of labelled data.
        test_list: likewise of the test files.
        class_list: names of the classes, for lists with numbers.
        group_pattern: regular expression of the recording group in a name; empty: the list's column
            or one of UCF101's and UT-Interaction's, if all names fit.
        fold: number of UCF101's lists, or of the split of another published data set, from 1.
        num_threads: threads that decode; 0: one more than CPU cores.
    """
    try:
        kind = "video" if dataset else kind or recognise(root, list_file)
        if dataset:
            found = _labelled(kind, ACTION_SETS[dataset](root, fold))
        elif kind == "captions":
            found = _read_captions(root, list_file)
        elif kind in TEXT_FILES:
            lines = read_text_lines(
                root,
                list_file,
                group_pattern=group_pattern,
                missing="skip",
                kind=TEXT_FILES[kind],
            )
            found = _of_lines(lines, kind)
        else:
            files = read_labelled_files(
                root,
                kind="recording" if kind == "sounds" else kind,
                list_file=list_file,
                validation_list=validation_list,
                test_list=test_list,
                class_list=class_list,
                group_pattern=group_pattern,
                fold=fold,
            )
            found = _labelled(kind, files)
    # Any other error is as much a reason why a training could not read the data.
    except Exception as error:
        reason = str(error) if isinstance(error, OSError | ValueError) else repr(error)
        return [Finding("data set", ERROR, reason)], []
    threads = num_threads or available_cpus() + 1
    inspected: list[Inspection] = [Inspection()] * len(found.paths)
    inspect = INSPECT.get(found.kind, inspect_image)
    with _damages_collected() as damages, ThreadPoolExecutor(threads) as executor:
        # disable=None: only on a terminal.
        with tqdm(total=len(inspected), unit="file", disable=None, leave=False) as bar:
            for index, properties in inspect_all(found.paths, inspect, executor, 4 * threads):
                inspected[index] = properties
                bar.update()
        identical = find_identical(
            found.paths,
            [
                -1 if os.path.isdir(path) else properties.num_bytes
                for path, properties in zip(found.paths, inspected, strict=True)
            ],
            executor,
        )
    if damages:
        names = dict(zip(found.paths, found.names, strict=True))
        damaged = tuple(f"{names.get(path, path)} ({x})" for path, x in sorted(damages.items()))
        text = f"readable, but damaged: {count(len(damaged), 'file')}"
        finding = Finding("damaged", WARNING, text, damaged)
        found = replace(found, findings=(*found.findings, finding))
    if flow and found.kind == "video":
        finding = _check_flow(found, inspected, FlowImages(flow, root))
        found = replace(found, findings=(*found.findings, finding))
    findings = find_problems(found, inspected, identical)
    rows = zip(found.names, found.splits, inspected, strict=True)
    described = [{"name": n, "split": s, **properties.describe()} for n, s, properties in rows]
    return findings, described


def format_table(findings: Sequence[Finding]) -> str:
    """Returns the findings as text: level, what was looked at, and what was found."""
    width = max(60, shutil.get_terminal_size((100, 0)).columns)
    indent = 24
    lines = []
    for finding in findings:
        head = f"{finding.level:<8} {finding.check:<14} "
        text = _printable(finding.text)
        if finding.files:
            more = ", …" if len(finding.files) > _SHOWN else ""
            text += " " if text.endswith(" of") else ": "
            text += ", ".join(map(_printable, finding.files[:_SHOWN])) + more
        lines += textwrap.wrap(
            text,
            width,
            initial_indent=head,
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    counts = Counter(finding.level for finding in findings)
    warned = count(counts[WARNING], "warning")
    if counts[ERROR]:
        lines.append(f"\nTraining would fail: {count(counts[ERROR], 'error')}, {warned}.")
    elif counts[WARNING]:
        lines.append(f"\nTraining can start; {warned}.")
    else:
        lines.append("\nNothing is wrong.")
    return "\n".join(lines)


# ---- Readers ---------------------------------------------------------------------------------


def recognise(root: str, list_file: str = "") -> str:
    """Returns the kind of a data set, one of ``KINDS``.

    Images with texts are lines if a text is named ``NAME.gt.txt``, or if they are wide; sounds with
    texts beside half of them or more are speech. Images of folders below those of classes, numbered
    without a gap, are the frames of videos.

    Raises:
        FileNotFoundError: there is no such folder or list.
        ValueError: nothing of a known kind.
    """
    if list_file:
        return _kind_of_list(root, list_file)
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"root: expected the folder of the data, received {root}, which "
            + ("is a file; give it as --list" if folder.is_file() else "does not exist")
        )
    if (manifest := read_manifest(folder)) is not None:
        return str(manifest["kind"])
    if any((folder / name / "classInd.txt").is_file() for name in ucf101.LIST_FOLDERS):
        return "video"
    if _is_flickr8k(folder):
        return "captions"
    if any((folder / (n + s)).is_file() for n in LIST_NAMES for s in LIST_SUFFIXES):
        return "captions"
    counts: Counter[str] = Counter()  # Of sounds "speech" and of images "text" have texts.
    images: list[str] = []
    for parent, _, names in os.walk(folder):
        stems = {os.path.splitext(name)[0] for name in names if name.lower().endswith(".txt")}
        truths = {stem[:-3] for stem in stems if stem.lower().endswith(".gt")}
        if truths:
            counts["truths"] += len(truths)
        for name in names:
            stem, ending = os.path.splitext(name)
            ending = ending.lower()
            if ending in _SOUNDS:
                counts["sounds"] += 1
                counts["speech"] += stem in stems or stem in truths
            # An animation is a video only among others.
            elif ending in VIDEO_ENDINGS and ending not in IMAGE_ENDINGS:
                counts["video"] += 1
            elif ending in IMAGE_ENDINGS:
                counts["image"] += 1
                if stem in stems:
                    counts["text"] += 1
                    images.append(os.path.join(parent, name))
    if not counts:
        listed = ", ".join((*VIDEO_ENDINGS[:4], *IMAGE_ENDINGS[:3], *AUDIO_ENDINGS[:3]))
        raise ValueError(
            f"root: expected videos, images or sounds ({listed}, …) below {root}, found none"
        )
    if counts["sounds"] > counts["video"] + counts["image"]:
        return "speech" if 2 * counts["speech"] >= counts["sounds"] else "sounds"
    if counts["truths"]:
        return "lines"
    if counts["video"] >= counts["image"]:
        return "video"
    if 2 * counts["text"] < counts["image"]:
        return "video" if _are_frames(folder, counts["image"]) else "image"
    return "lines" if _are_wide(images) else "captions"


def _are_frames(root: Path, num_images: int) -> bool:
    """Returns True if most images lie in folders of frames, as trainings on videos find them."""
    try:
        videos = read_labelled_files(root, kind="video").paths
    except (ValueError, OSError):
        return False
    series = 0
    for path in filter(os.path.isdir, videos):
        with contextlib.suppress(decoding.VideoError):  # Images of several names.
            names = list_frames(path)
            numbers = [int(re.findall(r"\d+", Path(name).stem)[-1]) for name in names]
            # Not so of images that have lost some, or were drawn from a larger data set.
            if len({b - a for a, b in itertools.pairwise(numbers)}) == 1:
                series += len(names)
    return 2 * series > num_images


def _kind_of_list(root: str, list_file: str) -> str:
    path = Path(root, list_file) if not Path(list_file).exists() else Path(list_file)
    content = read_text(path)
    if content.lstrip()[:1] in ("{", "["):
        return "captions"
    endings = Counter(ending.lower() for ending in _ENDING.findall(content))
    media = sum(endings[ending] for ending in {*AUDIO_ENDINGS, *VIDEO_ENDINGS, *IMAGE_ENDINGS})
    if 2 * sum(endings[ending] for ending in _SOUNDS) > media:
        return _kind_of_sounds(root, list_file)
    try:
        listed = read_captioned_images(root, list_file, missing="keep")
        # A list without a header may hold labels or captions beside its images.
        texts = [text for captions in listed.images.captions for text in captions]
        if "without a header" not in listed.form or not _are_labels(texts):
            return "lines" if _are_wide(listed.images.paths) else "captions"
    except (ValueError, OSError):
        pass
    endings = Counter(
        kind
        for row in read_list(path, {*VIDEO_ENDINGS, *IMAGE_ENDINGS})
        for kind in ("video", "image")
        if Path(row.path).suffix.lower() in ENDINGS[kind]
    )
    return "image" if endings["image"] > endings["video"] else "video"


def _kind_of_sounds(root: str, list_file: str) -> str:
    """Returns ``speech`` for a list of recordings with texts, ``sounds`` for one with labels."""
    try:
        listed = read_text_lines(root, list_file, kind="recording", missing="skip")
    except (ValueError, OSError):  # No column of texts.
        return "sounds"
    # A column "label" may hold either.
    return "sounds" if _are_labels(listed.texts) else "speech"


def _are_wide(paths: Sequence[str]) -> bool:
    """Returns True if images, of which some are looked at, are as wide as lines of text."""
    ratios = []
    for path in paths[:: max(1, len(paths) // _SAMPLED)]:
        with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as image:
            ratios.append(image.width / image.height)
    return bool(ratios) and sorted(ratios)[len(ratios) // 2] >= _LINE_RATIO


def _are_labels(texts: Sequence[str]) -> bool:
    words = sum(len(text.split()) for text in texts) / max(len(texts), 1)
    return words <= 2 or (words <= 3 and 2 * len(set(texts)) <= len(texts))


def _is_flickr8k(root: Path) -> bool:
    return any(
        (root / folder / "Flickr8k.token.txt").is_file() for folder in ("Flickr8k_text", ".")
    )


def _labelled(kind: str, files: LabelledFiles) -> Dataset:
    groups, pattern = files.groups, ""
    if not any(groups):
        groups, pattern = _guess_groups(files.names)
    if num_groups := len(set(groups) - {""}):
        where = f" by the pattern {pattern}" if pattern else ""
        if pattern and not any(files.splits):
            where += (
                "; a training keeps each on one side of its split with "
                f"--config.data.group_pattern={shlex.quote(pattern)}"
            )
        findings = [Finding("groups", OK, f"{count(num_groups, 'recording group')}{where}")]
        findings += _groups_on_two_sides(files.names, groups, files.splits)
    else:
        text = (
            "unknown: if several files show the same people or place, give --group_pattern, so "
            "that a split keeps them together"
        )
        findings = [Finding("groups", OK, text)]
    if folders := sum(map(os.path.isdir, files.paths)):
        text = f"{count(folders, 'folder')} of frames, each a video; --kind=image reads images"
        findings.append(Finding("reader", OK, text))
    findings += [Finding("reader", WARNING, note) for note in files.notes]
    return Dataset(
        kind,
        files.layout,
        files.paths,
        files.names,
        files.splits,
        files.labels,
        files.class_names,
        groups,
        findings=tuple(findings),
    )


def _check_flow(dataset: Dataset, inspected: Sequence[Inspection], flow: FlowImages) -> Finding:
    """Returns whether each readable video has all of its optical flow."""
    faults = []
    rows = zip(dataset.paths, dataset.names, inspected, strict=True)
    readable = [(path, name, found.num_frames) for path, name, found in rows if not found.error]
    for path, name, num_frames in readable:
        if fault := flow.find_fault(path, num_frames):
            faults.append(f"{name} ({fault})")
    if not faults:
        return Finding("flow", OK, f"all of {count(len(readable), 'video')} have flow")
    text = f"missing or damaged of {len(faults):,} of {count(len(readable), 'video')}"
    level = ERROR if len(faults) == len(readable) else WARNING
    return Finding("flow", level, text, tuple(faults))


def _groups_on_two_sides(
    names: Sequence[str], groups: Sequence[str], splits: Sequence[str]
) -> list[Finding]:
    sides = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        if group and split:
            sides[group].add(split)
    both = {group for group, found in sides.items() if len(found) > 1}
    if not both:
        return []
    files = tuple(name for name, group in zip(names, groups, strict=True) if group in both)
    text = f"in several splits: {count(len(both), 'group')} with {count(len(files), 'file')}"
    return [Finding("groups", WARNING, text, files)]


def _guess_groups(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Returns the groups of a known pattern that fits all names, and the pattern."""
    for pattern in (ucf101.UCF101_GROUP, ucf101.UT_INTERACTION_GROUP):
        found = [re.search(pattern, Path(name).stem) for name in names]
        groups = tuple(match[1] for match in found if match)
        if len(groups) == len(names) and 1 < len(set(groups)) < len(names):
            return groups, pattern
    return ("",) * len(names), ""


def _read_captions(root: str, list_file: str) -> Dataset:
    if not list_file and _is_flickr8k(Path(root)):
        return _read_flickr8k(Path(root))
    listed = read_captioned_images(root, list_file, missing="skip")
    findings = _of_captions(listed)
    if list_file or Path(listed.source).is_file():
        folder = Path(root) if root else Path(listed.source).parent
        known = {os.path.realpath(path) for path in listed.images.paths}
        found = [path for path in _images_below(folder) if os.path.realpath(path) not in known]
        named = set(listed.uncaptioned)
        names = [normal_name(Path(path).relative_to(folder).as_posix()) for path in found]
        others = tuple(name for name in names if name not in named)
        if others:
            text = f"in the folder, but not in the list: {count(len(others), 'image')}"
            findings.append(Finding("images", WARNING, text, others))
    return Dataset(
        "captions",
        listed.form,
        listed.images.paths,
        listed.names,
        listed.splits,
        captions=listed.images.captions,
        findings=tuple(findings),
    )


def _of_captions(listed: ImageCaptions) -> list[Finding]:
    """Returns what the reader of captions left out."""
    findings = []
    if missing := listed.images.missing:
        text = f"no file of {count(len(missing), 'captioned image')}"
        findings.append(Finding("images", ERROR, text, missing))
    if listed.uncaptioned:
        text = f"left out without captions: {count(len(listed.uncaptioned), 'image')}"
        findings.append(Finding("captions", WARNING, text, listed.uncaptioned))
    if listed.wordless:
        text = f"left out without words: {count(len(listed.wordless), 'caption')} of"
        findings.append(Finding("captions", WARNING, text, listed.wordless))
    if listed.repeated:
        number = count(len(listed.repeated), "caption")
        text = f"left out, repeating one of the same image: {number} of"
        findings.append(Finding("captions", WARNING, text, listed.repeated))
    return findings


def _read_flickr8k(root: Path) -> Dataset:
    parts = {}
    reasons = {}
    for split in SPLITS:
        try:
            parts[split] = flickr8k.read_split(root, split, missing="skip")
        except (FileNotFoundError, ValueError) as error:
            reasons[split] = error
    if "train" not in parts:
        raise reasons["train"]
    findings = [Finding("splits", WARNING, f"no split {s}: {e}") for s, e in reasons.items()]
    missing = tuple(name for part in parts.values() for name in part.missing)
    if missing:
        text = f"no file of {count(len(missing), 'captioned image')}"
        findings.append(Finding("images", ERROR, text, missing))
    paths = tuple(path for part in parts.values() for path in part.paths)
    return Dataset(
        "captions",
        "Flickr8k",
        paths,
        tuple(Path(path).name for path in paths),
        tuple(split for split, part in parts.items() for _ in part.paths),
        captions=tuple(texts for part in parts.values() for texts in part.captions),
        findings=tuple(findings),
    )


def _of_lines(lines: TextLines, kind: str) -> Dataset:
    """Returns lines of text or speech, with what their reader left out."""
    findings = []
    file = TEXT_FILES[kind]
    article = "an image" if file == "image" else f"a {file}"
    for names, check, text in (
        (lines.untexted, f"{file}s", "left out without a text"),
        (lines.imageless, f"{file}s", f"left out, texts without {article}"),
        (lines.empty, "texts", "left out with an empty text"),
        (lines.decomposed, "texts", "not in Unicode's composed form (NFC), which trainings make"),
    ):
        if names:
            findings.append(Finding(check, WARNING, f"{text}: {len(names):,}", names))
    told = (" without a text were", f" without {article} were", " with an empty text were")
    others = [note for note in lines.notes if not any(words in note for words in told)]
    if num_groups := len(set(lines.groups) - {""}):
        findings.append(Finding("groups", OK, count(num_groups, "group")))
        findings += _groups_on_two_sides(lines.names, lines.groups, lines.splits)
    findings += [Finding("reader", WARNING, note) for note in others]
    return Dataset(
        kind,
        lines.layout,
        lines.paths,
        lines.names,
        lines.splits,
        texts=lines.texts,
        findings=tuple(findings),
    )


def _images_below(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield os.path.join(parent, name)


@contextlib.contextmanager
def _damages_collected() -> Iterator[dict[str, str]]:
    """Collects what decoders log of damaged files, by path, and hides Pillow's warnings of size.

    Images that are too large are unreadable, with the reason, and need no warning.
    """
    damages: dict[str, str] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.args, tuple) and len(record.args) == 2:
                path, message = map(str, record.args)
                damages[path] = message

    loggers = [logging.getLogger(module.__name__) for module in (decoding, sound_decoding)]
    handler, propagate = Collector(), [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield damages
    finally:
        for logger, before in zip(loggers, propagate, strict=True):
            logger.removeHandler(handler)
            logger.propagate = before


def _printable(text: str) -> str:
    """Returns a text without control characters and halves of characters, as names may have."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
