"""Hostile uploads: damaged, huge, renamed, foreign and misnamed files, made by a seed."""

import dataclasses
import gzip
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

CONTAINERS = {"mp4": "libx264", "webm": "libvpx", "avi": "mpeg4", "mkv": "mpeg4"}
NAMES = (
    "<img src=x onerror=alert(1)>.png", "<script>alert(1)</script>.jpg", '"; rm -rf ~; ".png',
    "../../../../etc/cron.d/evil.png", "..\\..\\evil.png", "/etc/passwd", "....//....//a.png",
    "%2e%2e%2fa.png", "a" * 250 + ".png", "-rf.png", ".htaccess", ".png", "con.png", "$(id).png",
    "`id`.png", "\u202egnp.exe", "e\u0301\u0327\U0001f408.png", "a b\tc.png", "{{7*7}}.png",
    "file:///etc/passwd", "http:evil.png", "photo.png/../../x", "photo.PNG.exe", "'or'1'='1.png",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Upload:
    """One file, and the models it is for."""

    case: str
    name: str
    content: bytes
    readable: bool = False
    """It is a sound file with a strange name, and may have a result."""


def make_uploads(folder: Path) -> Iterator[Upload]:
    """Yields about 200 uploads; the same ones each time.

    Args:
      folder: for videos on their way.
    """
    yield from _foreign()
    yield from _images()
    yield from _videos(folder)
    photo = _photo("JPEG")
    for number, name in enumerate(NAMES):
        yield Upload(f"name {number}", name, photo, readable=True)


def _foreign() -> Iterator[Upload]:
    """Files that are neither images nor videos, with names of both."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(50 * 2**20))
    contents = {
        "empty": b"",
        "a byte": b"\x00",
        "zeros": bytes(2**20),
        "noise": np.random.default_rng(0).bytes(2**18),
        "text": b"not an image\n" * 100,
        "a program": b"#!/bin/sh\ntouch owned\n",
        "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
        "html": b"<html><script>alert(1)</script></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "svg entity": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
        "zip bomb": bomb.getvalue(),
        "gzip bomb": gzip.compress(bytes(20 * 2**20)),
        "pickle": pickle.dumps({"a": [1, 2]}),
        "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'shape': (9,)}" + bytes(99),
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        "playlist of urls": b"#EXTM3U\n#EXTINF:1,\nhttp://169.254.169.254/latest/meta-data\n",
        "concatenation": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "dash": b'<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1:1/</BaseURL></MPD>',
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\n<b>hello</b>\n",
        "wave": b"RIFF$\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00" + bytes(60),
    }
    for case, content in contents.items():
        yield Upload(f"{case} as an image", "photo.png", content)
        yield Upload(f"{case} as a clip", "clip.mp4", content)


def _images() -> Iterator[Upload]:
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = _photo(kind)
        name = f"photo.{kind.lower()}"
        for share in (0.02, 0.3, 0.9):
            # FFmpeg shows what there is of a GIF, as one frame.
            cut = whole[: int(share * len(whole))]
            yield Upload(f"{kind} cut at {share:.0%}", name, cut, readable=kind == "GIF")
        for number in range(7):
            damaged = bytearray(whole)
            # Of headers, since damaged pixels alone may well be decoded.
            for position in rng.integers(4, min(200, len(whole)), 12):
                damaged[position] = int(rng.integers(256))
            yield Upload(f"{kind} damaged {number}", name, bytes(damaged), readable=True)
        yield Upload(f"{kind} as a clip", "clip.mp4", whole, readable=True)
    yield Upload("one pixel", "dot.png", _png(1, 1), readable=True)
    yield Upload("a row", "row.png", _png(60_000, 1), readable=True)
    yield Upload("a column", "column.png", _png(1, 60_000), readable=True)
    large = _png(10_000, 10_000)
    yield Upload("100 megapixels", "large.png", large)
    yield Upload("100 megapixels as a clip", "large.mp4", large)
    yield Upload("4 gigapixels", "bomb.png", _png(65_000, 65_000, rows=200))
    yield Upload("sides of 2^31", "sides.png", _png(2**31 - 1, 2**31 - 1, rows=0))
    yield Upload("no sides", "none.png", _png(0, 0, rows=0))
    text = b"Comment\0\0" + zlib.compress(bytes(200 * 2**20), 1)
    yield Upload("text of 200 MiB", "text.png", _png(8, 8, (b"zTXt", text)), readable=True)
    profile = b"icc\0\0" + zlib.compress(bytes(200 * 2**20), 1)
    yield Upload("profile of 200 MiB", "icc.png", _png(8, 8, (b"iCCP", profile)), readable=True)
    yield Upload("JPEG of 65,535 pixels a side", "sides.jpg", _jpeg_sides(65_535, 65_535))
    scans = _photo("JPEG", progressive=True)
    start = scans.index(b"\xff\xda")
    many = scans[:-2] + scans[start:-2] * 300 + b"\xff\xd9"
    yield Upload("JPEG of thousands of scans", "scans.jpg", many)
    yield Upload("GIF of 65,535 pixels a side", "sides.gif", _gif_sides(65_535, 65_535))
    yield Upload("BMP of 2^30 pixels", "sides.bmp", _bmp_sides(2**15, 2**15))
    yield Upload("PPM of 10^9 pixels", "sides.ppm", b"P6\n40000 40000\n255\n" + bytes(1000))
    yield Upload("PPM of endless comments", "comment.ppm", b"P6\n" + b"# x\n" * 100_000)
    tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 256, 4, 1, 9) + struct.pack("<I", 8)
    yield Upload("TIFF whose directory follows itself", "loop.tiff", tiff)
    yield Upload("transparency without pixels", "x.webp", b"RIFF\x1a\0\0\0WEBPVP8X" + bytes(18))


def _videos(folder: Path) -> Iterator[Upload]:
    rng = np.random.default_rng(2)
    for container, codec in CONTAINERS.items():
        whole = _clip(folder / f"whole.{container}", codec, 32, 24, 40)
        name = f"clip.{container}"
        for share in (0.01, 0.5, 0.95):
            cut = whole[: int(share * len(whole))]
            # Containers without an index at the end may yield the frames before the cut.
            yield Upload(f"{container} cut at {share:.0%}", name, cut, readable=share > 0.4)
        for number in range(8):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), len(whole) // 40):
                damaged[position] = int(rng.integers(256))
            yield Upload(f"{container} damaged {number}", name, bytes(damaged), readable=True)
        yield Upload(f"{container} as an image", "photo.jpg", whole, readable=True)
    long = _clip(folder / "long.mp4", "libx264", 16, 16, 5000)
    yield Upload("5,000 frames", "long.mp4", long)
    slow = _clip(folder / "slow.mp4", "libx264", 16, 16, 40, rate=1)
    yield Upload("40 seconds of 40 frames", "slow.mp4", slow, readable=True)
    wide = _clip(folder / "wide.mkv", "mjpeg", 8192, 8192, 1)
    yield Upload("frames of 67 megapixels", "wide.mkv", wide)
    mp4 = _clip(folder / "small.mp4", "libx264", 32, 32, 10)
    sizes = mp4.index(b"stsz") + 8
    many = mp4[: sizes + 4] + struct.pack(">I", 2**31) + mp4[sizes + 8 :]
    yield Upload("mp4 of 2^31 samples", "samples.mp4", many)
    lost = mp4.replace(b"moov", b"free")
    yield Upload("mp4 without its index", "moov.mp4", lost, readable=True)
    yield Upload("matroska of 2^56 bytes", "size.mkv", b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 40)
    y4m = b"YUV4MPEG2 W60000 H60000 F30:1 Ip A1:1 C420\nFRAME\n" + bytes(1000)
    yield Upload("y4m of 60,000 pixels a side", "sides.y4m", y4m)
    flv = b"FLV\x01\x01\0\0\0\x09\0\0\0\0" + b"\x09\xff\xff\xff" + bytes(100)
    yield Upload("flv with a tag beyond its end", "tag.flv", flv)


def _photo(kind: str, **options: bool) -> bytes:
    rng = np.random.default_rng(3)
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (12, 16, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _png(width: int, height: int, *chunks: tuple[bytes, bytes], rows: int | None = None) -> bytes:
    """Returns a grey PNG; ``rows`` that are there, of those that its header promises."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * (height if rows is None else rows)), 1)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def _jpeg_sides(width: int, height: int) -> bytes:
    photo = _photo("JPEG")
    start = photo.index(b"\xff\xc0") + 5
    return photo[:start] + struct.pack(">HH", height, width) + photo[start + 4 :]


def _gif_sides(width: int, height: int) -> bytes:
    photo = _photo("GIF")
    return photo[:6] + struct.pack("<HH", width, height) + photo[10:]


def _bmp_sides(width: int, height: int) -> bytes:
    photo = _photo("BMP")
    return photo[:18] + struct.pack("<II", width, height) + photo[26:]


def _clip(path: Path, codec: str, height: int, width: int, count: int, rate: int = 30) -> bytes:
    """Returns a clip of a column that moves to the right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        frame = np.zeros((height, width, 3), np.uint8)
        for number in range(count):
            frame[:] = 40
            frame[:, number % width] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()
