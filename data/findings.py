"""Findings of a data set: what training would trip over, by the properties of its files."""

import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np

from data.audio.sources import MAX_SECONDS, SILENCE
from data.captions.vocabulary import split_words
from data.inspection import Inspection
from data.likeness import find_alike
from data.text_lines.alphabet import Alphabet, name_character, name_characters
from data.text_lines.line_images import MAX_WIDTH, scaled_width

OK, WARNING, ERROR = "ok", "WARNING", "ERROR"
"""Levels of findings; with an error, training would fail."""
SPLITS = ("train", "validation", "test")
MAX_BAD_SHARE = {
    **{"video": 0.1, "image": 0.1, "captions": 0.05, "lines": 0.05},
    **{"sounds": 0.1, "speech": 0.05},
}
"""Share of unreadable training files beyond which a training ends: the default of ``max_bad_share``
in ``experiments/video_classification.py``, ``image_classification.py``, those of captions, of text
lines, ``sound_events.py`` and ``deep_speech2.py``."""
MAX_RATIO = 10
"""Ratio of the largest class to the smallest one from which classes are unbalanced."""
OUTLIER = 4
"""Factor by which a length or size differs from the median if it is an outlier."""
MAX_CLASSIFIED = 20_000
"""Most files on which the linear classifier is fitted; of more, as many are drawn at random."""
FOLDS = 10
RARE = 6
"""Number of occurrences below which a character is rare."""
LINE_HEIGHT = 48
"""Height to which lines are scaled, pixels: the default of ``data.text_lines.LineSource``."""
STRIDES = (8, 4)
"""Pixels for each step of usual text recognisers, for which texts may be too long."""
SPEECH_STEPS = (0.04, 0.02)
"""Seconds for each step of usual speech recognisers, likewise."""
LONGEST = {"sounds": MAX_SECONDS, "speech": 35.0}
"""Seconds beyond which trainings skip a recording: the defaults of ``data.audio.sources`` and of
``data.max_seconds`` in ``experiments/deep_speech2.py``."""
SHORTEST = 0.1
"""Seconds below which a recording hardly holds a word."""


NOUNS = {
    **{"video": "video", "image": "image", "captions": "captioned image", "lines": "line"},
    **{"sounds": "recording", "speech": "recording"},
}
"""Words for the files of each kind."""


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        check: what was looked at.
        level: ``OK``, ``WARNING`` or ``ERROR``.
        text: what was found.
        files: the files that the text counts.
    """

    check: str
    level: str
    text: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Files that a training would read, with labels, captions or texts.

    Attributes:
        kind: ``video``, ``image``, ``captions``, ``lines``, ``sounds`` (with labels) or ``speech``
            (with texts).
        layout: how the files were found, in words.
        paths: the files.
        names: of each, relative to the folder of the data.
        splits: of each; "" for all if the data have none.
        labels: class index of each; empty for captions and texts.
        class_names: name of each class; empty for captions and texts.
        groups: recording group of each, "" if unknown; empty for captions and texts.
        captions: of each; empty for other kinds.
        texts: of each line or recording; empty for other kinds.
        findings: of the readers.
    """

    kind: str
    layout: str
    paths: tuple[str, ...]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()
    texts: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def find_problems(
    dataset: Dataset, inspected: Sequence[Inspection], identical: Sequence[Sequence[int]]
) -> list[Finding]:
    """Returns the findings of a data set, its reader's included, in the order of the table.

    Args:
        dataset: the files.
        inspected: properties of each file.
        identical: indices of the files of equal content, as ``find_identical`` returns them.
    """
    findings = [*_describe(dataset), *dataset.findings]
    findings.append(_readable(dataset, inspected))
    findings += _identical(dataset, identical)
    if dataset.kind == "lines":  # Whose small pictures all look alike.
        return [*findings, *_texts(dataset), *_line_sizes(dataset, inspected)]
    if dataset.kind in ("sounds", "speech"):
        findings += _texts(dataset) if dataset.kind == "speech" else _classes(dataset)
        findings += _sounds(dataset, inspected)
        return [*findings, *([_leakage(dataset, inspected)] if dataset.labels else [])]
    findings += _alike(dataset, inspected, identical)
    findings += _captions(dataset) if dataset.kind == "captions" else _classes(dataset)
    findings += _properties(dataset, inspected)
    if dataset.kind != "captions":
        findings.append(_leakage(dataset, inspected))
    return findings


