"""Tells what works on this machine, and which command installs what is missing.

    python -m launch.doctor

One table: Python and the packages, devices, cores, memory and disks, decoders, programs, extras.
It needs nothing but Python: packages are imported by processes of their own, so that one that is
broken, or a device that does not answer, is a line of the table. The exit code is 0 unless the base
installation is broken.
"""

from __future__ import annotations  # It also runs under Pythons that flaxnets does not support.

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence  # noqa: UP035 (collections.abc's came with Python 3.9)

import launch

ROOT = Path(__file__).resolve().parents[1]
OK, MISSING, BROKEN, NOTE = "ok", "missing", "BROKEN", "note"
"""States of a row: works; optional and not there; the base installation fails; worth knowing."""
TIMEOUT = 120.0
"""Seconds after which a process that imports packages or asks for devices has failed."""

_MODULES = {
    "absl-py": "absl",
    "array-record": "array_record.python.array_record_module",
    "ml-collections": "ml_collections",
    "orbax-checkpoint": "orbax.checkpoint",
    "pillow": "PIL.Image",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "opencv-python-headless": "cv2",
}
"""Modules of the packages whose name is another one."""

_ENABLES = {
    "pretrained": "ImageNet weights of EfficientNet-Lite0, the default encoder of photographs",
    "zarr": "fields in the format of Zarr",
    "captions": "the metrics of captions: BLEU, ROUGE-L, CIDEr; with Java also METEOR and SPICE",
    "flow": "data.flow and streams of optical flow, computed by OpenCV",
    "sweep": "launch.sweep, the search for hyper-parameters",
    "sweep-postgresql": "sweeps whose workers share a PostgreSQL server",
    "export": "launch.export, folders that run without flaxnets",
    "serve": "launch.serve, a page to try a model on",
    "docs": "make docs, the documentation",
    "onnx": "launch.export to ONNX",
    "wandb": "records of runs in Weights & Biases",
    "mlflow": "records of runs in MLflow",
    "trackio": "records of runs in Trackio",
    "cuda": "NVIDIA GPUs",
    "tpu": "Cloud TPUs",
    "bench": "make bench, the comparison with PyTorch and Keras",
    "dev": "make test and make lint",
}
"""Use of the extras of pyproject.toml."""

_PROGRAMS = (
    ("java", ("-version",), "METEOR and SPICE", "apt-get install default-jre-headless"),
    ("sbatch", ("--version",), "launch.slurm, on the login node of a cluster",
     "the cluster's administrator; for tests on this machine: apt-get install slurm-wlm munge"),
    ("kubectl", ("version", "--client"), "launch.kubernetes",
     "https://kubernetes.io/docs/tasks/tools"),
    ("gcloud", ("--version",), "launch.tpu, Cloud TPU slices",
     "https://cloud.google.com/sdk/docs/install"),
    ("nvidia-smi", ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
     "NVIDIA GPUs, with the extra cuda", "the driver of NVIDIA, on a machine with its GPU"),
)  # fmt: skip
"""Program, arguments that show its version, what it enables, and its installation."""

_VIDEO = {
    "H.264": ("h264",), "HEVC": ("hevc",), "VP8": ("vp8",), "VP9": ("vp9",),
    # FFmpeg's own decoder of AV1 needs a GPU.
    "AV1": ("libdav1d", "libaom-av1"),
    "MPEG-4": ("mpeg4",), "MPEG-2": ("mpeg2video",), "Motion JPEG": ("mjpeg",),
    "ProRes": ("prores",), "Windows Media": ("wmv2",), "Theora": ("theora",), "GIF": ("gif",),
}  # fmt: skip
_SOUND = {
    "AAC": ("aac",), "MP3": ("mp3",), "FLAC": ("flac",), "Vorbis": ("vorbis",), "Opus": ("opus",),
    "PCM": ("pcm_s16le",),
}  # fmt: skip
"""Codecs by name, with the decoders of FFmpeg of which one is needed."""

_IMPORTS = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        reason = ""
    except BaseException as error:
        reason = (type(error).__name__ + ": " + str(error)).splitlines()[0]
    print("\\n" + json.dumps([name, reason]), flush=True)
