"""Picture of the path of the data, drawn as SVG in the colours of the page it stands in.

Colours are the theme's CSS variables, so that one drawing serves the light and the dark page. Text
does not shrink with the screen: a wide and a narrow layout have the same font size.
"""

import dataclasses
import html
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Box:
    """One stage: a folder, what it does, and what leaves it."""

    folder: str
    work: tuple[str, ...]
    result: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Stages that lie in one part of the repository."""

    title: str
    colour: str
    boxes: tuple[Box, ...]


GROUPS = (
    Group(
        "data/ · NumPy only",
        "--pst-color-info",
        (
            Box("data/datasets", ("lists, class folders,", "captions on disk"), ("paths, labels",)),
            Box(
                "data/video",
                ("samples, decodes, crops,", "resizes, pads in time"),
                ("video (T,H,W,3)", "uint8"),
            ),
            Box(
                "data/loader.py",
                ("order, shard, workers,", "exact position"),
                ("batch (B,T,H,W,3),", "lengths (B,)"),
            ),
        ),
    ),
    Group(
        "flaxnets/models · composition of parts by name",
        "--pst-color-primary",
        (
            Box(
                "flaxnets/encoders",
                ("frames as B·T images,", "convolutions"),
                ("maps (B,T,h,w,D) or", "vectors (B,T,D)"),
            ),
            Box(
                "flaxnets/recurrent",
                ("one cell scanned", "over time"),
                ("hidden states", "(B,T,F)"),
            ),
            Box(
                "heads · decoders",
                ("classes at each step;", "words and attention"),
                ("logits (B,T,K) or", "(B,C,L,V)"),
            ),
        ),
    ),
    Group(
        "flaxnets/training · one compiled step over all devices",
        "--pst-color-success",
        (
            Box(
                "flaxnets/tasks",
                ("loss and metrics", "as sums and counts"),
                ("(sum, count)",),
            ),
            Box(
                "flaxnets/training",
                ("gradients, update,", "evaluation, checkpoints"),
                ("workdir",),
            ),
            Box(
                "flaxnets/inference",
                ("load, predict, caption,", "stream, export"),
                ("labels, captions",),
            ),
        ),
    ),
)
LINE, WIDTH, HEIGHT, GAP, MARGIN = 19, 218, 132, 34, 14
TITLE = 34


def draw_path(layout: str) -> str:
    """Returns the picture as an ``<svg>`` element.

    Args:
      layout: ``wide``, three stages in a row, or ``narrow``, one below the other.

    Raises:
      ValueError: another layout.
    """
    if layout not in ("wide", "narrow"):
        raise ValueError(f"layout: expected wide or narrow, received {layout!r}")
    columns = 3 if layout == "wide" else 1
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP
    parts, top = [], 2.0
    for number, group in enumerate(GROUPS):
        rows = -(-len(group.boxes) // columns)
        height = TITLE + rows * HEIGHT + (rows - 1) * GAP + MARGIN
        parts.extend(_frame(group, top, width, height))
        for i, box in enumerate(group.boxes):
            x = MARGIN + (i % columns) * (WIDTH + GAP)
            y = top + TITLE + (i // columns) * (HEIGHT + GAP)
            parts.extend(_box(box, group.colour, x, y))
            if i + 1 < len(group.boxes):
                if columns > 1:
                    parts.append(_arrow(x + WIDTH, y + HEIGHT / 2, x + WIDTH + GAP, y + HEIGHT / 2))
                else:
                    middle = x + WIDTH / 2
                    parts.append(_arrow(middle, y + HEIGHT, middle, y + HEIGHT + GAP))
        top += height
        if number + 1 < len(GROUPS):
            parts.append(_arrow(width / 2, top, width / 2, top + GAP))
            top += GAP
    label = "Path of the data from files to metrics: " + ", ".join(
        box.folder for group in GROUPS for box in group.boxes
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {top + 2:g}" '
        f'width="{width:g}" height="{top + 2:g}" role="img" aria-label="{html.escape(label)}">'
        '<defs><marker id="tip-' + layout + '" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="8" markerHeight="8" orient="auto-start-reverse">'
        '<path d="M0 0 8 4 0 8z" class="tip"/></marker></defs>'
        + "".join(part.replace("#tip", f"#tip-{layout}") for part in parts)
        + "</svg>"
    )


def _frame(group: Group, top: float, width: float, height: float) -> Iterator[str]:
    yield (
        f'<rect x="1" y="{top:g}" width="{width - 2:g}" height="{height:g}" rx="8" class="group" '
        f'style="stroke:var({group.colour})"/>'
    )
    # A title that is too long for a narrow picture is shown up to its middle dot.
    title = group.title if width > 400 else group.title.partition(" · ")[0]
    yield f'<text x="{MARGIN}" y="{top + 22:g}" class="title">{html.escape(title)}</text>'


def _box(box: Box, colour: str, x: float, y: float) -> Iterator[str]:
    yield (
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" class="box" '
        f'style="stroke:var({colour})"/>'
    )
    lines = [("folder", box.folder), *(("work", line) for line in box.work)]
    lines += [("result", line) for line in box.result]
    for i, (kind, line) in enumerate(lines):
        gap = 8 if kind == "result" else 0
        baseline = y + 24 + i * LINE + gap
        yield f'<text x="{x + 12:g}" y="{baseline:g}" class="{kind}">{html.escape(line)}</text>'


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="arrow" '
        'marker-end="url(#tip)"/>'
    )
