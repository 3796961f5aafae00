"""Small video files for tests whose frames encode their number."""

from pathlib import Path
from typing import Any

import av
import numpy as np


def write_video(
    path: Path,
    num_frames: int = 20,
    *,
    size: tuple[int, int] = (48, 64),
    rate: int = 25,
    codec: str = "mpeg4",
    b_frames: int = 0,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video whose frame t has grey level 11 × t + 20 above a textured lower half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    texture = np.random.default_rng(0).integers(0, 256, (height // 2, width, 3), np.uint8)
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.bit_rate = 2_000_000
        stream.codec_context.gop_size = 10
        stream.codec_context.max_b_frames = b_frames
        for t in range(num_frames):
            frame = np.full((height, width, 3), 11 * t + 20, np.uint8)
            frame[height // 2 :] = np.roll(texture, t, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def frame_numbers(video: np.ndarray) -> np.ndarray:
    """Returns the numbers of (T,H,W,3) frames of ``write_video``."""
    grey = video[:, 2 : video.shape[1] // 3].astype(np.float64).mean((1, 2, 3))
    return np.round((grey - 20) / 11).astype(int)


def truncate(path: Path, num_packets: int, more: int = 0) -> None:
    """Truncates a file ``more`` bytes after its first ``num_packets`` packets."""
    with av.open(str(path)) as container:
        packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
        end = packets[num_packets - 1].pos + packets[num_packets - 1].size
    path.write_bytes(path.read_bytes()[: end + more])