"""
_DEVICES = """
import json, jax
devices = [[d.platform, d.device_kind, d.id] for d in jax.devices()]
print("\\n" + json.dumps([jax.default_backend(), devices]))
"""
_CODECS = """
import json, sys, av
def has(name):
    try:
        return bool(av.codec.Codec(name, "r"))
    except Exception:
        return False
found = {name: has(name) for name in sys.argv[1:]}
print("\\n" + json.dumps([str(getattr(av, "ffmpeg_version_info", "")), found]))
"""
_IMAGES = """
import json
from PIL import features
names = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "libtiff": "TIFF"}
print("\\n" + json.dumps({shown: bool(features.check(name)) for name, shown in names.items()}))
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: what was looked at.
      state: ``OK``, ``MISSING``, ``BROKEN`` or ``NOTE``.
      found: version, size or reason.
      enables: what it would enable; "" if it works.
      command: command or page that installs it; "" if it works.
    """

    name: str
    state: str
    found: str
    enables: str = ""
    command: str = ""


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A requirement of ``pyproject.toml``.

    Attributes:
      name: of the package.
      extras: of the package.
      text: as it is written.
    """

    name: str
    extras: tuple[str, ...]
    text: str


def main() -> int:
    """Prints the table; returns the exit code."""
    broken = []
    for title, rows in (
        ("Base installation", check_base()),
        ("Devices", check_devices()),
        ("Machine", check_machine()),
        ("Decoders", check_decoders()),
        ("Programs", check_programs()),
        ("Extras", check_extras()),
    ):
        print(f"\n{title}")
        for row in rows:
            print("\n".join(format_row(row)), flush=True)
            broken += [row.name] if row.state == BROKEN else []
    if broken:
        print(f"\nThe base installation is broken: {', '.join(broken)}; make demo sets up .venv.")
        return 1
    print("\nThe base installation works.")
    return 0


def format_row(row: Row) -> list[str]:
    """Returns a row as text; what it would enable and the command stand below it."""
    lines = [f"  {row.name:<22}{row.state:<9}{row.found}".rstrip()]
    if row.enables:
        lines.append(f"{'':33}for {row.enables}")
    if row.command:
        lines.append(f"{'':33}by  {row.command}")
    return lines


# ---- Packages --------------------------------------------------------------------------------


def check_base() -> Iterator[Row]:
    """Yields Python, the packages that flaxnets needs, and the origin of its own."""
    problem = launch.find_problem()
    is_old = sys.version_info < (3, 11)
    found = f"{platform.python_version()}, {sys.executable}"
    if is_old:
        yield Row("Python", BROKEN, found, "flaxnets, which needs 3.11 or newer", "make demo")
    else:
        yield Row("Python", OK, found)
    try:
        base = read_requirements()[""]
    except Exception as error:
        yield Row("pyproject.toml", BROKEN, _reason(error))
        return
    modules = {r.name: _MODULES.get(r.name, r.name.replace("-", "_")) for r in base}
    present = [r.name for r in base if installed_version(r.name)]
    reasons = import_all([modules[name] for name in present])
    for requirement in base:
        name, version = requirement.name, installed_version(requirement.name)
        install = "pip install -c constraints.txt -e ."
        if not version:
            yield Row(name, BROKEN, "not installed", "all programs", install)
        elif reason := reasons[modules[name]]:
            # Installed as it is, so that pip would leave it.
            again = f"pip install -c constraints.txt --force-reinstall --no-deps {name}"
            yield Row(name, BROKEN, f"{version} cannot be imported: {reason}", "", again)
        elif not _satisfies(requirement, version):
            state = BROKEN if name in ("jax", "flax") else NOTE
            yield Row(name, state, f"{version}, expected {requirement.text}", "", install)
        else:
            yield Row(name, OK, version)
    if foreign := launch.find_foreign():
        yield Row("own packages", BROKEN, foreign)
    if problem and not is_old:
        yield Row("environment", BROKEN, problem)