def count(number: int, noun: str) -> str:
    """Returns a number of things in words.

    >>> count(1, "file"), count(2000, "class")
    ('1 file', '2,000 classes')
    """
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


# ---- Files -----------------------------------------------------------------------------------


def _describe(dataset: Dataset) -> list[Finding]:
    text = f"{dataset.layout}: {count(len(dataset.paths), NOUNS[dataset.kind])}"
    if dataset.class_names:
        text += f" of {count(len(dataset.class_names), 'class')}"
    findings = [Finding("data set", OK, text)]
    counts = Counter(dataset.splits)
    if "" in counts:
        text = "none given: trainings make a split with a seed"
        findings.append(Finding("splits", OK, text))
    else:
        shown = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if counts[split])
        level = OK if counts["train"] else ERROR
        findings.append(Finding("splits", level, shown + ("" if level == OK else "; no train")))
    return findings


def _readable(dataset: Dataset, inspected: Sequence[Inspection]) -> Finding:
    bad = [
        f"{name} ({found.error})"
        for name, found in zip(dataset.names, inspected, strict=True)
        if found.error
    ]
    if not bad:
        return Finding("readable", OK, f"all of {count(len(inspected), 'file')}")
    text = f"{len(bad):,} of {count(len(inspected), 'file')} cannot be decoded"
    if too_many := _too_many(dataset, inspected, set()):
        return Finding("readable", ERROR, f"{text}, {too_many}", tuple(bad))
    return Finding("readable", WARNING, text + " and will be skipped", tuple(bad))


def _too_many(dataset: Dataset, inspected: Sequence[Inspection], skipped: Set[int]) -> str:
    """Returns words on more unusable training files than a training skips; "" for fewer.

    Args:
        dataset: the files; without splits all of them count as training files.
        inspected: properties of each; those with an error are unusable.
        skipped: indices of others that are unusable.
    """
    trained = [i for i, split in enumerate(dataset.splits) if split in ("", "train")]
    bad = [i for i in trained if inspected[i].error or i in skipped]
    most = MAX_BAD_SHARE[dataset.kind]
    if len(bad) <= most * len(trained):
        return ""
    own = "" if len(trained) == len(inspected) else f"{len(bad):,} of {len(trained):,} of train, "
    return f"{own}more than the {most:.0%} that a training skips (max_bad_share)"


def _usable(
    dataset: Dataset, inspected: Sequence[Inspection], skipped: Set[int], reasons: str
) -> list[Finding]:
    """Returns an error if a training would fail by what it skips beside unreadable files."""
    too_many = _too_many(dataset, inspected, skipped) if skipped else ""
    if not too_many:
        return []
    number = len(skipped) + sum(bool(found.error) for found in inspected)
    files = count(len(inspected), NOUNS[dataset.kind])
    return [Finding("usable", ERROR, f"{number:,} of {files} are {reasons}, {too_many}")]


def _identical(dataset: Dataset, identical: Sequence[Sequence[int]]) -> list[Finding]:
    if not identical:
        return [Finding("duplicates", OK, "no two files have the same content")]
    findings = []
    for what, key in (
        ("in different splits", dataset.splits),
        ("in different classes", dataset.labels),
        ("with different texts", dataset.texts),
    ):
        across = [same for same in identical if key and len({key[i] for i in same}) > 1]
        if across:
            text = f"{what}: {count(len(across), 'content')} of several files"
            findings.append(Finding("duplicates", WARNING, text, _groups(dataset, across)))
    copies = sum(len(same) - 1 for same in identical)
    text = f"copies of another file: {copies:,}"
    findings.append(Finding("duplicates", WARNING, text, _groups(dataset, identical)))
    return findings


def _alike(
    dataset: Dataset, inspected: Sequence[Inspection], identical: Sequence[Sequence[int]]
) -> list[Finding]:
    """Returns pairs that look alike on two sides of a split, or among all without a split."""
    readable = [i for i, found in enumerate(inspected) if found.signature is not None]
    signatures = [found.signature for found in inspected if found.signature is not None]
    pairs = find_alike(signatures, [dataset.splits[i] for i in readable])
    has_splits = len(set(dataset.splits)) > 1
    sides = "in different splits" if has_splits else "that a random split may separate"
    if pairs is None:
        text = f"not compared: {count(len(readable), 'file')} are too many"
        return [Finding("alike", OK, text)]
    same = {frozenset((a, b)) for group in identical for a in group[:50] for b in group[:50]}
    found = [(readable[p.first], readable[p.second], p.correlation) for p in pairs]
    found = [(a, b, c) for a, b, c in found if frozenset((a, b)) not in same]
    if not found:
        others = " others" if identical else ""
        return [Finding("alike", OK, f"no two{others} {sides}")]
    names = dataset.names
    shown = tuple(f"{names[a]} and {names[b]} ({c:.3f})" for a, b, c in found)
    text = f"{sides}: {count(len(found), 'pair')}"
    return [Finding("alike", WARNING, text, shown)]


