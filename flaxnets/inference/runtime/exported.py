"""Exported models: StableHLO functions, parameters, preprocessing and labels in one folder.

``load_exported`` needs JAX, NumPy, Pillow, safetensors and flatbuffers (and PyAV for files of video
and sound) alone. ``python FOLDER/run.py FILE …`` runs the same on the command line.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .description import check_description
from .exported_columns import ExportedReader, ExportedSoundClassifier
from .functions import Captions, Carry, Clips
from .media import DEFAULT_LIMITS, Limits
from .models import CAPTIONING, SOUND, VIDEO, Captioner, Classifier
from .preprocessing import make_preprocessing
from .readers import TRANSCRIPTION, Reader
from .results import to_json
from .words import Words, read_alphabet

MODEL_FORMAT = 1
"""Version of ``model.json`` that is read."""
PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that the functions are lowered for, as ``jax.export`` names them."""
FRAMES_AT_ONCE = 64
"""Most frames that a function of clips is given, if that is at least one clip: all of them pass
through the encoder together."""


def load_exported(
    folder: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS
) -> Classifier | Captioner | Reader:
    """Loads a model that ``launch.export`` wrote.

    Functions are deserialised when they are first called, and compiled for each new shape.

    Args:
      folder: with ``model.json``.
      limits: bounds of the files that the model reads.

    Raises:
      ValueError: no exported model, one of another format, a damaged file, or a platform that the
        model was not exported for.
      ModuleNotFoundError: flatbuffers is missing.
    """
    path = Path(folder)
    described = _read_description(path)
    exported = described["export"]
    functions = _Functions(path, exported)
    words = None
    if described["kind"] == CAPTIONING:
        words = Words.load(path / "vocabulary.json")
    card = path / "README.md"
    common: dict[str, Any] = {
        "name": str(described["name"]),
        "preprocessing": make_preprocessing(described["preprocessing"]),
        "card": card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
        "limits": limits,
    }
    if words is not None:
        return Captioner(words=words, functions=ExportedCaptioner(functions, exported), **common)
    if described["kind"] == TRANSCRIPTION:
        alphabet = read_alphabet(path / "alphabet.json")
        return Reader(alphabet=alphabet, functions=ExportedReader(functions, exported), **common)
    own: Any = ExportedSoundClassifier if described["kind"] == SOUND else ExportedClassifier
    return Classifier(
        kind=described["kind"],
        labels=tuple(described["labels"]),
        functions=own(functions, exported),
        **common,
    )