def check_extras() -> Iterator[Row]:
    """Yields the extras of ``pyproject.toml``: what is installed, and what a missing one brings."""
    try:
        extras = read_requirements()
    except Exception as error:
        yield Row("pyproject.toml", BROKEN, _reason(error))
        return
    del extras[""]
    for extra, requirements in extras.items():
        missing = [name for r in requirements for name in missing_packages(r)]
        if not missing:
            versions = [f"{r.name} {installed_version(r.name)}" for r in requirements]
            shown = ", ".join(versions[:4]) + (", …" if len(versions) > 4 else "")
            yield Row(extra, OK, shown)
        else:
            yield Row(
                extra,
                MISSING,
                "without " + ", ".join(missing),
                _ENABLES.get(extra, ""),
                f"pip install -c constraints.txt -e '.[{extra}]'",
            )


def read_requirements() -> dict[str, list[Requirement]]:
    """Returns the requirements of ``pyproject.toml`` by extra, "" for the base.

    Those of another platform or Python are left out, where ``packaging`` is there to tell.
    """
    import tomllib

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    groups = {"": project["dependencies"], **project.get("optional-dependencies", {})}
    return {
        extra: [r for text in texts if (r := _requirement(text)) is not None]
        for extra, texts in groups.items()
    }


def missing_packages(requirement: Requirement) -> list[str]:
    """Returns the packages of a requirement, and of its extras, that are not installed."""
    if not installed_version(requirement.name):
        return [requirement.name]
    missing = []
    for text in importlib.metadata.requires(requirement.name) or ():
        needed = _requirement(text, requirement.extras)
        if needed is not None and not installed_version(needed.name):
            missing.append(needed.name)
    return missing


def installed_version(name: str) -> str:
    """Returns the version of an installed package; "" if there is none."""
    try:
        return str(importlib.metadata.version(name) or "unknown")
    except Exception:  # Damaged metadata raise almost anything.
        return ""


def import_all(modules: Sequence[str]) -> dict[str, str]:
    """Returns why each module cannot be imported, "" where it can, by its name.

    They are imported by one process; where it dies, as by a library of another machine's
    instructions, a further one goes on with the next module.
    """
    reasons: dict[str, str] = {}
    while rest := [name for name in modules if name not in reasons]:
        done, ended = _run_python(_IMPORTS, *rest)
        reasons.update(done)
        if len(done) < len(rest):
            reasons[rest[len(done)]] = ended or "the process ended"
    return reasons


def _requirement(text: str, extras: Sequence[str] = ()) -> Requirement | None:
    """Returns a parsed requirement; None if it is for another environment.

    Args:
      text: as in ``pyproject.toml``.
      extras: selects the requirements that a package has for these extras alone; empty: its others.
    """
    match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?([^;]*);?(.*)", text)
    if match is None:
        return None
    name, own, _, marker = match.groups()
    if marker.strip():
        try:
            from packaging.markers import Marker

            condition = Marker(marker.strip())
        except Exception:
            return None if "extra" in marker else Requirement(name, (), text)
        if "extra" in marker and not extras:
            return None
        if not any(condition.evaluate({"extra": extra}) for extra in extras or ("",)):
            return None
    parts = tuple(part.strip() for part in (own or "").split(",") if part.strip())
    return Requirement(name, parts, text)


def _satisfies(requirement: Requirement, version: str) -> bool:
    try:
        from packaging.requirements import Requirement as Parsed

        return bool(Parsed(requirement.text).specifier.contains(version, prereleases=True))
    except Exception:
        return True  # Without packaging nothing is known of the bounds.


# ---- Devices and decoders --------------------------------------------------------------------