def _groups(dataset: Dataset, groups: Iterable[Sequence[int]]) -> tuple[str, ...]:
    return tuple(" = ".join(dataset.names[i] for i in group[:4]) for group in groups)


def _properties(dataset: Dataset, inspected: Sequence[Inspection]) -> list[Finding]:
    """Returns the distributions of lengths, rates, sizes and codecs of the files that are read."""
    rows = [
        (name, found)
        for name, found in zip(dataset.names, inspected, strict=True)
        if not found.error
    ]
    if not rows:
        return []
    findings = []
    if dataset.kind == "video":
        findings.append(_spread("frames", rows, lambda found: found.num_frames, "{:.0f}"))
        findings.append(_spread("seconds", rows, lambda found: found.seconds, "{:.2f}"))
        findings.append(_kinds("rates", [f"{found.rate:.4g} frames/s" for _, found in rows], True))
    findings.append(_spread("pixels", rows, lambda f: min(f.height, f.width), "{:.0f}"))
    tall = [name for name, f in rows if f.height > f.width]
    long = tuple(n for n, f in rows if max(f.height, f.width) > OUTLIER * min(f.height, f.width))
    text = f"{len(tall):,} of {len(rows):,} higher than wide"
    if long:
        text += f"; more than {OUTLIER} times as long as wide: {len(long):,}"
    findings.append(Finding("shape", WARNING if long else OK, text, long))
    findings.append(_kinds("formats", [found.codec for _, found in rows], False))
    return findings


def _spread(
    check: str,
    rows: Sequence[tuple[str, Inspection]],
    value: Callable[[Inspection], float],
    form: str,
) -> Finding:
    """Returns minimum, median and maximum, and the outliers."""
    values = np.array([value(found) for _, found in rows], float)
    low, median, high = values.min(), float(np.median(values)), values.max()
    if low == high:
        return Finding(check, OK, f"{form.format(low)} of all")
    text = " to ".join(form.format(x) for x in (low, high)) + f", median {form.format(median)}"
    odd = np.flatnonzero((values > OUTLIER * median) | (values * OUTLIER < median))
    if not len(odd):
        return Finding(check, OK, text)
    factors = np.abs(np.log(np.maximum(values[odd], 1e-9) / max(median, 1e-9)))
    order = odd[np.argsort(-factors, kind="stable")].tolist()
    files = tuple(f"{rows[i][0]} ({form.format(values[i])})" for i in order)
    text += f"; more than a factor of {OUTLIER} from it: {len(odd):,}"
    return Finding(check, WARNING, text, files)


def _kinds(check: str, values: Sequence[str], should_agree: bool) -> Finding:
    counts = Counter(values)
    shown = ", ".join(f"{count:,} × {value}" for value, count in counts.most_common(5))
    shown += f" and {len(counts) - 5} others" if len(counts) > 5 else ""
    if should_agree and len(counts) > 1:
        return Finding(check, WARNING, f"{shown}; the same action takes more frames in some")
    return Finding(check, OK, shown)


# ---- Labels ----------------------------------------------------------------------------------


def _classes(dataset: Dataset) -> list[Finding]:
    names = dataset.class_names
    counts = Counter(dataset.labels)
    findings = []
    for split in SPLITS:
        inside = [
            label for label, s in zip(dataset.labels, dataset.splits, strict=True) if s == split
        ]
        absent = tuple(name for label, name in enumerate(names) if label not in set(inside))
        if inside and absent:
            text = f"without examples in {split}: {len(absent)} of {count(len(names), 'class')}"
            findings.append(Finding("classes", WARNING, text, absent))
    absent = tuple(name for label, name in enumerate(names) if not counts[label])
    if absent:
        text = f"without any examples: {len(absent)} of {count(len(names), 'class')}"
        findings.append(Finding("classes", WARNING, text, absent))
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    text = f"{low:,} ({names[least]}) to {high:,} ({names[most]}) examples of a class"
    if high == low:
        text = f"{count(high, 'example')} of each class"
    if high >= MAX_RATIO * low:
        text += f"; always answering {names[most]} is right in {high / len(dataset.labels):.1%}"
        findings.append(Finding("balance", WARNING, text))
    else:
        findings.append(Finding("balance", OK, text))
    return findings


