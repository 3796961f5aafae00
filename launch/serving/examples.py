"""Examples to click: the user's own, or drawn ones."""

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
CLIPS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac")
MOST = 6
"""Examples of each kind."""
SIDE, FRAMES, RATE = 128, 48, 12
"""Pixels, frames and frames/s of a drawn clip."""
LINES = ("1849", "26. 10. 1751")
"""Texts of drawn lines: digits, which most readers know."""
TONE_RATE = 16_000
"""Samples/s of the drawn tone."""
COLOURS = ((214, 69, 65), (38, 166, 91), (44, 130, 201))


def find_examples(folder: Path) -> dict[str, list[Path]]:
    """Returns the first images, clips and recordings of a folder, for each kind of model.

    Raises:
      ValueError: a folder that is missing, or that holds none of them.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--examples: expected a folder of images, clips or recordings, received {folder}"
        )
    files = sorted(path for path in folder.iterdir() if path.is_file())
    images = [path.resolve() for path in files if path.suffix.lower() in IMAGES][:MOST]
    clips = [path.resolve() for path in files if path.suffix.lower() in CLIPS][:MOST]
    sounds = [path.resolve() for path in files if path.suffix.lower() in SOUNDS][:MOST]
    if not images and not clips and not sounds:
        raise ValueError(
            f"--examples: expected images ({', '.join(IMAGES)}), clips ({', '.join(CLIPS)}) or "
            f"recordings ({', '.join(SOUNDS)}) in {folder}, received none"
        )
    return _by_kind(images, clips, images, sounds)


def draw_examples(folder: Path) -> dict[str, list[Path]]:
    """Draws shapes, clips of moving ones, lines of digits and a tone; returns the files by kind."""
    images, clips, lines = [], [], []
    for number, colour in enumerate(COLOURS[:2]):
        path = folder / f"shapes_{number + 1}.png"
        Image.fromarray(_draw(0.5, number, colour, 320)).save(path)
        images.append(path)
    for number, (name, colour) in enumerate(zip(("circle", "square"), COLOURS, strict=False)):
        path = folder / f"moving_{name}.mp4"
        times = np.linspace(0.0, 1.0, FRAMES)
        _write(path, [_draw(time, number, colour, SIDE) for time in times])
        clips.append(path)
    for text in LINES:
        path = folder / f"line_{text.replace(' ', '_')}.png"
        _draw_line(text).save(path)
        lines.append(path)
    tone = folder / "tone.wav"
    _write_tone(tone)
    return _by_kind(images, clips, lines, [tone])


def _by_kind(
    images: list[Path], clips: list[Path], lines: list[Path], sounds: list[Path]
) -> dict[str, list[Path]]:
    return {
        "captioning": images,
        "image_classification": images,
        "video_classification": clips,
        "lines": lines,
        "speech": sounds,
        "sound_classification": sounds,
    }


def _draw_line(text: str) -> Image.Image:
    """Returns a line of print, black on white."""
    font = ImageFont.load_default(40)
    width = round(font.getlength(text))
    image = Image.new("L", (width + 24, 56), 255)
    ImageDraw.Draw(image).text((12, 28), text, fill=0, font=font, anchor="lm")
    return image


def _write_tone(path: Path) -> None:
    """Writes a second of a tone of 440 Hz, 16 bits, mono."""
    times = np.arange(TONE_RATE) / TONE_RATE
    samples = np.round(8_000 * np.sin(2 * np.pi * 440 * times)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(TONE_RATE)
        file.writeframes(samples.tobytes())


def _draw(time: float, number: int, colour: tuple[int, int, int], side: int) -> np.ndarray:
    """Returns a shape on its way from left to right, (side,side,3) uint8; ``time`` in [0,1]."""
    image = Image.new("RGB", (side, side), (236, 232, 222))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, int(0.72 * side), side, side), fill=(173, 196, 152))
    radius = 0.13 * side
    x, y = side * (0.2 + 0.6 * time), side * (0.58 - 0.12 * number)
    box = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse(box, fill=colour) if number == 0 else draw.rectangle(box, fill=colour)
    return np.asarray(image)


def _write(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Writes a clip as H.264 in mp4, which browsers play."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
