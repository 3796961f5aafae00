"""Videos drawn at random: container, codec, rate, start, B-frames, sound, rotation and damage."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CODECS: dict[str, tuple[str, ...]] = {
    "avi": ("mpeg4", "libx264", "mjpeg", "ffv1", "msmpeg4", "huffyuv"),
    "mp4": ("libx264", "mpeg4", "libx265"),
    "mov": ("libx264", "mjpeg", "prores"),
    "3gp": ("mpeg4", "libx264"),
    "mkv": ("libx264", "mpeg4", "ffv1", "libvpx", "libx265"),
    "webm": ("libvpx", "libvpx-vp9"),
    "flv": ("libx264", "flv"),
    "ts": ("libx264", "mpeg2video"),
    "mpg": ("mpeg1video", "mpeg2video"),
    "nut": ("mpeg4", "ffv1"),
    "wmv": ("wmv2", "msmpeg4"),
}
"""Codecs of the pictures in each container."""

_SOUND = {"avi": "pcm_s16le", "mkv": "pcm_s16le", "nut": "pcm_s16le", "webm": "libopus"}
_PIXELS = {"mjpeg": "yuvj420p", "prores": "yuv422p10le", "huffyuv": "yuv422p"}
_HAS_B_FRAMES = ("libx264", "libx265", "mpeg4", "mpeg1video", "mpeg2video")
_RATES = tuple(
    Fraction(*rate) for rate in ((24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (50, 1))
)
_SLOW_RATES = (Fraction(10), Fraction(15))  # not in MPEG-1 and MPEG-2
_INTRA = ("mjpeg", "ffv1", "huffyuv", "prores")
_ROTATES = ("mp4", "mov", "3gp", "mkv", "webm")  # containers with a display matrix

HEIGHT, WIDTH = 48, 64
CUTS = ("cut", "cut_after_packet")
"""Kinds of damage after which the file lacks its end."""


@dataclass(frozen=True)
class GeneratedVideo:
    """Properties of a generated video.

    Attributes:
        container: suffix of the file, a key of ``CODECS``.
        codec: FFmpeg's name of the encoder.
        rate: frames/s.
        num_frames: number of pictures that were encoded.
        start: time of the first picture, frames.
        b_frames: greatest number of successive B-frames.
        has_sound: a sound stream from time 0 on.
        jitter: random times of the pictures, less than half a frame off.
        rotation: counter-clockwise rotation that the display matrix asks for, degrees.
        mirrored: left and right are exchanged after the rotation.
        damage: "none"; "null_frames" (AVI: times without picture); "hidden_frames" (VP8: pictures
            that are never shown, as its alternate references are); "no_keyframe" (begins between
            two keyframes); "joined" (a second recording of another size follows); "noise" (in one
            packet); "cut" (the file's end is missing); "cut_after_packet" (likewise, between two
            packets).
        seed: of the pictures, and of the place and contents of the damage.
    """

    container: str
    codec: str
    rate: Fraction
    num_frames: int
    start: int
    b_frames: int
    has_sound: bool
    jitter: bool
    rotation: int
    mirrored: bool
    damage: str
    seed: int

    @property
    def declares_end(self) -> bool:
        """True if the container says where the file or its pictures end."""
        return self.container in ("avi", "mp4", "mov", "3gp", "mkv", "webm", "nut", "wmv")

    def upright(self, pictures: np.ndarray) -> np.ndarray:
        """Returns the pictures (T,H,W,3) as a player shows them."""
        turned = np.rot90(pictures, self.rotation // 90, axes=(1, 2))
        return turned[:, :, ::-1] if self.mirrored else turned


def draw_video(seed: int) -> GeneratedVideo:
    """Returns the properties of video ``seed``; the same for the same seed."""
    rng = np.random.default_rng(seed)
    container = str(rng.choice(list(CODECS)))
    codec = str(rng.choice(CODECS[container]))
    kinds = ["none", "none", "none", *CUTS]
    if codec not in _INTRA and container != "mpg":  # Its packets' positions are not known.
        kinds += ["noise"]
    if container == "avi" and codec != "libx264":
        kinds += ["null_frames"] * 2
    if codec == "libvpx":
        kinds += ["hidden_frames"] * 3
    if codec == "libx264" and container not in ("flv", "avi"):
        kinds += ["no_keyframe"]
    if container == "ts":
        kinds += ["joined"] * 2
    damage = str(rng.choice(kinds))
    is_mpeg = codec in ("mpeg1video", "mpeg2video")
    has_sound = container not in ("3gp", "mpg", "wmv") and rng.random() < 0.4
    return GeneratedVideo(
        container=container,
        codec=codec,
        rate=_RATES[rng.integers(len(_RATES))]
        if is_mpeg or rng.random() < 0.7
        else _SLOW_RATES[rng.integers(2)],
        num_frames=int(rng.integers(24, 49)),
        start=int(rng.choice([0, 0, 3, 7])),
        b_frames=int(rng.integers(4)) if codec in _HAS_B_FRAMES else 0,
        has_sound=bool(has_sound and damage not in ("joined", "noise", "no_keyframe")),
        jitter=bool(codec.startswith("lib") and container != "avi" and rng.random() < 0.25),
        rotation=int(rng.choice([0, 90, 180, 270])) if container in _ROTATES else 0,
        mirrored=bool(container in _ROTATES and rng.random() < 0.25),
        damage=damage,
        seed=seed,
    )


def write_generated(video: GeneratedVideo, folder: Path) -> Path:
    """Writes a generated video and returns its path; the content depends only on ``video``."""
    rng = np.random.default_rng([video.seed, 1])
    path = folder / f"{video.seed}.{video.container}"
    size = (HEIGHT, WIDTH)
    if video.damage == "joined":
        parts = []
        for part, shape in enumerate((size, (2 * HEIGHT, 2 * WIDTH))):
            piece = folder / f"{video.seed}-{part}.{video.container}"
            _encode(video, piece, shape, rng)
            parts.append(piece.read_bytes())
            piece.unlink()
        path.write_bytes(b"".join(parts))
        return path
    _encode(video, path, size, rng)
    if video.damage == "noise":
        _add_noise(path, rng)
    elif video.damage == "cut":
        content, packets = path.read_bytes(), _packets(path)
        # Within the pictures: what comes after them is no loss.
        first, last = packets[2], packets[-1]
        end = int(rng.integers(first.pos, last.pos + last.size // 2))
        path.write_bytes(content[:end])
    elif video.damage == "cut_after_packet":
        packets = _packets(path)
        kept = packets[int(rng.integers(2, len(packets) * 3 // 4))]
        path.write_bytes(path.read_bytes()[: kept.pos + kept.size])
    return path


def decode_plainly(path: Path) -> tuple[list[np.ndarray], int]:
    """Returns all pictures as FFmpeg decodes them, (H,W,3) uint8, and the number of lost packets.

    Packet by packet, without the project's code: an independent reference.
    """
    pictures, lost = [], 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        # Damage is concealed in another way by several threads, whose number is the machine's.
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                lost += 1
                continue
            pictures += [frame.to_ndarray(format="rgb24") for frame in frames]
    return pictures, lost


def _encode(
    video: GeneratedVideo, path: Path, size: tuple[int, int], rng: np.random.Generator
) -> None:
    height, width = size
    texture = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    container_options = {"fflags": "bitexact"}  # No random identifiers.
    if video.container in ("mp4", "mov", "3gp") and video.damage != "none":
        # The index first, without which nothing of a cut file can be read.
        container_options["movflags"] = "faststart"
    with av.open(str(path), "w", options=container_options) as container:
        stream: Any = container.add_stream(video.codec, rate=video.rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = _PIXELS.get(video.codec, "yuv420p")
        stream.codec_context.thread_count = 1  # Several make another file each time.
        stream.codec_context.bit_rate = 1_000_000
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = video.b_frames
        stream.options = _encoder_options(video)
        fine = 24 if video.jitter else 1
        if video.jitter:
            stream.codec_context.time_base = 1 / (video.rate * fine)
        if video.rotation or video.mirrored:
            stream.set_display_rotation(video.rotation, hflip=video.mirrored)
        sound: Any = None
        if video.has_sound:
            sound = container.add_stream(_SOUND.get(video.container, "aac"), rate=48000)
            sound.layout = "mono"
        packets = []
        times = np.arange(video.num_frames) * fine
        if video.jitter:
            times += rng.integers(-fine // 3, fine // 3, video.num_frames)
            times[0] = 0
        skipped = 0
        for number, moment in enumerate(times):
            if video.damage == "null_frames" and rng.random() < 0.1:
                skipped += 1
            image = np.roll(texture, 2 * number, axis=1)
            image[: height // 4] = 4 * number % 256
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = int(moment) + (video.start + skipped) * fine
            frame.time_base = 1 / (video.rate * fine)
            packets += stream.encode(frame)
        packets += stream.encode()
        if sound is not None:
            seconds = float((video.num_frames + video.start) / video.rate)
            packets += _encode_sound(sound, seconds, rng)
        if video.damage == "no_keyframe":
            packets = packets[5:]
        if video.damage == "hidden_frames":
            packets = _with_hidden(packets, rng)
        packets.sort(key=lambda packet: float(packet.dts * packet.time_base))
        for packet in packets:
            container.mux(packet)


def _encoder_options(video: GeneratedVideo) -> dict[str, str]:
    if video.codec == "libx264":
        # Its macroblock tree depends on memory that was never written.
        return {"bf": str(video.b_frames), "preset": "veryfast", "mbtree": "0"}
    if video.codec == "libx265":
        settings = f"bframes={video.b_frames}:keyint=12:log-level=none"
        return {"x265-params": f"{settings}:pools=none:frame-threads=1"}
    if video.codec.startswith("libvpx"):
        return {"deadline": "good", "cpu-used": "4", "lag-in-frames": "0"}
    return {}


def _with_hidden(packets: list[Any], rng: np.random.Generator) -> list[Any]:
    """Returns packets of VP8 with a few that are decoded, but never shown, before others."""
    result = []
    for number, packet in enumerate(packets):
        if not packet.is_keyframe and (number == 5 or rng.random() < 0.1):
            data = bytearray(bytes(packet))
            data[0] &= ~0x10  # RFC 6386, section 9.1: show_frame
            hidden = av.Packet(bytes(data))
            hidden.stream, hidden.time_base = packet.stream, packet.time_base
            hidden.pts, hidden.dts = packet.pts, packet.dts
            result.append(hidden)
        result.append(packet)
    return result


def _encode_sound(stream: Any, seconds: float, rng: np.random.Generator) -> list[Any]:
    samples = (rng.normal(0, 1000, (1, int(48000 * seconds)))).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    fifo = av.AudioFifo()
    fifo.write(frame)
    size = stream.codec_context.frame_size or 1024
    packets = []
    for piece in fifo.read_many(size):
        packets += stream.encode(piece)
    return packets + stream.encode()


def _packets(path: Path) -> list[Any]:
    """Returns the packets of pictures in the order in which they lie in the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
    return [packet for packet in packets if packet.pos is not None]


def _add_noise(path: Path, rng: np.random.Generator) -> None:
    """Overwrites the middle of one packet."""
    content = bytearray(path.read_bytes())
    packets = _packets(path)
    packet = packets[int(rng.integers(2, len(packets) - 2))]
    data = bytes(packet)
    # Its position in the file need not be that of its data; the data are.
    place = content.find(data)
    if place < 0:  # In pieces, as in a transport stream.
        place, data = packet.pos + 60, data[: len(data) // 2]
    begin = place + len(data) // 2
    length = max(1, min(20, len(data) // 4))
    content[begin : begin + length] = rng.bytes(length)
    path.write_bytes(content)