def check_devices() -> Iterator[Row]:
    """Yields JAX's devices, and accelerators that it does not use."""
    lines, ended = _run_python(_DEVICES)
    platforms: list[str] = []
    if not lines:
        yield Row("JAX", BROKEN, f"finds no device: {ended}")
    else:
        backend, devices = lines[-1]
        platforms = [platform for platform, _, _ in devices]
        kinds = {kind: sum(kind == other for _, other, _ in devices) for _, kind, _ in devices}
        shown = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
        yield Row("JAX", OK, f"backend {backend}: {shown}")
    if os.environ.get("JAX_PLATFORMS"):
        yield Row("JAX_PLATFORMS", NOTE, f"{os.environ['JAX_PLATFORMS']}: others are not used")
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if gpus and "gpu" not in platforms and "cuda" not in platforms:
        yield _unused("NVIDIA GPU", ", ".join(gpus.splitlines()), "cuda")
    chips = sorted(path.name for path in Path("/dev").glob("accel[0-9]*"))
    if chips and "tpu" not in platforms:
        yield _unused("TPU", f"/dev/{chips[0]}", "tpu")


def check_decoders() -> Iterator[Row]:
    """Yields the codecs that PyAV's FFmpeg decodes, and the formats of images."""
    wanted = {**_VIDEO, **_SOUND}
    lines, ended = _run_python(_CODECS, *(name for names in wanted.values() for name in names))
    if not lines:
        yield Row("FFmpeg", BROKEN, ended, "videos", "pip install -c constraints.txt -e .")
    else:
        version, found = lines[-1]
        yield Row("FFmpeg", OK, f"{version}, of PyAV {installed_version('av')}")
        for title, codecs in (("video", _VIDEO), ("sound", _SOUND)):
            decoded = [name for name, tried in codecs.items() if any(found[n] for n in tried)]
            yield Row(title, OK, ", ".join(decoded))
            if absent := [name for name in codecs if name not in decoded]:
                yield Row(title, MISSING, ", ".join(absent), "files of these codecs",
                          "pip install --force-reinstall --only-binary=av av")  # fmt: skip
    lines, ended = _run_python(_IMAGES)
    if not lines:
        yield Row("Pillow", BROKEN, ended, "images", "pip install -c constraints.txt -e .")
        return
    formats = lines[-1]
    yield Row("images", OK, ", ".join(name for name, works in formats.items() if works))
    if absent := [name for name, works in formats.items() if not works]:
        yield Row("images", MISSING, ", ".join(absent), "files of these formats",
                  "pip install --force-reinstall --only-binary=pillow pillow")  # fmt: skip


def check_programs() -> Iterator[Row]:
    """Yields programs that launchers and metrics start."""
    for name, arguments, enables, command in _PROGRAMS:
        if shutil.which(name) is None:
            yield Row(name, MISSING, "not found", enables, command)
        elif output := _output(name, *arguments):
            yield Row(name, OK, output.splitlines()[0])
        else:
            yield Row(name, NOTE, f"{' '.join((name, *arguments))} fails", enables)


# ---- Machine ---------------------------------------------------------------------------------


