"""Copies of clips for players of browsers, which decode few containers and codecs."""

from pathlib import Path

from flaxnets.inference.runtime.media import Limits, Video

PLAYABLE = {"mp4": ("h264", "av1"), "webm": ("vp8", "vp9", "av1")}
"""Codecs that browsers play, by container."""
SHORT_SIDE = 360
"""Most pixels of the short side of a copy."""
RATE = 30
"""Most frames/s of a copy."""


def is_playable(path: str) -> bool:
    """Returns True if browsers play a clip, which ``Video`` has read before."""
    import av

    with av.open(f"file:{path}", container_options={"protocol_whitelist": "file"}) as container:
        names = container.format.name.split(",")
        codecs = {stream.codec_context.name for stream in container.streams.video}
    if "matroska" in names:  # WebM by another name; players go by what is in it.
        return path.lower().endswith(".webm") and codecs <= _decoders(PLAYABLE["webm"])
    return "mp4" in names and codecs <= _decoders(PLAYABLE["mp4"])


def write_preview(path: str, out: str, limits: Limits) -> bool:
    """Writes a clip as H.264 in mp4, small and without sound, if browsers do not play it.

    Args:
      path: the clip.
      out: file of the copy.
      limits: of what is read.

    Returns:
      True if there is a copy.

    Raises:
      MediaError: a clip that is not readable.
    """
    import av

    video = Video(path, limits=limits)
    info = video.probe()
    if is_playable(path):
        return False
    stride = max(round(info.rate / RATE), 1)
    wanted = range(0, info.num_frames, stride)
    short_side = min(SHORT_SIDE, info.height, info.width)
    with av.open(out, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = None
        for _, frame in video.frames(wanted, short_side=short_side):
            height, width = (side - side % 2 for side in frame.shape[:2])  # 4:2:0 halves them.
            if stream is None:
                rate = max(round(info.rate / stride), 1)
                stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                stream.codec_context.thread_count = 1
            picture = av.VideoFrame.from_ndarray(frame[:height, :width].copy(), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode())
    return Path(out).stat().st_size > 0


def _decoders(codecs: tuple[str, ...]) -> set[str]:
    """Returns codecs and the names of the decoders that libraries add for them."""
    return {*codecs, "libdav1d", "libvpx-vp9", "libvpx"}