def _leakage(dataset: Dataset, inspected: Sequence[Inspection]) -> Finding:
    """Returns the accuracy of a linear classifier on length, size and rate alone."""
    readable = np.array([i for i, found in enumerate(inspected) if not found.error], int)
    if len(readable) > MAX_CLASSIFIED:
        readable = np.random.default_rng(0).permutation(readable)[:MAX_CLASSIFIED]
    labels = np.array([dataset.labels[i] for i in readable])
    if len(set(labels.tolist())) < 2 or len(labels) < 10:
        return Finding("leakage", OK, "not measured: too few files")
    rows = [inspected[i] for i in readable]
    what, measure = {
        "video": ("length, size and rate", lambda f: (f.num_frames, f.rate, f.height, f.width)),
        "image": ("height and width", lambda f: (f.height, f.width)),
        "sounds": ("length, rate and channels", lambda f: (f.seconds, f.rate, f.channels)),
    }[dataset.kind]
    inputs = np.array([measure(found) for found in rows], float)
    groups = [dataset.groups[i] or f"file {i}" for i in readable]
    accuracy, folds = cross_validate(inputs, labels, groups)
    chance = float(np.bincount(labels).max() / len(labels))
    by = "recording group" if any(dataset.groups) else "file"
    text = (
        f"a linear classifier on {what} alone reaches {accuracy:.1%} ({folds} folds by {by}), "
        f"always the largest class {chance:.1%}"
    )
    margin = max(0.05, 3 * np.sqrt(chance * (1 - chance) / len(labels)))
    if accuracy <= chance + margin:
        return Finding("leakage", OK, text)
    text += "; report it beside every accuracy"
    return Finding("leakage", WARNING, text)