def check_machine() -> Iterator[Row]:
    """Yields cores, memory, disks and limits of this process."""
    yield Row("system", OK, f"{platform.system()} {platform.release()}, {platform.machine()}")
    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    text = f"{allowed} of {cores}" if allowed < cores else str(cores)
    limits = cgroup_limits()
    if limits.cores is not None and limits.cores < allowed:
        yield Row(
            "CPU cores", NOTE, f"{text}, but the control group allows the time of {limits.cores:g}"
        )
    else:
        yield Row("CPU cores", OK, text)
    yield _memory_row(limits)
    yield from _huge_page_rows()
    for name, path, enables in (
        ("disk, this folder", Path.cwd(), "checkpoints and features"),
        ("disk, /tmp", Path("/tmp"), "temporary files"),
        ("shared memory", Path("/dev/shm"), "batches of --config.data.num_workers"),
    ):
        try:
            free, total = shutil.disk_usage(path).free, shutil.disk_usage(path).total
        except OSError:
            continue
        state, enough = (OK, True) if free > 2**30 else (NOTE, False)
        yield Row(
            name,
            state,
            f"{_gib(free)} of {_gib(total)} free, {path}",
            "" if enough else f"{enables}: less than 1 GiB may not suffice",
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Row("open files", OK if soft >= 1024 else NOTE, f"{soft}, at most {hard} (ulimit -n)")


def _huge_page_rows() -> Iterator[Row]:
    """Yields whether the programs get huge pages; nothing where Linux does not tell."""
    try:
        modes = launch.HUGE_PAGES.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return
    tunables = os.environ.get(launch.TUNABLES, "")
    if "[always]" in modes:
        yield Row("huge pages", OK, "of all programs")
    elif "[madvise]" in modes and any(
        f"glibc.malloc.hugetlb={kind}" in tunables.split(":") for kind in (1, 2)
    ):
        yield Row("huge pages", OK, f"of these programs, {launch.TUNABLES}={tunables}")
    else:
        off = "[never]" in modes
        reason = f"{launch.HUGE_PAGES} has {modes}"
        if not off:
            reason = f"{launch.TUNABLES}={tunables} says so, or glibc is older than 2.35"
        yield Row("huge pages", NOTE, f"none: {reason}",
                  "training on CPUs: most are 1.2 to 1.4 times as fast with them",
                  f"echo madvise | sudo tee {launch.HUGE_PAGES}" if off else "")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a control group, as those of containers and batch jobs; None: no limit.

    Attributes:
      memory: bytes.
      cores: CPU time for each time of the clock.
    """

    memory: int | None = None
    cores: float | None = None


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: str | None = None) -> Limits:
    """Returns the narrowest limits of this process's control group and those above it.

    Args:
      root: where control groups are mounted, of version 2 or 1.
      own: content of ``/proc/self/cgroup``; None: reads it.
    """
    if own is None:
        try:
            own = Path("/proc/self/cgroup").read_text()
        except OSError:
            own = ""
    memory: list[int] = []
    cores: list[float] = []
    for line in own.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        bases = [
            root / controller for controller in (controllers.split(",") if controllers else [""])
        ]
        for base in bases:
            group = base / path.strip("/")
            for folder in [group, *group.parents]:
                if folder != base and base not in folder.parents:
                    break
                memory += _numbers(folder / "memory.max") + _numbers(
                    folder / "memory.limit_in_bytes"
                )
                quota = _numbers(folder / "cpu.max") or (
                    _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
                )
                if len(quota) == 2 and quota[0] > 0 and quota[1] > 0:
                    cores.append(quota[0] / quota[1])
    memory = [size for size in memory if size < 2**60]  # Version 1 has a huge number for "none".
    return Limits(min(memory, default=None), min(cores, default=None))


def _memory_row(limits: Limits) -> Row:
    sizes = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, value = line.split(":")
            sizes[name] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return Row("memory", NOTE, "unknown")
    total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    text = f"{_gib(available)} of {_gib(total)} available"
    if limits.memory is not None and limits.memory < total:
        return Row("memory", NOTE, f"{text}, the control group allows {_gib(limits.memory)}")
    return Row("memory", OK, text)


def _unused(name: str, found: str, extra: str) -> Row:
    command = f"pip install -c constraints.txt -e '.[{extra}]'"
    return Row(name, MISSING, f"{found}, which JAX does not use", "training on it", command)


def _numbers(path: Path) -> list[int]:
    """Returns the whole numbers of a file of one line; "max" is none."""
    try:
        return [int(word) for word in path.read_text().split() if word.lstrip("-").isdigit()]
    except OSError:
        return []


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _run_python(script: str, *arguments: str) -> tuple[list[Any], str]:
    """Returns the lines of JSON that a script prints, and how it ended if not well."""
    command = [sys.executable, "-c", script, *arguments]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT)
        ended = ""
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        ended = f"no answer within {TIMEOUT:.0f} s"
    lines = []
    for line in out.splitlines():
        if line.startswith(("[", "{")):
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    if not ended and process.returncode < 0:
        ended = f"killed by signal {-process.returncode}"
    elif not ended and process.returncode > 0:
        ended = (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return lines, ended


def _output(program: str, *arguments: str) -> str:
    """Returns what a program prints; "" if it is missing, fails or does not end."""
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    text = done.stdout.strip() or done.stderr.strip()  # Java prints its version as an error.
    return text if done.returncode == 0 else ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
