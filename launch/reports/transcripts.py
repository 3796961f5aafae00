"""Transcripts in a report: lines with their differences, confusions, errors by length and group."""

import dataclasses
import itertools
import logging
import math
import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from rapidfuzz.distance import Levenshtein

from flaxnets.training.config import Scorer
from launch.reports.charts import Bars, make_bars
from launch.reports.clips import Frame, ShowsClips, make_frames
from launch.reports.statistics import Rate

LINES = 8
"""Lines of each selection."""
LINE_WIDTH = 2048
"""Longer side of an embedded line, pixels."""
CONFUSIONS = 20
"""Most frequent confusions of the table."""
GROUPS = 100
"""Groups of the table, those with the highest errors."""
BINS = 5
"""Bins of a chart, of about as many lines each."""
LEAST_LINES = 4
"""Least mean number of lines of a bin."""
JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: they belong to the character before them."""
INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs")
"""Unicode's categories of controls, formats, unassigned characters and blanks."""

Kind = Literal["equal", "replace", "insert", "delete"]
Records = Sequence[Mapping[str, Any]]

logger = logging.getLogger(__name__)


@runtime_checkable
class ShowsTranscripts(ShowsClips, Protocol):
    """Configuration of a reader of lines or speech whose predictions can be shown with the truth.

    ``load_clip`` returns one frame: the line, or a picture of its spectrogram.
    """

    @property
    def unit(self) -> str:
        """Word for an example: ``line`` or ``recording``."""

    def texts(self, split: str) -> Sequence[str]:
        """Returns the true text of each example of a split."""

    def names(self, split: str) -> Sequence[str]:
        """Returns the name of each example, as its file; "" where it has none."""

    def groups(self, split: str) -> Sequence[str]:
        """Returns the group of each example, as its book or speaker; "" where it has none."""

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer | None:
        """Returns a function from records, all or some of a split, to their error rates.

        The rates are ``character_error_rate``, ``word_error_rate`` and ``exact_line_rate``.
        """

    def confusions(self, split: str, records: Records) -> Mapping[tuple[str, str], int]:
        """Returns (true, read) character to its number; "" for one that is not there."""

    def error_interval(self, split: str, records: Records) -> tuple[float, float]:
        """Returns the 95 % interval of the character error rate of at least one record."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of two aligned texts; ``reference`` is "" if inserted, ``text`` "" if deleted."""

    kind: Kind
    reference: str
    text: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A line, or a recording of speech, with its transcript.

    Attributes:
      index: index of the example in its split.
      name: its name; may be empty.
      group: its group; may be empty.
      reference: true text.
      text: text that was read.
      confidence: in [0,1]; NaN if not known.
      character_error_rate: of this line; at least 0.
      word_error_rate: of this line; at least 0.
      pieces: both texts, aligned.
      frames: its picture.
      problem: reason for a missing picture.
    """

    index: int
    name: str
    group: str
    reference: str
    text: str
    confidence: float
    character_error_rate: float
    word_error_rate: float
    pieces: tuple[Piece, ...] = ()
    frames: tuple[Frame, ...] = ()
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Lines with a title; ``choice`` tells how they were selected."""

    title: str
    choice: str
    lines: list[Line]


@dataclasses.dataclass(frozen=True)
class Confusion:
    """``count`` errors of one kind, a ``share`` of all; "" for a character that is not there."""

    reference: str
    text: str
    count: int
    share: float


@dataclasses.dataclass(frozen=True)
class GroupErrors:
    """Error rates of the ``count`` lines of a group, which have so many characters."""

    name: str
    count: int
    characters: int
    character_error_rate: float
    word_error_rate: float


@dataclasses.dataclass(frozen=True)
class Transcripts:
    """Errors of the transcripts of a split, as a report shows them.

    Attributes:
      unit: word for an example.
      rates: the run's metrics of the split, by name.
      interval: 95 % interval of the character error rate.
      substitutions: characters that were read as others.
      insertions: characters that were read but are not there.
      deletions: characters that were not read.
      characters: characters of the true texts.
      words: words of the true texts.
      exact: lines without an error, of all.
      confused: the most frequent confusions.
      more_confused: number of other confusions.
      charts: rates by the length and by the confidence of the lines.
      groups: rates of each group, the worst first; empty if the lines have none.
      more_groups: number of other groups.
      selections: lines to look at.
    """

    unit: str
    rates: Mapping[str, float]
    interval: tuple[float, float]
    substitutions: int
    insertions: int
    deletions: int
    characters: int
    words: int
    exact: Rate
    confused: list[Confusion]
    more_confused: int
    charts: list[Bars]
    groups: list[GroupErrors]
    more_groups: int
    selections: list[Selection]

    @property
    def errors(self) -> int:
        """Characters that were substituted, inserted or deleted."""
        return self.substitutions + self.insertions + self.deletions


