"""Figures of the page: attention word by word, labels over time, characters over their columns."""

import base64
import html
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flaxnets.inference.runtime.columns import Columns
from flaxnets.inference.runtime.results import Caption, Prediction, Transcript

IMAGE_SIDE = 448
"""Longer side of an embedded image, pixels."""
MASK_SCALE = 4
"""Pixels of a mask for each position of the attention map and axis; the browser interpolates on."""
UNSURE = 0.7
"""Confidence below which a character is marked."""
DARKEST = 0.82
"""Opacity of the shade over positions without attention."""
MOST_CAPTIONS = 10
"""Captions that are drawn."""
COLUMNS = ("seconds", "probability", "label")
"""Columns of the table of a chart."""

CSS = """
.cap { display: flex; flex-wrap: wrap; gap: 20px; align-items: flex-start; }
.cap .view { position: relative; flex: 0 1 420px; min-width: 240px; line-height: 0;
  border-radius: 8px; overflow: hidden; }
.cap .view img { width: 100%; height: auto; }
.cap .view .mask { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0;
  transition: opacity .15s; }
.cap .texts { flex: 1 1 260px; min-width: 0; }
.cap ol { list-style: none; margin: 0; padding: 0; }
.cap li { padding: 8px 0; border-top: 1px solid var(--border-color-primary); }
.cap li:first-child { border-top: 0; padding-top: 0; font-size: 1.25em; }
.cap .words { display: flex; flex-wrap: wrap; gap: 2px 1px; }
.cap label { cursor: pointer; padding: 1px 5px; border-radius: 5px; overflow-wrap: anywhere; }
.cap label:hover, .cap input:checked + label { background: var(--color-accent);
  color: white; }
.cap input:focus-visible + label { outline: 2px solid var(--body-text-color); }
.cap input { position: absolute; opacity: 0; pointer-events: none; }
.cap .plain { padding: 1px 5px; overflow-wrap: anywhere; }
.cap .share { display: flex; align-items: center; gap: 8px; margin: 3px 5px 0; font-size: 13px;
  opacity: .75; }
.cap .bar { height: 5px; border-radius: 3px; background: var(--color-accent); }
.cap .hint { opacity: .75; font-size: 13px; margin: 0 5px 8px; }
.read .text { font-size: 1.25em; margin: 0 0 4px; overflow-wrap: anywhere; white-space: pre-wrap; }
.read .hint { opacity: .75; font-size: 13px; margin: 0 0 8px; }
.read .scroll { overflow-x: auto; padding-bottom: 6px; }
.read .strip { position: relative; }
.read .strip img { display: block; width: 100%; height: 64px; border-radius: 3px; }
.read .span { position: absolute; top: 0; height: 64px; min-width: 3px;
  background: color-mix(in srgb, var(--color-accent) 45%, transparent); }
.read .names { position: relative; height: 1.6em; }
.read .name { position: absolute; top: 2px; transform: translateX(-50%); font-size: 14px;
  white-space: pre; }
.read .unsure { color: var(--error-text-color, #dc2626); font-weight: 600; }
.problem { border-left: 4px solid var(--error-border-color, #dc2626); padding: 8px 12px;
  overflow-wrap: anywhere; }
"""
"""Style of the figures, in the colours of Gradio's theme, light and dark."""


