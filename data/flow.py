r"""Computes the optical flow of a folder of videos, once and in parallel.

    python -m data.flow ROOT --out=FLOW
    python -m data.flow ROOT --out=FLOW --workers=8 --short_side=240 --verify

Every video below ``ROOT``, and every folder of frames, gets a folder of flow images below ``FLOW``
under the same path (``data/video/flow.py``). The same command resumes after a kill, computes what
is new or incomplete, and leaves the rest; ``--verify`` reads the flow that is there and computes
damaged flow again. Videos that cannot be read are named, and the exit code is then 1. It needs the
extra ``flow``: ``pip install 'flaxnets[flow]'``.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from data.datasets.labelled_files import FOREIGN, VIDEO_ENDINGS
from data.loader import available_cpus, exit_with_parent
from data.video.decoding import VideoError
from data.video.flow import SHORT_SIDE, FlowImages, opencv
from data.video.frame_folders import FRAME_ENDINGS

_SHOWN = 20  # failed videos that are named
_ABANDONED = 3600.0  # Seconds without a new image after which a folder's writer is dead.


def main(arguments: Sequence[str] | None = None) -> int:
    """Computes the flow that is missing; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data.flow", description="Computes the optical flow of a folder of videos."
    )
    add = parser.add_argument
    add("root", metavar="ROOT", help="folder of the videos, at any depth")
    add("--out", required=True, help="folder of the flow, new or of an earlier call")
    add("--workers", type=int, default=0, help="processes; 0: as many as CPU cores")
    add(
        "--short_side", type=int, help=f"of the scaled frames, pixels; {SHORT_SIDE} in a new folder"
    )
    add("--verify", action="store_true", help="read the flow that is there, too")
    options = parser.parse_args(arguments)
    try:
        counts, failed = compute_all(
            options.root,
            options.out,
            workers=options.workers,
            short_side=options.short_side,
            verify=options.verify,
        )
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{counts['computed']} videos computed, {counts['there']} were there, "
        f"{len(failed)} failed: {options.out}"
    )
    for name, reason in sorted(failed.items())[:_SHOWN]:
        print(f"  {name}: {reason}", file=sys.stderr)
    if len(failed) > _SHOWN:
        print(f"  and {len(failed) - _SHOWN} more", file=sys.stderr)
    return 1 if failed else 0


def compute_all(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    workers: int = 0,
    short_side: int | None = None,
    verify: bool = False,
) -> tuple[Counter[str], dict[str, str]]:
    """Computes the flow of all videos below a folder that have none below another one.

    Args:
        root: folder of the videos.
        out: folder of the flow.
        workers: processes; 0: as many as CPU cores, 1: this one.
        short_side: pixels to which frames are scaled, at least 12; None: as of ``FlowImages``.
        verify: read the flow that is there, and compute it again where it is damaged.

    Returns:
        The numbers of videos that were ``computed`` or ``there``, and by name the reasons of those
        that failed.

    Raises:
        FileNotFoundError: there is no such root.
        ValueError: arguments out of range, a root without videos, two videos whose flow would have
            one folder, or an ``out`` that holds other flow.
        ImportError: the extra ``flow`` is not installed.
    """
    opencv()
    if short_side is not None and short_side < 12:
        raise ValueError(f"short_side: expected at least 12 pixels, received {short_side}")
    if workers < 0:
        raise ValueError(f"workers: expected 0 or more, received {workers}")
    flow = FlowImages(str(out), str(root), short_side)
    paths = list(find_videos(root))
    if not paths:
        raise ValueError(f"root: expected videos or folders of frames below {root}, found none")
    folders = Counter(flow.folder(path) for path in paths)
    if twins := [path for path in paths if folders[flow.folder(path)] > 1]:
        raise ValueError(
            f"root: expected videos that differ in more than their ending, received "
            f"{' and '.join(sorted(twins)[:2])}; rename one of them"
        )
    for unfinished in Path(out).rglob(".*.unfinished"):  # Of a writer that was killed.
        if unfinished.is_dir() and time.time() - unfinished.stat().st_mtime > _ABANDONED:
            shutil.rmtree(unfinished, ignore_errors=True)
    counts: Counter[str] = Counter()
    failed: dict[str, str] = {}

    def note(path: str, computed: bool, reason: str) -> None:
        if reason:
            failed[os.path.relpath(path, root)] = reason
        else:
            counts["computed" if computed else "there"] += 1

    with tqdm(total=len(paths), unit="video", disable=None, leave=False) as bar:
        if workers == 1 or len(paths) == 1:
            for path in paths:
                note(path, *_write(flow, path, verify))
                bar.update()
            return counts, failed
        # Spawned, as a process with threads, such as OpenCV's, may not be forked.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers or available_cpus(), context, _prepare) as executor:
            futures = {executor.submit(_write, flow, path, verify): path for path in paths}
            for future in as_completed(futures):
                note(futures[future], *future.result())
                bar.update()
    return counts, failed


def find_videos(root: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the video files and folders of frames below a folder, in the order of their paths.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"root: expected the folder of the videos, received {root}")
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in FOREIGN)
        shown = sorted(name for name in names if not name.startswith("."))
        endings = {name: os.path.splitext(name)[1].lower() for name in shown}
        yield from (str(Path(folder, n)) for n in shown if endings[n] in VIDEO_ENDINGS)
        frames = sum(endings[name] in FRAME_ENDINGS for name in shown)
        if frames > 1 and not folders and Path(folder) != Path(root):
            yield folder


def _write(flow: FlowImages, path: str, verify: bool) -> tuple[bool, str]:
    try:
        return flow.write(path, verify=verify), ""
    except (VideoError, FileNotFoundError) as error:
        return False, str(getattr(error, "reason", error))


def _prepare() -> None:
    exit_with_parent()
    opencv().setNumThreads(1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
