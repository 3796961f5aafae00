"""Folders of trained models: ``model.json``, ``variables.safetensors``, vocabulary and card.

A model in such a folder loads without its experiment. ``model.json`` of format 1 holds ``kind``,
``name``, ``labels``, ``network`` (a Linen module as ``flaxnets.configuration.describe_part`` writes
it), ``encoder`` (a frozen one in front of the network, or null), ``averaging``, ``search``,
``preprocessing`` (``runtime/preprocessing.py``) and ``source``. Beside it stand a captioner's
``vocabulary.json``, a reader's ``alphabet.json`` and, if its search has them,
``language_model.safetensors`` (``CharacterNgram.to_arrays``) and ``lexicon.txt``, a word a line.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flaxnets.configuration import build_part, nearest
from flaxnets.decoders.ctc.automaton import Automaton
from flaxnets.decoders.ctc.character_ngram import CharacterNgram
from flaxnets.decoders.ctc.lexicon import make_word_lexicon
from flaxnets.decoders.search import SearchOptions
from flaxnets.encoders.config import (
    IMAGENET,
    EncoderConfig,
    load_encoder,
    make_encoder,
    weights_file,
)
from flaxnets.inference.column_functions import LinenReader, LinenSoundClassifier
from flaxnets.inference.export import to_tensors, write_safetensors
from flaxnets.inference.functions import LinenCaptioner, LinenClassifier
from flaxnets.inference.runtime.columns import LinePreprocessing, SoundPreprocessing
from flaxnets.inference.runtime.description import check_description
from flaxnets.inference.runtime.media import DEFAULT_LIMITS, Limits
from flaxnets.inference.runtime.models import CAPTIONING, SOUND, Captioner, Classifier
from flaxnets.inference.runtime.preprocessing import make_preprocessing
from flaxnets.inference.runtime.readers import TRANSCRIPTION, Reader
from flaxnets.inference.runtime.words import Words
from flaxnets.models.frozen_encoder import FrozenEncoder
from flaxnets.tasks.ctc import CTCSearch
from flaxnets.training.checkpoint import restore_variables
from flaxnets.training.workdir import (
    ALPHABET,
    LANGUAGE_MODEL,
    LEXICON,
    MODEL_FORMAT,
    Workdir,
    write_atomically,
    write_text_atomically,
)
from flaxnets.typing import PyTree

logger = logging.getLogger(__name__)

MODEL, VARIABLES, CARD = "model.json", "variables.safetensors", "README.md"
VOCABULARY = "vocabulary.json"
CHOSEN = "chosen.json"
ASSETS = (VOCABULARY, ALPHABET, LANGUAGE_MODEL, LEXICON)
"""Files beside a model that it cannot do without, as far as its kind has them."""
STORED_DTYPES = ("float32", "float16", "int8")
_SCALE = ":scale"
"""Ending of the name of an array's scales: float32, one for each index of its last axis."""


class ModelError(ValueError):
    """Folder that holds no model that can be loaded; the message says why."""