def draw_captions(image: np.ndarray, captions: Sequence[Caption]) -> str:
    """Returns HTML of captions, best first, whose words show their attention on the image.

    Pointing at a word, choosing it or reaching it by the keyboard shades the image where the
    attention weight at this word is small. It works by style sheets alone.

    Args:
      image: (H,W,3) uint8, what the model sees.
      captions: at least one; the attention of each, if any, is (n,h,w) over the image.

    Raises:
      ValueError: no captions, or an image of another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H,W,3) uint8, received {image.shape} {image.dtype}")
    if not captions:
        raise ValueError("captions: expected at least one, received none")
    captions = captions[:MOST_CAPTIONS]
    best = captions[0].log_probability
    masks: list[str] = []
    items: list[str] = []
    rules: list[str] = []
    for caption in captions:
        words = []
        attention = caption.attention if _is_map(caption) else None
        for position, word in enumerate(caption.words):
            text = html.escape(word)
            if attention is None:
                words.append(f'<span class="plain">{text}</span>')
                continue
            number = len(masks)
            masks.append(f'<img class="mask m{number}" alt="" src="{_mask(attention[position])}">')
            words.append(
                f'<input type="radio" name="word" id="w{number}">'
                f'<label for="w{number}" class="w{number}">{text}</label>'
            )
            rules.append(
                f".cap:not(:has(label:hover)):has(#w{number}:checked) .m{number},"
                f".cap:has(.w{number}:hover) .m{number}{{opacity:1!important}}"
            )
        # The best caption's bar is full; the others show how probable they are beside it.
        share = math.exp(min(caption.log_probability - best, 0.0))
        unfinished = "" if caption.ended else " · cut off at the longest length"
        items.append(
            f'<li><div class="words">{"".join(words) or "<i>no words</i>"}</div>'
            f'<div class="share"><span class="bar" style="width:{80 * share:.0f}px"></span>'
            f"log-probability {caption.log_probability:.2f}{unfinished}</div></li>"
        )
    hint = (
        '<p class="hint">Point at a word, or choose it: the image stays bright where the model '
        "looked.</p>"
        if masks
        else ""
    )
    return (
        f"<style>{''.join(rules)}</style>"
        f'<div class="cap"><div class="view"><img alt="what the model sees" '
        f'src="{_encode(_shrink(image), "JPEG")}">{"".join(masks)}</div>'
        f'<div class="texts">{hint}<ol>{"".join(items)}</ol></div></div>'
    )


def draw_transcript(columns: Columns, transcript: Transcript, unit: str) -> str:
    """Returns HTML of a text and of the input with the span of each character.

    Args:
      columns: what the model reads.
      transcript: its text; spans are within ``columns.extent``.
      unit: of the spans, in words: ``columns`` or ``s``.
    """
    spans, names = [], []
    for item in transcript.characters:
        left, right = (100 * value / columns.extent for value in (item.start, item.end))
        title = html.escape(
            f"{item.character} {item.confidence:.2f}, {item.start:g}–{item.end:g} {unit}"
        )
        spans.append(
            f'<span class="span" style="left:{left:.3f}%;width:{right - left:.3f}%" '
            f'title="{title}"></span>'
        )
        unsure = " unsure" if item.confidence < UNSURE else ""
        shown = "␣" if item.character == " " else html.escape(item.character)
        names.append(
            f'<span class="name{unsure}" style="left:{(left + right) / 2:.3f}%" title="{title}">'
            f"{shown}</span>"
        )
    text = html.escape(transcript.text) or "<i>no text</i>"
    picture = _draw_columns(columns)
    return (
        f'<div class="read"><p class="text">{text}</p>'
        f'<p class="hint">confidence {transcript.confidence:.3f}; characters below '
        f"{UNSURE:g} are red</p>"
        f'<div class="scroll"><div class="strip" style="width:{picture.width}px">'
        f'<img alt="what the model sees" src="{_encode(picture)}">{"".join(spans)}'
        f'<div class="names">{"".join(names)}</div></div></div></div>'
    )


def _draw_columns(columns: Columns) -> Image.Image:
    """Returns a line as it is, or a spectrogram with its low bands below."""
    inputs = columns.inputs
    if inputs.ndim == 3:
        return Image.fromarray(inputs[..., 0])
    low, high = np.percentile(inputs, [1, 99])
    grey = np.clip((inputs - low) / max(high - low, 1e-6), 0, 1)
    return Image.fromarray((255 * (1 - grey)).astype(np.uint8).T[::-1])


def draw_problem(reason: str) -> str:
    """Returns HTML that tells why there is no result."""
    return f'<div class="problem" role="alert">{html.escape(reason)}</div>'


def tabulate_steps(prediction: Prediction, count: int) -> dict[str, list[float] | list[str]]:
    """Returns the probabilities of a clip's likeliest classes over time, as columns.

    Args:
      prediction: of a clip; without outputs at each step the table is empty.
      count: number of classes, those most probable for the whole clip or at some step.
    """
    table: dict[str, list] = {name: [] for name in COLUMNS}
    steps, times = prediction.step_probabilities, prediction.times
    if steps is None or times is None:
        return table
    # A class that leads for a while belongs in the chart even if the whole clip is not its.
    order = np.argsort(-np.maximum(prediction.probabilities, steps.max(axis=0)), kind="stable")
    shown = sorted(order[:count], key=lambda k: -prediction.probabilities[k])
    for index in shown:
        table["seconds"] += [round(float(time), 3) for time in times]
        table["probability"] += [round(float(p), 4) for p in steps[:, index]]
        table["label"] += [prediction.labels[index]] * len(times)
    return table


def _is_map(caption: Caption) -> bool:
    attention = caption.attention
    return attention is not None and attention.ndim == 3 and len(attention) == len(caption.words)


def _mask(weights: np.ndarray) -> str:
    """Returns a black image as a data URL, transparent where the weight is the largest."""
    height, width = weights.shape
    small = Image.fromarray(np.nan_to_num(np.asarray(weights, np.float32)))
    smooth = np.asarray(
        small.resize((MASK_SCALE * width, MASK_SCALE * height), Image.Resampling.BICUBIC)
    )
    peak = smooth.max()
    light = np.clip(smooth / peak, 0.0, 1.0) if peak > 0 else np.zeros_like(smooth)
    shade = (255 * DARKEST * (1.0 - light)).round().astype(np.uint8)
    return _encode(Image.merge("LA", (Image.new("L", shade.shape[::-1]), Image.fromarray(shade))))


def _shrink(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image)
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    return picture


def _encode(picture: Image.Image, kind: str = "PNG") -> str:
    """Returns an image as a data URL."""
    file = io.BytesIO()
    picture.save(file, kind, quality=88) if kind == "JPEG" else picture.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