def cross_validate(
    inputs: np.ndarray, labels: np.ndarray, groups: Sequence[str]
) -> tuple[float, int]:
    """Returns the accuracy of logistic regression in cross-validation, and the number of folds.

    It has L2 regularisation (C = 1, not tuned) on standardised inputs; groups stay together.

    Args:
        inputs: (N,D) float.
        labels: (N,) int, at least two different ones.
        groups: of each example, at least two different ones.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(FOLDS, len(set(groups)))
    right = 0
    splitter = GroupKFold(folds, shuffle=True, random_state=0)
    for train, test in splitter.split(inputs, labels, groups):
        if len(set(labels[train].tolist())) < 2:
            right += int((labels[test] == labels[train][0]).sum())
            continue
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
        classifier.fit(inputs[train], labels[train])
        right += int((classifier.predict(inputs[test]) == labels[test]).sum())
    return right / len(labels), folds


# ---- Captions --------------------------------------------------------------------------------


def _captions(dataset: Dataset) -> list[Finding]:
    """Returns the numbers and lengths of captions, and those without words or of many images."""
    texts = [
        (n, text)
        for n, found in zip(dataset.names, dataset.captions, strict=True)
        for text in found
    ]
    words = [split_words(text) for _, text in texts]
    findings = []
    if bare := tuple(name for (name, _), found in zip(texts, words, strict=True) if not found):
        text = f"{count(len(bare), 'caption')} without words"
        findings.append(Finding("captions", WARNING, text, bare))
    counts = [len(found) for found in dataset.captions]
    text = f"{_range(counts)} of an image, {len(texts):,} in all"
    findings.append(Finding("captions", OK, text))
    lengths = np.array([len(found) for found in words])
    median = float(np.median(lengths))
    text = f"{_range(lengths.tolist())}, median {median:.0f}"
    odd = np.flatnonzero((lengths > OUTLIER * median) | (lengths == 1))
    files = tuple(f"{texts[i][0]} ({texts[i][1]:.40})" for i in odd)
    if files:
        text += f"; one word, or more than {OUTLIER} times the median: {len(files):,}"
    findings.append(Finding("words", WARNING if files else OK, text, files))
    by_text: dict[str, set[str]] = defaultdict(set)
    for (name, _), found in zip(texts, words, strict=True):
        by_text[" ".join(found)].add(name)
    common, images = max(by_text.items(), key=lambda item: len(item[1]))
    if len(images) > max(2, 0.01 * len(dataset.names)):
        text = f"{common[:60]!r} describes {len(images):,} images"
        findings.append(Finding("same captions", WARNING, text))
    vocabulary = Counter(word for found in words for word in found)
    once = sum(count == 1 for count in vocabulary.values())
    text = f"{len(vocabulary):,} different words, {once:,} of them once"
    findings.append(Finding("vocabulary", OK, text))
    return findings


# ---- Texts -----------------------------------------------------------------------------------


def _texts(dataset: Dataset) -> list[Finding]:
    """Returns the lengths of texts, those that repeat, and characters that are rare or unseen."""
    lengths, noun = [len(text) for text in dataset.texts], NOUNS[dataset.kind]
    text = (
        f"{_range(lengths)} characters of a {noun}, median {np.median(lengths):.0f}, "
        f"{sum(lengths):,} in all"
    )
    if repeats := len(dataset.texts) - len(set(dataset.texts)):
        text += f"; {repeats:,} {noun}s repeat the text of another"
    findings = [Finding("texts", OK, text)]
    counts = Counter(character for text in dataset.texts for character in text)
    if not counts:
        return [*findings, Finding("alphabet", ERROR, "no text has a character")]
    findings.append(Finding("alphabet", OK, count(len(counts), "different character")))
    if hidden := {c: counts[c] for c in sorted(counts) if _is_invisible(c)}:
        where = "image shows, or shows" if dataset.kind == "lines" else "voice says, or says"
        text = f"that no {where} as a blank: {name_characters(hidden)}"
        names = [
            name
            for name, line in zip(dataset.names, dataset.texts, strict=True)
            if hidden.keys() & set(line)
        ]
        findings.append(Finding("invisible", WARNING, text, tuple(names)))
    by_split = {
        split: [t for t, s in zip(dataset.texts, dataset.splits, strict=True) if s == split]
        for split in SPLITS
    }
    if rare := {c: n for c, n in reversed(counts.most_common()) if n < RARE}:
        text = f"fewer than {RARE} times, too seldom to be learnt: {count(len(rare), 'character')}"
        shown = tuple(f"{name_character(c)} {n} ×" for c, n in rare.items())
        findings.append(Finding("rare", WARNING, text, shown))
    if any(by_split["train"]):
        alphabet = Alphabet.from_texts(by_split["train"])
        for split in SPLITS[1:]:
            if not (unseen := alphabet.unknown(by_split[split])):
                continue
            lines = sum(bool(alphabet.unknown([text])) for text in by_split[split])
            text = (
                f"in {split}, but not in train: {count(len(unseen), 'character')} of "
                f"{count(lines, noun)}, which no model reads: {name_characters(unseen)}"
            )
            findings.append(Finding("unseen", WARNING, text))
    return findings


def _is_invisible(character: str) -> bool:
    """Returns True for controls, marks of format and blanks other than the usual one."""
    return character != " " and unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp")


def _line_sizes(dataset: Dataset, inspected: Sequence[Inspection]) -> list[Finding]:
    """Returns heights, widths, lines that are too wide, and texts too long for their images."""
    rows = [
        (name, found, text, scaled_width(found.width, found.height, LINE_HEIGHT))
        for name, found, text in zip(dataset.names, inspected, dataset.texts, strict=True)
        if not found.error
    ]
    if not rows:
        return []
    findings = []
    for check, values in (
        ("heights", [found.height for _, found, _, _ in rows]),
        ("widths", [width for *_, width in rows]),
    ):
        text = f"{_range(values)} pixels"
        text += f", median {np.median(values):.0f}" if min(values) < max(values) else ""
        text += f", scaled to a height of {LINE_HEIGHT}" if check == "widths" else ""
        findings.append(Finding(check, OK, text))
    if wide := tuple(f"{name} ({width:,})" for name, *_, width in rows if width > MAX_WIDTH):
        text = f"wider than {MAX_WIDTH:,} pixels, which trainings skip: {count(len(wide), 'line')}"
        findings.append(Finding("widths", WARNING, text, wide))
    skipped = {
        index
        for index, found in enumerate(inspected)
        if not found.error and scaled_width(found.width, found.height, LINE_HEIGHT) > MAX_WIDTH
    }
    findings += _usable(dataset, inspected, skipped, "damaged or too wide")
    for stride in STRIDES:
        needed = [_needed_steps(text) for *_, text, _ in rows]
        short = tuple(
            f"{name} ({width // stride} of {steps})"
            for (name, *_, width), steps in zip(rows, needed, strict=True)
            if width // stride < steps
        )
        text = f"enough for every text at a stride of {stride} pixels"
        if short:
            text = (
                f"too few for the text at a stride of {stride} pixels, so that CTC cannot learn "
                f"it: {count(len(short), 'line')}"
            )
        findings.append(Finding("steps", WARNING if short else OK, text, short))
        if not short:  # Nor at a smaller one.
            break
    findings.append(_kinds("formats", [found.codec for _, found, _, _ in rows], False))
    return findings


def _needed_steps(text: str) -> int:
    """Returns the steps that CTC needs for a text: a blank stands between equal neighbours."""
    return len(text) + sum(a == b for a, b in itertools.pairwise(text))


# ---- Sounds ----------------------------------------------------------------------------------


def _sounds(dataset: Dataset, inspected: Sequence[Inspection]) -> list[Finding]:
    """Returns lengths, silence, rates, channels, and texts too long for their recordings."""
    rows = [
        (index, name, found)
        for index, (name, found) in enumerate(zip(dataset.names, inspected, strict=True))
        if not found.error
    ]
    if not rows:
        return []
    named = [(name, found) for _, name, found in rows]
    findings = [_spread("seconds", named, lambda found: found.seconds, "{:.2f}")]
    if short := tuple(f"{n} ({f.seconds:.3f})" for n, f in named if f.seconds < SHORTEST):
        text = f"shorter than {SHORTEST:g} s: {count(len(short), 'recording')}"
        findings.append(Finding("seconds", WARNING, text, short))
    longest = LONGEST[dataset.kind]
    long = tuple(f"{n} ({f.seconds:.1f})" for n, f in named if f.seconds > longest)
    if long:
        text = f"longer than {longest:g} s, which trainings skip: {count(len(long), 'recording')}"
        findings.append(Finding("seconds", WARNING, text, long))
    silent = tuple(n for n, f in named if f.peak <= SILENCE)
    if silent:
        text = f"silent, which trainings skip: {count(len(silent), 'recording')}"
        findings.append(Finding("silence", WARNING, text, silent))
    else:
        findings.append(Finding("silence", OK, "no recording is silent"))
    loud = tuple(f"{n} ({f.peak:.3g})" for n, f in named if f.peak > 1)
    if loud:
        text = (
            f"with float samples beyond ±1, which trainings clip: {count(len(loud), 'recording')}; "
            "divide them by their peak, or write them as 16 bits"
        )
        findings.append(Finding("peaks", WARNING, text, loud))
    skipped = {i for i, _, f in rows if f.seconds > longest or f.peak <= SILENCE}
    findings += _usable(dataset, inspected, skipped, "damaged, silent or too long")
    rates = Counter(f"{found.rate:,.0f} samples/s" for _, found in named)
    shown = ", ".join(f"{number:,} × {rate}" for rate, number in rates.most_common(5))
    if len(rates) > 1:
        shown += "; trainings resample all to one rate, and what lies above the lowest is missing"
    findings.append(Finding("rates", WARNING if len(rates) > 1 else OK, shown))
    channels = Counter(found.channels for _, found in named)
    kinds = {1: "mono", 2: "stereo"}
    shown = ", ".join(
        f"{number:,} × {kinds.get(c, f'{c} channels')}" for c, number in channels.most_common()
    )
    if set(channels) != {1}:
        shown += "; trainings read the mean of the channels"
    findings.append(Finding("channels", WARNING if len(channels) > 1 else OK, shown))
    if dataset.texts:
        findings += _speech_steps([(n, f.seconds, dataset.texts[i]) for i, n, f in rows])
    findings.append(_kinds("formats", [found.codec for _, found in named], False))
    return findings


def _speech_steps(rows: Sequence[tuple[str, float, str]]) -> list[Finding]:
    """Returns the recordings that are too short for their text.

    Args:
        rows: name, seconds and text of each.
    """
    findings = []
    for step in SPEECH_STEPS:
        counts = [(name, int(seconds / step), _needed_steps(text)) for name, seconds, text in rows]
        short = tuple(f"{n} ({steps} of {needed})" for n, steps, needed in counts if steps < needed)
        text = f"enough for every text at {1000 * step:g} ms a step"
        if short:
            text = (
                f"too few for the text at {1000 * step:g} ms a step, so that CTC cannot learn it: "
                f"{count(len(short), 'recording')}"
            )
        findings.append(Finding("steps", WARNING if short else OK, text, short))
        if not short:  # Nor with shorter steps.
            break
    return findings


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