def read_description(folder: Path) -> dict[str, Any]:
    """Returns the ``model.json`` of a folder.

    Raises:
      ModelError: there is none, it is damaged, or of another format.
    """
    path = folder / MODEL
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError:
        if (folder / "config.json").exists():
            raise ModelError(
                f"{folder}: a run without {MODEL} can be neither loaded nor exported: its "
                "experiment does not describe the use of its model, or log.txt tells why it was "
                "not written; launch.evaluate --workdir and other programs run the experiment"
            ) from None
        raise ModelError(
            f"{folder}: no {MODEL} in it; expected the workdir of a run, an exported folder, or a "
            "folder of flaxnets.inference.save_model"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: unreadable ({error}); expected a model's JSON") from error
    found = described.get("format") if isinstance(described, dict) else None
    if found != MODEL_FORMAT:
        raise ModelError(
            f"{path}: expected format {MODEL_FORMAT}, received {found!r}; load it with the version "
            "of flaxnets that wrote it, or export the model again"
        )
    described = _with_chosen(described, folder / CHOSEN)
    parts: dict[str, type] = {"network": dict}
    if "export" in described:
        parts = {}
    elif described.get("kind") in (CAPTIONING, TRANSCRIPTION):
        parts["search"] = dict
    else:
        parts["averaging"] = str
    if described.get("encoder") is not None:
        parts["encoder"] = dict
    try:
        check_description(described, path, parts)
    except ValueError as error:
        raise ModelError(str(error)) from error
    return dict(described)


def _with_chosen(described: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a description with the settings of the search that were chosen after the training.

    ``chosen.json`` holds values of the run's configuration by name, as ``{"search.width": 10}``.
    """
    search = described.get("search")
    if not path.is_file() or not isinstance(search, dict):
        return described
    try:
        chosen = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        chosen = None
    if not isinstance(chosen, dict):
        raise ModelError(f"{path}: expected a JSON object of settings; delete it, and choose again")
    found = {name.removeprefix("search."): value for name, value in chosen.items()}
    return {**described, "search": {**search, **{n: found[n] for n in search if n in found}}}


def build_model(
    described: Mapping[str, Any],
    variables: Mapping[str, PyTree],
    words: Words | None = None,
    *,
    alphabet: tuple[str, ...] = (),
    language_model: CharacterNgram | None = None,
    lexicon: Automaton | None = None,
    card: str = "",
    limits: Limits = DEFAULT_LIMITS,
    allow_code: bool = False,
) -> Classifier | Captioner | Reader:
    """Makes a model of its description and variables.

    Args:
      described: as ``read_description`` returns it.
      variables: of the network; those of a frozen encoder are at ``encoder`` if they are stored,
        and then the network's at ``network``.
      words: of a captioner.
      alphabet: of a reader.
      language_model: of a reader's search; None: none.
      lexicon: of a reader's search; None: any text.
      card: Markdown.
      limits: bounds of files.
      allow_code: as for ``build_part``.

    Raises:
      ValueError: a description that cannot be built.
      ModuleNotFoundError: pretrained weights without the extra that ships them.
    """
    network = build_part(described["network"], allow_code=allow_code)
    if not isinstance(network, nn.Module):
        raise ModelError(f"network: expected a Linen module, received {type(network).__name__}")
    preprocessing = make_preprocessing(described["preprocessing"])
    _check_finite(str(described["name"]), variables)
    module = network
    if described.get("encoder"):
        module, variables = _behind_encoder(
            described["encoder"], network, variables, described, allow_code
        )
    common: dict[str, Any] = {
        "name": str(described["name"]),
        "preprocessing": preprocessing,
        "card": card,
        "limits": limits,
    }
    if described["kind"] == CAPTIONING:
        if words is None:
            raise ModelError(f"{VOCABULARY}: expected the words of the captioner, received none")
        options = SearchOptions(**described["search"])
        captioner = LinenCaptioner(module, variables, options)
        found = _traced(described, lambda: captioner.num_words(preprocessing.image_shape))
        if found != len(words):
            raise ModelError(
                f"{VOCABULARY}: expected {found} words, as many as the network has logits, "
                f"received {len(words)}; the files belong to different models"
            )
        return Captioner(words=words, functions=captioner, **common)
    if described["kind"] == TRANSCRIPTION:
        rows = _rows(preprocessing, LinePreprocessing, SoundPreprocessing)
        search = _make_search(described["search"])
        if search.lexicon and search.width and lexicon is None:
            logger.warning(
                "%s: its search keeps to the words of %s, but there is no %s beside the model; "
                "any words are read",
                *(described["name"], search.lexicon, LEXICON),
            )
        reader = LinenReader(
            module,
            variables,
            search,
            rows,
            language_model,
            lexicon=lexicon,
            reads_sound=isinstance(preprocessing, SoundPreprocessing),
        )
        found = _traced(described, lambda: reader.num_classes(preprocessing.input_shape))
        _check_alphabet(alphabet, language_model, found)
        return Reader(alphabet=alphabet, functions=reader, **common)
    if described["kind"] == SOUND:
        rows = _rows(preprocessing, SoundPreprocessing)
        classifier: LinenClassifier = LinenSoundClassifier(
            module, variables, described["averaging"], rows
        )
    else:
        classifier = LinenClassifier(module, variables, described["averaging"])
    labels = tuple(described["labels"])
    found = _traced(described, lambda: classifier.num_classes(preprocessing.clip_shape))
    if found != len(labels):
        raise ModelError(
            f"labels: expected {found} names, as many as the network has logits, received "
            f"{len(labels)}"
        )
    return Classifier(kind=described["kind"], labels=labels, functions=classifier, **common)


def _rows(preprocessing: Any, *kinds: type) -> int:
    """Returns the rows of a model's inputs: pixels of a line, bands of a spectrogram."""
    if not isinstance(preprocessing, kinds):
        raise ModelError(
            "preprocessing: expected that of the model's kind, line or log_mel, received "
            f"{type(preprocessing).__name__}"
        )
    given: Any = preprocessing
    return int(given.height if isinstance(given, LinePreprocessing) else given.num_mels)


def _make_search(settings: Mapping[str, Any]) -> CTCSearch:
    try:
        return CTCSearch(**settings)
    except TypeError as error:
        raise ModelError(f"search: expected the settings of CTCSearch ({error})") from error


def _check_alphabet(
    alphabet: tuple[str, ...], language_model: CharacterNgram | None, num_classes: int
) -> None:
    if len(alphabet) + 1 != num_classes:
        raise ModelError(
            f"{ALPHABET}: expected {num_classes - 1} characters, one less than the network has "
            f"logits, received {len(alphabet)}; the files belong to different models"
        )
    if language_model is not None and language_model.num_characters != len(alphabet):
        raise ModelError(
            f"{LANGUAGE_MODEL}: expected a model of {len(alphabet)} characters, received one of "
            f"{language_model.num_characters}; the files belong to different models"
        )


def read_language_model(path: Path) -> CharacterNgram | None:
    """Returns the language model of a file; None if there is no such file.

    Raises:
      ModelError: the file is damaged.
    """
    import safetensors
    import safetensors.numpy

    if not path.is_file():
        return None
    try:
        return CharacterNgram.from_arrays(safetensors.numpy.load(path.read_bytes()))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: unreadable ({error}); expected a language model") from error


def read_lexicon(
    path: Path, alphabet: tuple[str, ...], search: Mapping[str, Any]
) -> Automaton | None:
    """Returns the lexicon of a file of words; None if it is missing, or the search needs none.

    Raises:
      ModelError: the file is damaged, or none of its words is of the alphabet's characters.
    """
    if not (search.get("lexicon") and search.get("width") and path.is_file()):
        return None
    try:
        return make_word_lexicon(path.read_text(encoding="utf-8").split(), alphabet)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: unreadable ({error}); expected a word a line") from error


def _traced(described: Mapping[str, Any], trace: Callable[[], int]) -> int:
    """Returns what tracing the model gives; whatever fails is a reason not to load it."""
    try:
        return trace()
    except Exception as error:  # Flax and JAX raise what the module at hand raises.
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{described['name']}: its variables or preprocessing do not fit its network "
            f"({type(error).__name__}: {reason:.200})"
        ) from error


def _check_finite(name: str, variables: Mapping[str, PyTree]) -> None:
    for path, leaf in traverse_util.flatten_dict(dict(variables), sep=".").items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(np.isfinite(leaf).all()):
            raise ModelError(
                f"{name}: expected finite variables, received NaN or infinity in {path}; the "
                "training diverged: load an earlier checkpoint with step=N, or train again with a "
                "lower learning rate"
            )


def _behind_encoder(
    encoder: Mapping[str, Any],
    network: nn.Module,
    variables: Mapping[str, PyTree],
    described: Mapping[str, Any],
    allow_code: bool,
) -> tuple[FrozenEncoder, dict[str, PyTree]]:
    """Returns the network behind its frozen encoder, and the variables of both."""
    config = EncoderConfig(**encoder["config"])
    if ":" in config.name and not allow_code:
        raise ValueError(
            f"encoder: names {config.name!r}, code from outside of flaxnets; if you trust it, load "
            "with allow_code=True"
        )
    module = FrozenEncoder(
        make_encoder(config),
        network,
        pool=encoder["pool"],
        feature_dtype=jnp.dtype(encoder["feature_dtype"]),
    )
    if set(variables["params"]) == {"encoder", "network"}:
        return module, dict(variables)
    try:
        path = weights_file(config)
        loaded = load_encoder(config)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{described['name']}: {error}") from error
    digest = encoder.get("digest")
    if path and digest and hashlib.sha256(Path(path).read_bytes()).hexdigest() != digest:
        raise ModelError(
            f"{described['name']}: its features came from an encoder with other weights than "
            f"{path}; give the file or package of the training"
        )
    if loaded is None:
        size = described["preprocessing"]["size"]
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        images = jnp.zeros((1, height, width, 3), jnp.uint8)
        # The random weights of seed 0, as the features of the training had.
        init = jax.jit(lambda key: make_encoder(config).init(key, images, train=False))
        loaded = init(jax.random.key(0))
    return module, _join(loaded, variables)


def _join(encoder: Mapping[str, PyTree], network: Mapping[str, PyTree]) -> dict[str, PyTree]:
    joined: dict[str, PyTree] = {}
    for collection in {*encoder, *network}:
        parts = {"encoder": encoder.get(collection), "network": network.get(collection)}
        joined[collection] = {name: tree for name, tree in parts.items() if tree is not None}
    return joined


def save_model(
    folder: str | Path,
    described: Mapping[str, Any],
    variables: Mapping[str, PyTree],
    *,
    assets: Mapping[str, bytes] | None = None,
    card: str = "",
    dtype: str = "float32",
) -> int:
    """Writes a model's folder and returns its size in bytes.

    Args:
      folder: made if it is missing; must not hold other files.
      described: content of ``model.json``, as ``read_description`` returns it.
      variables: of the network, or of network and encoder as ``build_model`` takes them.
      assets: content of files of ``ASSETS`` by name, as a captioner's ``vocabulary.json``.
      card: content of ``README.md``.
      dtype: ``float32``; ``float16``; or ``int8``: matrices and kernels of at least 1,024 numbers
        are rounded to 8 bits with a float32 scale for each output channel, the rest to float16.

    Raises:
      ValueError: another ``dtype``, another name of a file, or a folder that holds other files.
    """
    folder, assets = Path(folder), dict(assets or {})
    if unknown := sorted(set(assets) - set(ASSETS)):
        raise ValueError(f"assets: unknown {unknown[0]!r}{nearest(unknown[0], ASSETS)}")
    if dtype not in STORED_DTYPES:
        raise ValueError(f"dtype: unknown {dtype!r}{nearest(dtype, STORED_DTYPES)}")
    own = {MODEL, VARIABLES, CARD, *ASSETS}
    others = sorted({path.name for path in folder.iterdir()} - own) if folder.is_dir() else []
    if others:
        raise ValueError(
            f"folder: expected an empty or new one, received {folder} with {', '.join(others[:3])}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _quantize(to_tensors(variables), dtype)
    write_safetensors(folder / VARIABLES, tensors, {"dtype": dtype})
    texts = {MODEL: json.dumps(described, indent=1, ensure_ascii=False) + "\n", CARD: card}
    for name, text in texts.items():
        if text:
            write_text_atomically(folder / name, text)
    for name, content in assets.items():
        write_atomically(folder / name, partial(Path.write_bytes, data=content))
    return sum(path.stat().st_size for path in folder.iterdir())


def read_variables(path: Path) -> dict[str, PyTree]:
    """Returns the variables of a ``variables.safetensors``, float32 where they are stored smaller.

    Raises:
      ModelError: the file is missing or damaged.
    """
    import safetensors
    import safetensors.numpy

    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: unreadable ({error}); expected a model's variables") from error
    flat: dict[str, np.ndarray] = {}
    # Sorted, so that a group comes after an array of its name, whatever the order of the file.
    for name, array in sorted(tensors.items()):
        if name.endswith(_SCALE):
            continue
        scale = tensors.get(name + _SCALE)
        if scale is not None:
            array = array.astype(np.float32) * scale
        elif array.dtype == np.float16:
            array = array.astype(np.float32)
        flat[name] = array
    try:
        return traverse_util.unflatten_dict(flat, sep=".")
    except (TypeError, IndexError) as error:  # A name is that of an array and of a group.
        raise ModelError(f"{path}: expected names of arrays as of a tree ({error})") from error


def _quantize(tensors: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    stored: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        is_float = np.issubdtype(array.dtype, np.floating) and dtype != "float32"
        if is_float and dtype == "int8" and array.ndim >= 2 and array.size >= 1024:
            # One scale for each output channel, the last axis of all kernels; the row of a word in
            # an embedding, whose last axis is its features.
            rows = name.endswith("embedding")
            axes = tuple(range(1, array.ndim)) if rows else tuple(range(array.ndim - 1))
            scale = np.abs(array).max(axis=axes, keepdims=True).astype(np.float32) / 127
            scale = np.where(scale > 0, scale, 1).astype(np.float32)
            stored[name] = np.clip(np.round(array / scale), -127, 127).astype(np.int8)
            stored[name + _SCALE] = scale
        else:
            # Beyond float16's range it stays as it is.
            small = is_float and np.abs(array).max(initial=0) < 65504
            stored[name] = array.astype(np.float16) if small else array
    return stored


def read_assets(folder: Path) -> dict[str, bytes]:
    """Returns the content of those files of ``ASSETS`` that a folder has, by name."""
    paths = [folder / name for name in ASSETS]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def save_run(
    workdir: Workdir,
    folder: str | Path,
    *,
    described: Mapping[str, Any] | None = None,
    step: int | None = None,
    dtype: str = "float32",
    card: str = "",
    words: Sequence[str] = (),
    allow_code: bool = False,
) -> int:
    """Writes the model of a run into a folder that loads without the run, and returns its size.

    Weights of a frozen encoder are stored too, unless a package ships them.

    Args:
      workdir: of the run.
      folder: as for ``save_model``.
      described: content of its ``model.json``; None: that of the workdir.
      step: of the checkpoint; None: the best one, or the newest.
      dtype: as for ``save_model``.
      card: content of ``README.md``.
      words: of the lexicon of a reader's search; empty: those of the workdir, if it has any.
      allow_code: as for ``build_part``.

    Raises:
      ModelError: the run has no ``model.json``.
      FileNotFoundError: no checkpoint.
      ValueError: as ``save_model``.
    """
    described = described or read_description(workdir.path)
    chosen, variables = restore_variables(workdir, step)
    encoder = described.get("encoder")
    if encoder and encoder["config"]["weights"] not in ("", IMAGENET):
        # A file of this machine.
        network = build_part(described["network"], allow_code=allow_code)
        _, variables = _behind_encoder(encoder, network, variables, described, allow_code)
        config = {**encoder["config"], "weights": Path(encoder["config"]["weights"]).name}
        described = {**described, "encoder": {**encoder, "config": config}}
    assets = read_assets(workdir.path)
    if words:
        assets[LEXICON] = "\n".join(words).encode()
    if (search := described.get("search", {})).get("lexicon"):
        # A path of this machine; the words lie beside the model.
        described = {**described, "search": {**search, "lexicon": LEXICON}}
    else:
        assets.pop(LEXICON, None)
    source = {"experiment": Path(workdir.read_config()["experiment"]).name, "step": chosen}
    return save_model(
        folder,
        {**described, "source": source},
        variables,
        assets=assets,
        card=card,
        dtype=dtype,
    )
