"""Loading of trained models: from a workdir, a folder, or by the name of a shipped one."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxnets.configuration import nearest
from flaxnets.decoders.ctc.automaton import Automaton
from flaxnets.inference.runtime.media import DEFAULT_LIMITS, Limits
from flaxnets.inference.runtime.models import CAPTIONING, Captioner, Classifier
from flaxnets.inference.runtime.readers import TRANSCRIPTION, Reader
from flaxnets.inference.runtime.words import Words, read_alphabet
from flaxnets.inference.store import (
    CARD,
    VARIABLES,
    VOCABULARY,
    ModelError,
    build_model,
    read_description,
    read_language_model,
    read_lexicon,
    read_variables,
)
from flaxnets.training.checkpoint import restore_variables
from flaxnets.training.workdir import ALPHABET, LANGUAGE_MODEL, LEXICON, Workdir

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = (PACKAGE / "shipped_models", PACKAGE.parent / "experiments" / "models")
"""Folders of shipped models: in a wheel they stand in the package, in a checkout beside it."""


def shipped_models() -> dict[str, Path]:
    """Returns the folders of the models that come with the project, by name."""
    for root in SHIPPED:
        if root.is_dir():
            return {path.parent.name: path.parent for path in sorted(root.glob("*/model.json"))}
    return {}


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a path or of a shipped model's name.

    Raises:
      ModelError: there is none.
    """
    folder = Path(path)
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, ValueError) as error:  # Too long, or with a null byte.
        raise ModelError(f"{str(path)[:80]!r}: no path of a folder ({error.args[-1]})") from error
    if is_folder:
        return folder
    shipped = shipped_models()
    if str(path) in shipped:
        return shipped[str(path)]
    if exists or folder.name != str(path):
        raise ModelError(
            f"{path}: no such folder; expected the workdir of a run, an exported folder, or the "
            f"name of a shipped model{nearest(folder.name, shipped) if shipped else ''}"
        )
    raise ModelError(
        f"{path}: neither a folder nor the name of a shipped model"
        f"{nearest(str(path), shipped) if shipped else ''}"
    )


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    allow_code: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    described: Mapping[str, Any] | None = None,
    lexicon: Automaton | None = None,
) -> Classifier | Captioner | Reader:
    """Loads a trained model; see ``flaxnets.load``.

    ``described`` takes the place of the folder's ``model.json``, and ``lexicon`` that of the words
    beside it.
    """
    folder = model_folder(path)
    is_run = (folder / "config.json").exists()
    if is_run and not (folder / "checkpoints").is_dir():
        raise ModelError(f"{folder}: a run that holds no checkpoint yet; wait for its first one")
    described = described or read_description(folder)
    if step is not None and not is_run:
        raise ValueError(f"step: expected None, since {folder} is no workdir, received {step}")
    if "export" in described:
        from flaxnets.inference.runtime.exported import load_exported

        return load_exported(folder, limits=limits)
    words = Words.load(folder / VOCABULARY) if described["kind"] == CAPTIONING else None
    reads = described["kind"] == TRANSCRIPTION
    if is_run:
        logger = logging.getLogger("absl")
        level = logger.level
        logger.setLevel(logging.ERROR)  # Orbax warns that it opens a checkpoint to read it.
        try:
            _, variables = restore_variables(Workdir(folder), step)
        except FileNotFoundError as error:
            raise ModelError(f"{folder}: holds no such checkpoint yet ({error})") from error
        finally:
            logger.setLevel(level)
    else:
        variables = read_variables(folder / VARIABLES)
    card = folder / CARD
    alphabet = read_alphabet(folder / ALPHABET) if reads else ()
    if reads and lexicon is None:
        lexicon = read_lexicon(folder / LEXICON, alphabet, described["search"])
    return build_model(
        described,
        variables,
        words,
        alphabet=alphabet,
        language_model=read_language_model(folder / LANGUAGE_MODEL) if reads else None,
        lexicon=lexicon,
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
        limits=limits,
        allow_code=allow_code,
    )
