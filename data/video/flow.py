"""Optical flow as images, in the place of a video's frames.

LRCN (Donahue et al., arXiv:1411.4389, section 4.1) and two-stream networks (Simonyan and Zisserman,
arXiv:1406.2199) read flow as images. Image t shows the displacement v of each pixel from frame t to
frame t + 1, clipped to ±``BOUND`` pixels, so a video of T frames has T − 1 of them:

    channel 0   128 + 127 · v_x / BOUND
    channel 1   128 + 127 · v_y / BOUND
    channel 2   128 + 127 · min(length of v, BOUND) / BOUND

128 stands for no motion. LRCN's own images saturate at 8 pixels (16 grey levels a pixel), and its
flow is Brox's; ``compute_flow`` is DIS (Kroeger et al., 2016, arXiv:1603.03590), a hundred times as
fast.

Flow lies on disk as grey JPEG images of both components, as it is published:

    ROOT/Archery/v_Archery_g01_c01/flow_x_00001.jpg, flow_y_00001.jpg, …      TSN, MMAction2
    ROOT/v_Archery_g01_c01/flow_x_00001.jpg, …
    ROOT/u/v_Archery_g01_c01/frame000001.jpg and ROOT/v/…                     Feichtenhofer et al.

A root that this module writes (``python -m data.flow``) has ``flow.json`` with its settings, and
each video's folder one with the digests of the video and of the images.
"""

import functools
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.captions.images import ImageError, decode_image
from data.features import digest_file
from data.files import read_json, write_atomically
from data.video.clips import VideoReader
from data.video.decoding import VideoError, VideoInfo
from data.video.frame_folders import FrameFolders, each_image, stack_images
from data.video.streams import FLOW_TOLERANCE, grey
from data.video.transforms import SpatialTransform, mirror_flow

IMAGES = ("rgb", "flow")
"""Images of a video that an experiment may read."""
BOUND = 20.0
"""Greatest displacement that an image tells, pixels a frame."""
SHORT_SIDE = 240
"""Default short side of the frames whose flow is computed, pixels: that of UCF101's."""
NO_MOTION = 128