def make_transcripts(
    config: ShowsTranscripts, split: str, predictions: Records, *, metric: str = ""
) -> Transcripts:
    """Returns the errors of a split and the lines to look at.

    Args:
      config: the experiment.
      split: split of the predictions.
      predictions: at least one record ``{"index", "text", "confidence"}``.
      metric: ``character_error_rate`` or ``word_error_rate``, by which lines are the worst; any
        other: the first.

    Raises:
      ValueError: an experiment without a scorer of its transcripts.
    """
    score = config.make_scorer(split, complete=True)
    if score is None:
        raise ValueError("make_scorer: expected a scorer of transcripts, received None")
    texts, names, groups = config.texts(split), config.names(split), config.groups(split)
    lines = []
    for record in predictions:
        index, rates = int(record["index"]), score([record])
        lines.append(
            Line(
                index=index,
                name=names[index],
                group=groups[index],
                reference=texts[index],
                text=str(record["text"]),
                confidence=float(record.get("confidence", math.nan)),
                character_error_rate=rates["character_error_rate"],
                word_error_rate=rates["word_error_rate"],
            )
        )
    by_index = {int(record["index"]): record for record in predictions}

    def rates_of(subset: Sequence[Line]) -> Mapping[str, float]:
        return score([by_index[line.index] for line in subset])

    if metric != "word_error_rate":
        metric = "character_error_rate"
    rates = score(predictions)
    counts = config.confusions(split, predictions)
    errors = sum(counts.values())
    grouped = _by_group(lines, metric, rates_of)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Transcripts(
        unit=config.unit,
        rates=rates,
        interval=config.error_interval(split, predictions),
        substitutions=sum(n for (true, read), n in counts.items() if true and read),
        insertions=sum(n for (true, _), n in counts.items() if not true),
        deletions=sum(n for (_, read), n in counts.items() if not read),
        characters=sum(len(_compose(line.reference)) for line in lines),
        words=sum(len(line.reference.split()) for line in lines),
        exact=Rate(round(rates["exact_line_rate"] * len(lines)), len(lines)),
        confused=[Confusion(*pair, n, n / errors) for pair, n in ranked[:CONFUSIONS]],
        more_confused=len(ranked[CONFUSIONS:]),
        charts=_charts(lines, config.unit, metric, rates_of),
        groups=grouped[:GROUPS],
        more_groups=len(grouped[GROUPS:]),
        selections=_select(lines, metric, lambda index: config.load_clip(split, index)),
    )


def align(text: str, reference: str) -> list[Piece]:
    """Returns two texts in aligned pieces, by the edits that the character error rate counts.

    Both are composed (Unicode's NFC). A mark that combines with the character before it is in the
    same piece, so a piece may hold more characters than were edited.

    >>> [(piece.kind, piece.reference, piece.text) for piece in align("Hofs", "Haus")]
    [('equal', 'H', 'H'), ('replace', 'au', 'of'), ('equal', 's', 's')]

    Args:
      text: the text that was read.
      reference: the true text.

    Returns:
      Pieces whose ``text`` and whose ``reference`` make both texts; no two neighbours are of one
      kind.
    """
    text, reference = _compose(text), _compose(reference)
    # Positions (in reference, in text) between two edits or equal characters.
    places = [(0, 0)]
    for block in Levenshtein.opcodes(reference, text):
        rows = range(block.src_start + 1, block.src_end + 1)
        columns = range(block.dest_start + 1, block.dest_end + 1)
        for i, j in itertools.zip_longest(rows, columns):
            places.append((block.src_end if i is None else i, block.dest_end if j is None else j))
    places = [(i, j) for i, j in places if not (_is_inside(reference, i) or _is_inside(text, j))]
    pieces: list[Piece] = []
    for (i, j), (next_i, next_j) in itertools.pairwise(places):
        true, read = reference[i:next_i], text[j:next_j]
        kind: Kind = "replace"
        if true == read:
            kind = "equal"
        elif not true or not read:
            kind = "delete" if true else "insert"
        if pieces and pieces[-1].kind == kind:
            true, read = pieces[-1].reference + true, pieces[-1].text + read
            pieces.pop()
        pieces.append(Piece(kind, true, read))
    return pieces


def name_character(character: str) -> str:
    """Returns the Unicode name of a character, or its number; "" for none.

    >>> name_character("ſ")
    'LATIN SMALL LETTER LONG S'
    """
    return character and unicodedata.name(character, f"U+{ord(character):04X}")


def show_character(character: str) -> str:
    r"""Returns a character so that it is seen alone: marks on a dotted circle, a blank in words.

    >>> show_character(" "), show_character("\u0303"), show_character("\u00ad")
    ('space', '◌̃', 'U+00AD')
    """
    if character == " ":
        return "space"
    return "\u25cc" + character if _combines(character) else show_changed(character)


def show_changed(text: str) -> str:
    r"""Returns a text whose blanks are open boxes and whose invisible characters are numbers.

    >>> show_changed("a b\u200e")
    'a␣bU+200E'
    """
    return "".join(map(_show_invisible, text))