class ExportedClassifier:
    """Functions of an exported classifier, see ``functions.ClassifierFunctions``."""

    def __init__(self, functions: "_Functions", exported: Mapping[str, Any]) -> None:
        self._functions = functions
        self.obstacle = str(exported["obstacle"])

    @property
    def causal(self) -> bool:
        """True if ``step`` is available."""
        return not self.obstacle

    def classify(self, frames: np.ndarray, lengths: np.ndarray) -> Clips:
        """Classifies clips; ``FRAMES_AT_ONCE`` frames at a time."""
        if "network" in self._functions:
            found = self._functions["network"](self._encode(frames), lengths)
            return Clips(*jax.device_get(found))
        clip = self._functions["clip"]
        rows = max(1, FRAMES_AT_ONCE // frames.shape[1])
        found = [
            jax.device_get(clip(frames[start : start + rows], lengths[start : start + rows]))
            for start in range(0, len(frames), rows)
        ]
        steps = [steps for _, steps in found if steps is not None]
        return Clips(
            np.concatenate([probabilities for probabilities, _ in found]),
            np.concatenate(steps) if steps else None,
        )

    def _encode(self, frames: np.ndarray) -> Any:
        """Returns the features (…,D) of frames (…,H,W,3) by a frozen encoder, equal ones once."""
        images = np.ascontiguousarray(frames).reshape(-1, *frames.shape[-3:])
        rows: dict[bytes, int] = {}
        places = np.array([rows.setdefault(image.tobytes(), len(rows)) for image in images])
        first = np.unique(places, return_index=True)[1]
        # The activations of two images fit into the caches of a CPU.
        size = 2 if jax.default_backend() == "cpu" else FRAMES_AT_ONCE
        encoded = []
        for start in range(0, len(first), size):
            part = images[first[start : start + size]]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
            encoded.append(np.asarray(self._functions["encode"](padded))[: len(part)])
        features = np.concatenate(encoded)[places]
        return features.reshape(*frames.shape[:-3], *features.shape[1:])

    def start(self, batch_size: int) -> Carry:
        """Returns the carry before the first frame; only where ``causal``."""
        return None  # ``step`` makes it, once it knows the size of the frames.

    def step(self, carry: Carry, frames: np.ndarray) -> tuple[Carry, np.ndarray, np.ndarray]:
        """Reads one frame of each stream; only where ``causal``."""
        if carry is None:
            carry = self._functions["start"](frames)
        carry, steps, clips = self._functions["step"](carry, frames)
        return carry, np.asarray(steps), np.asarray(clips)


class ExportedCaptioner:
    """Functions of an exported captioner, see ``functions.CaptionerFunctions``."""

    def __init__(self, functions: "_Functions", exported: Mapping[str, Any]) -> None:
        self._functions = functions
        self._most = int(exported["num_captions"])

    def caption(
        self, images: np.ndarray, num_captions: int = 1, *, attention: bool = False
    ) -> Captions:
        """Searches captions of images with the exported search, a beam of fixed size."""
        if not 1 <= num_captions <= self._most:
            raise ValueError(
                f"num_captions: expected 1 to {self._most}, as many as the exported search keeps, "
                f"received {num_captions}"
            )
        if attention and "attend" not in self._functions:
            raise ValueError(
                "attention: expected False, since the model's decoder does not attend to regions, "
                "received True"
            )
        features = self._functions["encode"](images)
        tokens, lengths, log_probabilities = self._functions["search"](features)
        weights: np.ndarray | None = None
        if attention:
            given = np.asarray(self._functions["attend"](features, tokens, lengths))
            grid = features.shape[1:3] if features.ndim == 4 else (1, given.shape[-1])
            weights = given.reshape(*given.shape[:-1], *grid)[:, :num_captions]
        return Captions(
            np.asarray(tokens)[:, :num_captions],
            np.asarray(lengths)[:, :num_captions],
            np.asarray(log_probabilities)[:, :num_captions],
            weights,
        )


class _Functions:
    """Functions of a folder by name, deserialised and compiled as they are called."""

    def __init__(self, folder: Path, exported: Mapping[str, Any]) -> None:
        platform = jax.default_backend()
        known = {"gpu": "cuda"}.get(platform, platform)
        if known not in exported["platforms"]:
            raise ValueError(
                f"{folder}: expected one of the platforms {', '.join(exported['platforms'])}, for "
                f"which the model was exported, received {platform}"
            )
        self._folder, self._files = folder, exported["functions"]
        self._exported = exported
        self._called: dict[str, Any] = {}
        self._tensors = jax.device_put(_read_tensors(folder / "variables.safetensors"))

    def __reduce__(self) -> tuple[Any, ...]:
        # Compiled functions cannot be pickled, but read anew.
        return type(self), (self._folder.absolute(), self._exported)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Any:
        if name not in self._called:
            self._called[name] = partial(jax.jit(self._read(name).call), self._tensors)
        return self._called[name]

    def _read(self, name: str) -> Any:
        file = self._folder / self._files[name]["file"]
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ValueError(f"{file}: unreadable ({error}); export the model again") from error
        if hashlib.sha256(content).hexdigest() != self._files[name]["sha256"]:
            raise ValueError(
                f"{file}: damaged, its content is not that which was exported; export the model "
                "again"
            )
        from jax import export

        try:
            return export.deserialize(bytearray(content))
        except ImportError:
            raise ModuleNotFoundError(
                "exported models are read with flatbuffers, which is not installed: "
                "pip install flatbuffers"
            ) from None
        except Exception as error:  # A newer format than this JAX knows.
            raise ValueError(
                f"{file}: this JAX {jax.__version__} cannot read it ({error}); use a JAX at least "
                "as new as the one that exported it"
            ) from error


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        described = json.loads(path.read_bytes())
        found, _ = described["format"], described["export"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder}: expected a folder that launch.export wrote, received one whose model.json "
            f"is missing or no export ({type(error).__name__}: {error})"
        ) from error
    if found != MODEL_FORMAT:
        raise ValueError(
            f"{path}: expected an export of format {MODEL_FORMAT}, received format {found!r:.80}; "
            "load it with the runtime in its own folder, or export the model again"
        )
    _check_export(described, path)
    return dict(described)