_LEAST = 12  # DIS refuses smaller frames, pixels.
_QUALITY = 95  # of JPEG
_HEADER = "flow.json"
_COMPONENT = re.compile(r"flow_([xy])_?(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
_FRAME = re.compile(r"\D*(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
_INSTALL = "pip install 'flaxnets[flow]'"


# ---- Flow and its images ---------------------------------------------------------------------


def compute_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the displacement of each pixel of a frame towards the next one, by DIS.

    Args:
        before: (H,W) uint8, grey.
        after: (H,W) uint8, grey.

    Returns:
        (H,W,2) float32, to the right and downwards, pixels.

    Raises:
        ValueError: other shapes or dtypes, or frames of less than 12 pixels.
        ImportError: the extra ``flow`` is not installed.
    """
    for name, frame in (("before", before), ("after", after)):
        if frame.ndim != 2 or frame.dtype != np.uint8 or frame.shape != before.shape:
            raise ValueError(
                f"{name}: expected (H,W) uint8 as before, received {frame.shape} {frame.dtype.name}"
            )
    if min(before.shape) < _LEAST:
        raise ValueError(
            f"before: expected at least {_LEAST} pixels high and wide, received {before.shape}"
        )
    cv2 = opencv()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    contiguous = np.ascontiguousarray(before), np.ascontiguousarray(after)
    flow: np.ndarray = dis.calc(*contiguous, None)
    return flow


def flow_to_image(flow: np.ndarray, bound: float = BOUND) -> np.ndarray:
    """Returns the image (H,W,3) uint8 of a flow (H,W,2) float32 in pixels.

    >>> flow_to_image(np.array([[[0.0, 0.0], [3.0, -4.0], [50.0, 0.0]]], np.float32))[0].tolist()
    [[128, 128, 128], [147, 103, 160], [255, 128, 255]]
    """
    components = np.rint(NO_MOTION + 127 / bound * np.clip(flow, -bound, bound)).astype(np.uint8)
    return np.dstack([components, _magnitude(np.hypot(flow[..., 0], flow[..., 1]) * 127 / bound)])


def join_components(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the image (H,W,3) uint8 of two components (H,W) uint8 as they are stored."""
    centred = x.astype(np.float32) - NO_MOTION, y.astype(np.float32) - NO_MOTION
    return np.dstack([x, y, _magnitude(np.hypot(*centred))])


def _magnitude(grey_levels: np.ndarray) -> np.ndarray:
    return np.rint(NO_MOTION + np.minimum(grey_levels, 127)).astype(np.uint8)


@dataclass(frozen=True)
class FlowTransform(SpatialTransform):
    """Crop and resize of flow images: a mirrored one also has the other horizontal direction.

    The displacements are not scaled with the images, as usual.
    """

    def mirrored(self, video: np.ndarray) -> np.ndarray:
        """Returns flow images (T,H,W,3) uint8 of the mirrored video."""
        return mirror_flow(video)


# ---- Reading ---------------------------------------------------------------------------------


def make_reader(
    images: str, *, videos: str | os.PathLike[str] = "", flow: str | os.PathLike[str] = ""
) -> VideoReader:
    """Returns the reader of the images of videos, for a ``VideoSource``.

    >>> make_reader("flow", videos="ucf101", flow="runs/flow")
    FlowImages(root='runs/flow', videos='ucf101', short_side=None, rate=25.0)

    Args:
        images: ``rgb``, the frames of video files and of folders of frames, or ``flow``.
        videos: folder of the videos, to which the folders below ``flow`` are relative.
        flow: folder of the flow; computed there where it is missing, unless it is published flow.

    Raises:
        ValueError: other images, or no folder of the flow.
    """
    if images not in IMAGES:
        raise ValueError(f"images: expected {' or '.join(IMAGES)}, received {images!r}")
    if images == "rgb":
        return FrameFolders()
    if not str(flow):
        raise ValueError("flow: expected the folder of the optical flow, received none")
    return FlowImages(str(flow), str(videos))


@dataclass(frozen=True)
class FlowImages:
    """Reader of the flow of videos, in the place of their frames.

    Where ``root`` is new or was written here, the flow of a video that has none there is computed
    and kept. Of published flow none is computed: it would be of another method.

    Attributes:
        root: folder of the flow.
        videos: folder of the videos, to which the folders below ``root`` are relative.
        short_side: pixels to which frames are scaled before their flow is computed; None: as the
            flow in ``root``, or ``SHORT_SIDE`` where there is none.
        rate: frames/s of published flow, which does not tell it.
    """

    root: str
    videos: str = ""
    short_side: int | None = None
    rate: float = 25.0

    def probe(self, path: str) -> VideoInfo:
        """Returns number, rate and size of a video's flow images.

        Raises:
            FileNotFoundError: neither flow nor video, or published flow without the video's.
            VideoError: flow frames are missing or damaged, or the video cannot be read.
            ValueError: the root holds flow of other settings.
            ImportError: flow must be computed, and the extra ``flow`` is not installed.
        """
        found = self._find(path)
        if found.info is not None:
            return found.info
        height, width = found.read(found.names[0]).shape[:2]
        return VideoInfo(len(found.names), self.rate, height, width)

    def decode(
        self, path: str, frames: Sequence[int] | np.ndarray, *, short_side: int | None = None
    ) -> np.ndarray:
        """Returns chosen flow images, (T,H,W,3) uint8; errors as of ``probe``.

        Args:
            path: the video.
            frames: (T,) int, numbers >= 0, repeats allowed; image t shows the motion from t to t+1.
            short_side: pixels to which the short side is scaled; None does not scale.
        """
        found = self._find(path)
        return stack_images(found.folder, found.names, frames, found.read, short_side)

    def decode_all(self, path: str, *, short_side: int | None = None) -> Iterator[np.ndarray]:
        """Yields all flow images in order, each (H,W,3) uint8; errors as of ``probe``."""
        found = self._find(path)
        yield from each_image(found.folder, found.names, found.read, short_side)

    def digest(self, path: str) -> str:
        """Returns a SHA-256 of a video's flow."""
        found = self._find(path)
        if found.digests:
            return digest_file(os.path.join(found.folder, _HEADER))
        both = digest_file(found.folder) + digest_file(found.folder_y)
        return hashlib.sha256(both.encode()).hexdigest()

    def find_fault(self, path: str, num_frames: int) -> str:
        """Returns what is wrong with the flow of a video, "" for nothing; reads all, computes none.

        Args:
            path: the video.
            num_frames: its number of frames.
        """
        try:
            found = self._find(path, compute=False)
            count = sum(1 for _ in each_image(found.folder, found.names, found.read, None))
        except (VideoError, FileNotFoundError, ValueError) as error:
            return str(getattr(error, "reason", error))
        if abs(count - (num_frames - 1)) > FLOW_TOLERANCE:
            return f"{count} flow frames of {num_frames} frames, expected {num_frames - 1}"
        return ""

    def folder(self, path: str) -> Path:
        """Returns the folder in which the computed flow of a video lies.

        That of a video outside of ``videos`` is named by the video's content, too.
        """
        if name := self._name_of(path):
            return Path(self.root, name)
        digest = FrameFolders().digest(path)
        return Path(self.root, f"{_without_ending(os.path.basename(path), path)}-{digest[:12]}")

    def write(self, path: str, *, verify: bool = False) -> bool:
        """Computes the flow of a video unless it is there; returns True if it was computed.

        Folders are written under a temporary name and renamed when they are complete, so a kill
        leaves no half flow.

        Args:
            path: the video.
            verify: read the flow that is there; what is damaged is computed again.

        Raises:
            FileNotFoundError: there is no such video.
            VideoError: the video cannot be read, or has one frame.
            ValueError: the root holds published flow, or flow of other settings.
            ImportError: the extra ``flow`` is not installed.
        """
        if not self._is_ours():
            raise ValueError(
                f"{self.root}: expected a new folder, or one that `python -m data.flow` wrote, "
                "received one with other files; give another --out"
            )
        folder = self.folder(path)
        digest = FrameFolders().digest(path)
        if _is_complete(folder, digest, verify=verify):
            return False
        _write_settings(Path(self.root), self._settings())
        unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.unfinished")
        unfinished.mkdir(parents=True)
        try:
            self._compute(path, digest, unfinished)
            _replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return True

    def _name_of(self, path: str) -> str:
        """Returns a video's path relative to ``videos``, without ending; "" if it is not there."""
        base, own = os.path.abspath(self.videos), os.path.abspath(path)
        if not self.videos or not Path(own).is_relative_to(base):
            return ""
        return _without_ending(os.path.relpath(own, base), path)

    def _settings(self) -> dict[str, Any]:
        return {
            "format": 1,
            "method": "DIS medium",
            "bound": BOUND,
            "short_side": self._stored().get("short_side", SHORT_SIDE)
            if self.short_side is None
            else self.short_side,
        }

    def _stored(self) -> dict[str, Any]:
        """Returns the settings of the flow in the root; empty if there are none."""
        header = Path(self.root, _HEADER)
        stored = read_json(header, "the settings of optical flow") if header.exists() else {}
        return stored if isinstance(stored, dict) else {"format": stored}

    def _is_ours(self) -> bool:
        """Returns True if flow may be written to the root."""
        stored, own = self._stored(), self._settings()
        if not stored:
            # Another process may be about to write the header.
            there = os.listdir(self.root) if os.path.isdir(self.root) else []
            return all(name.startswith(".") for name in there)
        if names := [name for name in own if stored.get(name) != own[name]]:
            listed = ", ".join(f"{n} {stored.get(n)!r} there, {own[n]!r} here" for n in names)
            raise ValueError(f"{self.root}: holds flow of other settings ({listed})")
        return True

    def _find(self, path: str, *, compute: bool = True) -> "_Found":
        if not self._is_ours():
            return self._find_published(path)
        folder = self.folder(path)
        header = folder / _HEADER
        if not header.is_file():
            if not compute:
                raise FileNotFoundError(f"no optical flow in {self.root}")
            self.write(path)
        found = _find_computed(str(folder), os.stat(header).st_mtime_ns)
        if os.path.isfile(path) and os.path.getsize(path) != found.num_bytes:
            if not compute:
                raise VideoError(folder, "optical flow of another video")
            self.write(path)
            found = _find_computed(str(folder), os.stat(header).st_mtime_ns)
        return found

    def _find_published(self, path: str) -> "_Found":
        name = self._name_of(path) or _without_ending(os.path.basename(path), path)
        parts = Path(name).parts
        for first in range(len(parts)):
            inner = os.path.join(*parts[first:])
            both = os.path.join(self.root, inner), os.path.join(self.root, inner)
            split = os.path.join(self.root, "u", inner), os.path.join(self.root, "v", inner)
            for x, y in (both, split):
                if os.path.isdir(x) and os.path.isdir(y):
                    changed = os.stat(x).st_mtime_ns, os.stat(y).st_mtime_ns
                    return _list_published(x, y, changed)
        raise FileNotFoundError(
            f"{path}: no optical flow in {self.root}, expected {os.path.join(self.root, *parts)}"
            "/flow_x_00001.jpg; to compute flow, give a new folder"
        )

    def _compute(self, path: str, digest: str, folder: Path) -> None:
        reader = FrameFolders()
        cv2 = opencv()
        files: dict[str, str] = {}
        before: np.ndarray | None = None
        number = 0
        for frame in reader.decode_all(path, short_side=self._settings()["short_side"]):
            after = np.rint(grey(frame)).astype(np.uint8)
            if before is not None:
                number += 1
                image = flow_to_image(compute_flow(before, after))
                for channel, letter in enumerate("xy"):
                    name = f"flow_{letter}_{number:05d}.jpg"
                    content = _jpeg(image[..., channel])
                    (folder / name).write_bytes(content)
                    files[name] = hashlib.sha256(content).hexdigest()
            before = after
        if before is None or not number:
            raise VideoError(path, "optical flow is between frames, and it has one alone")
        header = {
            "sha256": digest,
            "num_bytes": os.path.getsize(path) if os.path.isfile(path) else 0,
            "opencv": cv2.__version__,
            "num_frames": number,
            "rate": reader.probe(path).rate,
            "height": before.shape[0],
            "width": before.shape[1],
            "files": files,
        }
        (folder / _HEADER).write_text(json.dumps(header, indent=0), encoding="utf-8")


@dataclass(frozen=True)
class _Found:
    """The flow of a video on disk.

    Attributes:
        folder: of the horizontal components.
        folder_y: of the vertical ones, which may be the same.
        names: of the horizontal components, in their order.
        names_y: of the vertical component to each of them.
        digests: SHA-256 by name; empty for published flow.
        info: what is known of computed flow.
        num_bytes: of the video file of computed flow; 0 of a folder of frames.
    """

    folder: str
    folder_y: str
    names: tuple[str, ...]
    names_y: dict[str, str]
    digests: dict[str, str]
    info: VideoInfo | None = None
    num_bytes: int = 0

    def read(self, name: str) -> np.ndarray:
        """Returns the image (H,W,3) uint8 of a horizontal component and its vertical one."""
        name_y = self.names_y[name]
        x, y = self._component(self.folder, name), self._component(self.folder_y, name_y)
        if x.shape != y.shape:
            raise VideoError(
                self.folder,
                f"expected frames of one size, received {name} of {x.shape[0]} × {x.shape[1]} "
                f"pixels and {name_y} of {y.shape[0]} × {y.shape[1]}",
            )
        return join_components(x, y)

    def _component(self, folder: str, name: str) -> np.ndarray:
        try:
            content = Path(folder, name).read_bytes()
        except FileNotFoundError as error:
            raise VideoError(folder, f"flow frame {name} is missing") from error
        if self.digests and hashlib.sha256(content).hexdigest() != self.digests[name]:
            raise VideoError(
                folder,
                f"flow frame {name} is truncated or damaged: its digest differs; delete the "
                "folder to compute it anew",
            )
        try:
            return decode_image(io.BytesIO(content), name)[..., 0]
        except ImageError as error:
            reason = f"flow frame {name} is truncated or damaged ({error.reason})"
            raise VideoError(folder, reason) from error


def _without_ending(name: str, path: str) -> str:
    """Returns the name of a video file without its ending, that of a folder of frames as it is."""
    return name if os.path.isdir(path) else os.path.splitext(name)[0]


@functools.lru_cache(maxsize=2**14)
def _find_computed(folder: str, changed: int) -> _Found:
    del changed  # It tells one content of the folder from another.
    header = read_json(os.path.join(folder, _HEADER), "the digests of a video's flow")
    try:
        count = header["num_frames"]
        pairs = {f"flow_x_{n:05d}.jpg": f"flow_y_{n:05d}.jpg" for n in range(1, count + 1)}
        digests = {name: header["files"][name] for pair in pairs.items() for name in pair}
        info = VideoInfo(count, header["rate"], header["height"], header["width"])
        num_bytes = header["num_bytes"]
    except (KeyError, TypeError) as error:
        raise VideoError(
            folder, f"{_HEADER} is damaged ({error!r}); delete the folder to compute it anew"
        ) from error
    return _Found(folder, folder, tuple(pairs), pairs, digests, info, num_bytes)


@functools.lru_cache(maxsize=2**14)
def _list_published(folder: str, folder_y: str, changed: tuple[int, int]) -> _Found:
    del changed
    names: dict[str, dict[int, str]] = {"x": {}, "y": {}}
    for letter, place in (("x", folder), ("y", folder_y)):
        for name in sorted(os.listdir(place)):
            match = (_COMPONENT if folder == folder_y else _FRAME).fullmatch(name)
            if match and (folder != folder_y or match[1].lower() == letter):
                names[letter][int(match[match.re.groups])] = name
    numbers = sorted({*names["x"], *names["y"]})
    if not numbers:
        raise VideoError(folder, "expected flow_x_00001.jpg and so on, received none")
    for letter, place in (("x", folder), ("y", folder_y)):
        there = names[letter]
        lacking = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(there))
        if lacking:
            pattern = next(iter(there.values()), f"flow_{letter}_00001.jpg")
            width = len(re.findall(r"\d+", pattern)[-1])
            listed = [
                re.sub(r"\d+(?=\.\w+$)", f"{number:0{width}d}", pattern) for number in lacking[:3]
            ]
            more = ", …" if len(lacking) > 3 else ""
            of = f"{len(lacking)} of {numbers[-1] - numbers[0] + 1} flow frames are missing"
            raise VideoError(place, f"{of}: {', '.join(listed)}{more}")
    pairs = {names["x"][number]: names["y"][number] for number in numbers}
    return _Found(folder, folder_y, tuple(pairs), pairs, {})


# ---- Writing ---------------------------------------------------------------------------------


def _is_complete(folder: Path, digest: str, *, verify: bool) -> bool:
    """Returns True if a folder holds all flow of the video of this digest."""
    header = folder / _HEADER
    if not header.is_file():
        return False
    try:
        found = _find_computed(str(folder), header.stat().st_mtime_ns)
        stored = read_json(header, "the digests of a video's flow")["sha256"]
        there = set(os.listdir(folder))
        if stored != digest or not there.issuperset(found.digests):
            return False
        if verify:
            for name in found.names:
                found.read(name)
    except (VideoError, ValueError, KeyError):
        return False
    return True


def _write_settings(root: Path, settings: dict[str, Any]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    header = root / _HEADER
    if not header.exists():
        text = json.dumps(settings, indent=1)
        write_atomically(header, lambda place: place.write_text(text, encoding="utf-8"))


def _replace(unfinished: Path, folder: Path) -> None:
    """Puts a complete folder in its place; another thread's or process's is as good."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.unfinished")
        os.rename(folder, old)
        shutil.rmtree(old)
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not (folder / _HEADER).is_file():
            raise


def _jpeg(component: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(component).save(content, "JPEG", quality=_QUALITY)
    return content.getvalue()


def opencv() -> Any:
    """Returns OpenCV's module ``cv2``; raises ImportError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"optical flow is computed by OpenCV, which is not installed: {_INSTALL}"
        ) from error
    return cv2