def _show_invisible(character: str) -> str:
    if character == " ":
        return "\u2423"
    if unicodedata.category(character) in INVISIBLE and character not in JOINERS:
        return f"U+{ord(character):04X}"
    return character


def _select(
    lines: Sequence[Line], metric: str, load_clip: Callable[[int], np.ndarray]
) -> list[Selection]:
    """Returns the worst lines, and a random sample of the others."""
    ranked = sorted(lines, key=lambda line: (-getattr(line, metric), line.index))
    worst = [line for line in ranked[:LINES] if getattr(line, metric) > 0]
    rest = ranked[len(worst) :]
    drawn = random.Random(0).sample(rest, min(LINES, len(rest)))
    name = metric.removesuffix("_rate").replace("_", " ")
    return [
        Selection("Worst", f"the highest {name} first", [_show(line, load_clip) for line in worst]),
        Selection(
            "Random",
            "a fixed random sample of the others",
            [_show(line, load_clip) for line in drawn],
        ),
    ]


def _show(line: Line, load_clip: Callable[[int], np.ndarray]) -> Line:
    """Returns the line with its alignment and its picture."""
    line = dataclasses.replace(line, pieces=tuple(align(line.text, line.reference)))
    try:
        frames = tuple(make_frames(load_clip(line.index), count=1, max_side=LINE_WIDTH))
    except Exception as error:  # Any error of a data set: one bad image must not stop the page.
        logger.warning("line %d has no picture", line.index, exc_info=True)
        return dataclasses.replace(line, problem=f"could not be loaded: {error}")
    return dataclasses.replace(line, frames=frames)


def _charts(
    lines: Sequence[Line],
    unit: str,
    metric: str,
    rates_of: Callable[[Sequence[Line]], Mapping[str, float]],
) -> list[Bars]:
    """Returns the error rate by length and by confidence, each where there are two bins."""
    name = metric.removesuffix("_rate").replace("_", " ").capitalize()
    sure = [line for line in lines if math.isfinite(line.confidence)]
    lengths = [len(_compose(line.reference)) for line in lines]
    confidences = [line.confidence for line in sure]
    charts = []
    for title, x_name, members, values in (
        ("length", "characters of the true text", lines, lengths),
        ("confidence", f"confidence of the {unit}", sure, confidences),
    ):
        bins, edges = _bins(values)
        subsets: list[list[Line]] = [[] for _ in edges[1:]]
        if len(subsets) < 2:
            continue
        for line, number in zip(members, bins, strict=True):
            subsets[number].append(line)
        charts.append(
            make_bars(
                f"{name} by {title}",
                [(rates_of(subset)[metric], len(subset)) for subset in subsets],
                _labels(edges),
                x_name=f"{x_name}; below each bar the number of {unit}s",
            )
        )
    return charts


def _bins(values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Returns the bin of each value and the edges of the bins, which hold about as many each.

    Bin b has the values from edge b to below edge b + 1, the last one also its upper edge.
    """
    count = min(BINS, len(values) // LEAST_LINES)
    if count < 2:
        return [0] * len(values), []
    shares = np.arange(1, count) / count
    inner = np.unique(np.quantile(values, shares, method="higher"))
    inner = inner[inner > min(values)]
    bins = np.searchsorted(inner, values, side="right").tolist()
    return bins, [min(values), *inner.tolist(), max(values)]


def _labels(edges: Sequence[float]) -> list[str]:
    """Returns rising numbers with as few digits as keep them apart, at least two."""

    def label(edge: float, digits: int) -> str:
        return f"{edge:.0f}" if float(edge).is_integer() else f"{edge:.{digits}g}"

    digits = 2
    while len({label(edge, digits) for edge in edges}) < len(set(edges)) and digits < 17:
        digits += 1
    return [label(edge, digits) for edge in edges]


def _by_group(
    lines: Sequence[Line], metric: str, rates_of: Callable[[Sequence[Line]], Mapping[str, float]]
) -> list[GroupErrors]:
    """Returns the error rates of each group, the worst first; empty if no line has one."""
    members: dict[str, list[Line]] = {}
    for line in lines:
        members.setdefault(line.group, []).append(line)
    if set(members) <= {""}:
        return []
    found = []
    for name, subset in members.items():
        rates = rates_of(subset)
        found.append(
            GroupErrors(
                name or "(no group)",
                len(subset),
                sum(len(_compose(line.reference)) for line in subset),
                rates["character_error_rate"],
                rates["word_error_rate"],
            )
        )
    return sorted(found, key=lambda group: (-getattr(group, metric), group.name))


def _is_inside(text: str, place: int) -> bool:
    """Returns True for a place between a character and one that is drawn with it."""
    return 0 < place < len(text) and (_combines(text[place]) or text[place - 1] == "\u200d")


def _combines(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Mc", "Me") or character in JOINERS


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)