def _check_export(described: dict[str, Any], path: Path) -> None:
    """Checks the fields of an export; raises a ``ValueError`` that begins with the path."""
    check_description(described, path, {"export": dict})
    exported = described["export"]
    functions, needed = exported.get("functions"), {"encode", "search"}
    parts: dict[str, type] = {"functions": dict, "platforms": list}
    if described["kind"] == CAPTIONING:
        parts["num_captions"] = int
    elif described["kind"] in (TRANSCRIPTION, SOUND):
        reads = described["kind"] == TRANSCRIPTION
        parts |= {"stride": int, "obstacle": str}
        needed = {"greedy", "beam"} if reads else {"clip"}
        if reads:
            parts |= {"beam_width": int, "own_beam_width": int}
        if not exported.get("obstacle"):
            parts["context"] = list
            needed |= {"start", "step"}
    else:
        parts["obstacle"] = str
        # Streams of images are made of whole clips.
        streams = described["kind"] == VIDEO and described["preprocessing"].get("kind") == "clip"
        causal = streams and not exported.get("obstacle")
        needed = {"clip", "start", "step"} if causal else {"clip"}
    complete = all(isinstance(exported.get(name), kind) for name, kind in parts.items())
    if not complete or not needed <= set(functions):
        raise ValueError(
            f"{path}: export: expected {', '.join(parts)} and the functions "
            f"{', '.join(sorted(needed))}, received {exported!r:.80}; export the model again"
        )
    for name, entry in functions.items():
        file = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(file, str) or Path(file).name != file or "sha256" not in entry:
            raise ValueError(
                f"{path}: {name}: expected a file of this folder and its sha256, received "
                f"{entry!r:.80}; export the model again"
            )


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return dict(safetensors.numpy.load_file(path))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: unreadable ({error}); export the model again") from error


def main(folder: str | os.PathLike[str], arguments: Sequence[str]) -> int:
    """Classifies, captions or reads files, one JSON line for each; returns the exit code.

    Args:
      folder: of the exported model.
      arguments: of the command line.
    """
    model = load_exported(folder)
    parser = argparse.ArgumentParser(description=f"{model.name}: {model.kind}")
    parser.add_argument("files", nargs="+")
    if isinstance(model, Captioner):
        parser.add_argument("--num_captions", type=int, default=1)
    elif isinstance(model, Reader):
        parser.add_argument("--beam_width", type=int)
    else:
        parser.add_argument("--top", type=int, default=5)
    options = parser.parse_args(arguments)
    failed = 0
    for path in options.files:
        try:
            if isinstance(model, Captioner):
                found: Any = {"captions": model.caption(path, num_captions=options.num_captions)}
            elif isinstance(model, Reader):
                found = model.read(path, beam_width=options.beam_width)
            else:
                found = {"predictions": model.predict(path).top(options.top)}
        except OSError as error:
            failed += 1
            line = {"path": path, "error": str(error).removeprefix(f"{path}: ")}
        else:
            line = {"path": path, **to_json(found)}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return int(failed > 0)
