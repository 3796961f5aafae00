"""Export of a model to a folder that runs without flaxnets, Flax and the training code.

The folder holds the model's functions as StableHLO (``jax.export``), lowered for CPUs, CUDA GPUs
and TPUs and for any batch size and number of steps; its parameters, which the functions take as
arguments; ``model.json`` with labels and preprocessing; a captioner's vocabulary or a reader's
alphabet; the card; and the code of ``flaxnets/inference/runtime``, which needs JAX, NumPy, Pillow,
safetensors and flatbuffers.
On request the functions stand there as ONNX, too, for any batch size and the number of steps of a
clip; of readers the logits of lines or spectrograms of one width, whose search is the caller's
(``flaxnets/inference/onnx_conversion.py``).

What is fastest on a CPU alone is in the functions beside what is fast elsewhere
(``jax.lax.platform_dependent``), so that each platform runs its own. Three things differ from the
functions of a workdir: convolutions by Winograd's algorithm and chunks of a batch, which need to
know the batch size, are convolutions of XLA and whole batches; an associative scan over time, which
needs to know the number of steps, is a loop; cuDNN's LSTM is the scan with the same parameters.
"""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.inference import onnx_conversion
from flaxnets.inference.column_exporting import (
    logits_of_columns,
    lower_reader,
    lower_sound_classifier,
)
from flaxnets.inference.column_functions import LinenReader, LinenSoundClassifier
from flaxnets.inference.export import to_tensors, write_safetensors
from flaxnets.inference.functions import LinenCaptioner, LinenClassifier
from flaxnets.inference.lowering import ExportedFunction, lower, portable
from flaxnets.inference.runtime import exported as runtime
from flaxnets.inference.runtime.columns import SoundPreprocessing
from flaxnets.inference.runtime.models import SOUND, Captioner, Classifier
from flaxnets.inference.runtime.preprocessing import StreamPreprocessing
from flaxnets.inference.runtime.readers import Reader
from flaxnets.inference.store import ASSETS
from flaxnets.models.frozen_encoder import FrozenEncoder
from flaxnets.training.workdir import (
    LANGUAGE_MODEL,
    LEXICON,
    write_atomically,
    write_text_atomically,
)
from flaxnets.typing import Array, PyTree

ONNX_COLUMNS = 2_048
"""Default width of the inputs of a reader's ONNX."""
_RUN = '''"""Classifies, captions or reads files: python run.py FILE …; one JSON line for each."""

import sys
from pathlib import Path

from runtime.exported import main

sys.exit(main(Path(__file__).parent, sys.argv[1:]))
'''

_USE = """
## This folder

`python run.py FILE …` prints one JSON line for each file. In Python, from this folder:

```python
from runtime.exported import load_exported

model = load_exported(".")
{use}
```

It needs `pip install {needs}`, and neither flaxnets nor Flax. The functions (`*.stablehlo`) take
the arrays of `variables.safetensors` as their first argument, by name; they run on {platforms}.
"""

_ONNX = """
### ONNX

`{files}` hold functions of the model with their parameters, for onnxruntime: {batch}, {sizes}.
They were within {difference:.1e} of JAX's results. Their inputs are preprocessed
as `model.json` says, where their names stand under `export.onnx`.{refused}

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
outputs = session.run(None, {{{inputs}}})
```
"""


def export_model(
    model: Classifier | Captioner | Reader,
    described: Mapping[str, Any],
    folder: str | Path,
    *,
    assets: Mapping[str, bytes] | None = None,
    onnx: bool = False,
    onnx_columns: int = ONNX_COLUMNS,
) -> dict[str, int]:
    """Writes a model as a folder that runs by itself.

    Args:
      model: of ``flaxnets.load``, of a workdir or a stored folder.
      described: its ``model.json``.
      folder: made if it is missing; must be empty.
      assets: of ``store.read_assets``: a captioner's vocabulary, a reader's alphabet.
      onnx: whether functions are also written as ONNX; ``export.onnx`` of the folder's
        ``model.json`` tells the differences from JAX, and what the converter refused.
      onnx_columns: width of the inputs of a reader's ONNX, columns or frames, rounded up to whole
        steps.

    Returns:
      Sizes of the files in bytes, by name; ``runtime`` is the sum of the copied code.

    Raises:
      ValueError: a folder that is not empty, a model that is an export already, a part that has
        no StableHLO on all platforms, or a model of which the converter to ONNX takes no function
        or makes one of other results. Nothing is written then.
      ModuleNotFoundError: flatbuffers, or with ``onnx`` jax2onnx or onnxruntime, is missing.
    """
    path = Path(folder)
    check_empty(path)
    functions: Any = model.functions
    if not isinstance(functions, LinenClassifier | LinenCaptioner | LinenReader):
        raise ValueError("model: expected one of a workdir or stored folder, received an export")
    if onnx:
        onnx_conversion.check_installed()  # Before anything takes time.
    if isinstance(functions, LinenReader):
        lowered, variables, details = lower_reader(functions)
    elif isinstance(functions, LinenSoundClassifier):
        assert isinstance(model.preprocessing, SoundPreprocessing)
        lowered, variables, details = lower_sound_classifier(functions, model.preprocessing)
    elif isinstance(functions, LinenClassifier):
        lowered, variables, details = _lower_classifier(model, functions)
    else:
        lowered, variables, details = _lower_captioner(model, functions)
    described_onnx: dict[str, Any] | None = None
    onnx_files: dict[str, bytes] = {}
    if onnx:
        converted, own, num_steps = lowered, variables, _num_steps(model)
        if isinstance(functions, LinenReader):
            num_steps = -(-onnx_columns // functions.stride) * functions.stride
            # Without the tables of the search.
            converted, own = [logits_of_columns(functions, num_steps)], functions.variables
        elif isinstance(functions, LinenSoundClassifier):
            converted = lowered[:1]  # Streams of sound are chunks of another form than of clips.
        described_onnx, onnx_files = _convert_all(converted, own, num_steps)
    path.mkdir(parents=True, exist_ok=True)
    for name, content in onnx_files.items():
        (path / name).write_bytes(content)
    entries = {}
    for function in lowered:
        file = path / f"{function.name}.stablehlo"
        file.write_bytes(function.content)
        digest = hashlib.sha256(function.content).hexdigest()
        entries[function.name] = {"file": file.name, "sha256": digest}
    write_safetensors(path / "variables.safetensors", to_tensors(variables), {"dtype": "float32"})
    export = {
        "platforms": list(runtime.PLATFORMS),
        "jax": jax.__version__,
        "functions": entries,
        **details,
    }
    if described_onnx is not None:
        export["onnx"] = described_onnx
    text = json.dumps({**described, "export": export}, indent=1, ensure_ascii=False)
    write_text_atomically(path / "model.json", text + "\n")
    for name in set(ASSETS) - {LANGUAGE_MODEL, LEXICON}:  # Their tables are among the variables.
        if assets and name in assets:
            write_atomically(path / name, partial(Path.write_bytes, data=assets[name]))
    write_text_atomically(path / "README.md", _card(model, described_onnx))
    write_text_atomically(path / "run.py", _RUN)
    code = path / "runtime"
    code.mkdir()
    for source in sorted(Path(runtime.__file__).parent.glob("*.py")):
        shutil.copyfile(source, code / source.name)
    sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    return sizes | {"runtime": sum(file.stat().st_size for file in code.iterdir())}


def check_empty(folder: Path) -> None:
    """Checks that an export may be written to a folder.

    Raises:
      ValueError: it is a file, or not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: expected a folder that is new or empty, received the file {folder}")
    if folder.is_dir() and any(folder.iterdir()):
        some = ", ".join(sorted(file.name for file in folder.iterdir())[:3])
        raise ValueError(f"out: expected a folder that is new or empty, {folder} holds {some}")


def _lower_classifier(
    model: Any, functions: LinenClassifier
) -> tuple[list[ExportedFunction], Mapping[str, PyTree], dict[str, Any]]:
    """Returns the functions of a classifier, its variables, and what its runtime must know."""
    module, variables = portable(functions.module), functions.variables
    own = LinenClassifier(module, variables, functions.task.loss_kind)
    image = _image_shape(model.preprocessing)
    streams: tuple[int, ...] = ()
    if isinstance(model.preprocessing, StreamPreprocessing):
        streams = (len(model.preprocessing.streams),)

    def clip(variables: PyTree, frames: Array, lengths: Array) -> Any:
        return own.classify_clips(variables, frames, lengths)

    def lower_clip(steps: str) -> ExportedFunction:
        b, t = jax.export.symbolic_shape(f"b,{steps}")
        shapes = (
            jax.ShapeDtypeStruct((b, t, *streams, *image), jnp.uint8),
            jax.ShapeDtypeStruct((b,), jnp.int32),
        )
        return lower("clip", clip, variables, *shapes)

    num_steps = None
    if _needs_fixed_length(module):
        num_steps = model.preprocessing.num_frames
    lowered = [lower_clip(str(num_steps or "t"))]
    details = {"num_steps": num_steps, "obstacle": own.obstacle}
    if isinstance(module, FrozenEncoder):
        # In two parts, so that equal frames of overlapping clips are encoded once.
        def encode(variables: PyTree, images: Array) -> Any:
            return module.apply(variables, images, method="encode")

        def network(variables: PyTree, features: Array, lengths: Array) -> Any:
            return own.classify_clips(variables, features, lengths, method="apply_network")

        n, b, t = jax.export.symbolic_shape(f"n,b,{num_steps or 't'}")
        images = jax.ShapeDtypeStruct((n, *image), jnp.uint8)
        of_one = jax.eval_shape(encode, variables, images)
        features = jax.ShapeDtypeStruct((b, t, *streams, *of_one.shape[1:]), of_one.dtype)
        lengths = jax.ShapeDtypeStruct((b,), jnp.int32)
        lowered += [
            lower("encode", encode, variables, images),
            lower("network", network, variables, features, lengths),
        ]
    if own.causal and not streams:
        (b,) = jax.export.symbolic_shape("b")
        frames = jax.ShapeDtypeStruct((b, *image), jnp.uint8)
        structure = jax.tree.structure(
            jax.eval_shape(own.start_stream, variables, jnp.zeros((1, *image), jnp.uint8))
        )

        # Carries pass as lists of arrays: a structure may hold types that only flaxnets knows.
        def start(variables: PyTree, frames: Array) -> list[Array]:
            return jax.tree.leaves(own.start_stream(variables, frames))

        def step(variables: PyTree, leaves: list[Array], frames: Array) -> Any:
            carry = jax.tree.unflatten(structure, leaves)
            carry, steps, clips = own.step_stream(variables, carry, frames)
            return jax.tree.leaves(carry), steps, clips

        leaves = jax.eval_shape(start, variables, frames)
        lowered += [
            lower("start", start, variables, frames),
            lower("step", step, variables, leaves, frames),
        ]
    return lowered, variables, details


def _lower_captioner(
    model: Any, functions: LinenCaptioner
) -> tuple[list[ExportedFunction], Mapping[str, PyTree], dict[str, Any]]:
    """Returns the functions of a captioner, its variables, and what its runtime must know."""
    module, variables = portable(functions.module), functions.variables
    own = LinenCaptioner(module, variables, functions.options)
    if isinstance(module, FrozenEncoder):
        search_module: nn.Module = module

        def encode(variables: PyTree, images: Array) -> Any:
            return module.apply(variables, images, method="encode")

    else:
        # The search reads the features that ``encode`` made, so that attention needs no third pass.
        search_module = module.clone(encoder=None)

        def encode(variables: PyTree, images: Array) -> Any:
            return module.apply(variables, images, method=_encode_images)

    own = LinenCaptioner(search_module, variables, functions.options)

    def search(variables: PyTree, features: Array) -> Any:
        found = own.search(variables, features, beam_size=own.options.beam_size)
        return found.tokens, found.lengths, found.log_probs

    def attend(variables: PyTree, features: Array, tokens: Array, lengths: Array) -> Any:
        return own.attend(variables, features, tokens, lengths)

    (b,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((b, *_image_shape(model.preprocessing)), jnp.uint8)
    features = jax.eval_shape(encode, variables, images)
    tokens, lengths, _ = jax.eval_shape(search, variables, features)
    lowered = [
        lower("encode", encode, variables, images),
        lower("search", search, variables, features),
    ]
    if jax.eval_shape(attend, variables, features, tokens, lengths) is not None:
        lowered.append(lower("attend", attend, variables, features, tokens, lengths))
    return lowered, variables, {"num_captions": int(tokens.shape[1])}


def _encode_images(captioner: Any, images: Array) -> Array:
    features: Array = captioner._encode(images, None, None, train=False)[0]
    return features


def _num_steps(model: Any) -> int:
    """Returns the number of steps of a clip, 1 of an image."""
    given = model.preprocessing
    found = (getattr(given, name, None) for name in ("num_frames", "num_steps"))
    return int(next(filter(None, found), 1))


def _convert_all(
    lowered: list[ExportedFunction], variables: Mapping[str, PyTree], num_steps: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Converts functions to ONNX.

    Returns:
      What ``model.json`` says of them, and their files by name.

    Raises:
      ValueError: none can be converted, or one has other results than JAX.
    """
    functions = {function.name: function for function in lowered}
    names = [name for name in _ONNX_NAMES if name in functions]
    if "clip" in functions:
        names = [name for name in names if name != "encode"]  # ``clip`` has it within.
    called = {name: jax.jit(function.function) for name, function in functions.items()}

    def example(name: str, size: int) -> tuple[Any, ...]:
        """Returns arguments such as the function gets in use, of a batch of ``size``."""
        if name == "step":
            (frames,) = example("start", size)
            carry = called["start"](variables, frames)
            for _ in range(2):
                carry = called["step"](variables, carry, frames)[0]
            return carry, frames[::-1]
        if name in ("search", "attend"):
            features = called["encode"](variables, *example("encode", size))
            if name == "search":
                return (features,)
            tokens, lengths, _ = called["search"](variables, features)
            return features, tokens, lengths
        random = np.random.default_rng(size)
        inputs = []
        for shape in _fix_sizes(functions[name].shapes, num_steps, size):
            if shape.dtype == jnp.uint8:
                images = random.integers(0, 256, (size, *shape.shape[1:]))
                inputs.append(images.astype(np.uint8))
            elif shape.dtype == jnp.float32:
                inputs.append(random.normal(size=shape.shape).astype(np.float32))
            else:  # Lengths: a whole clip, then shorter ones.
                inputs.append(np.maximum(num_steps - np.arange(size), 1).astype(np.int32))
        return tuple(inputs)

    converted, refused = {}, {}
    batch_sizes: dict[str, int | None] = {}
    for name in names:
        function = functions[name]
        taken, given = _ONNX_NAMES[name]
        results = jax.eval_shape(function.function, variables, *example(name, 1))
        # Some operations are converted for a batch size that is known alone.
        for batch_size in (None, 1):
            shapes = _fix_sizes(function.shapes, num_steps, batch_size)
            sizes = onnx_conversion.BATCH_SIZES if batch_size is None else (batch_size,)
            try:
                converted[name] = onnx_conversion.convert(
                    name,
                    partial(function.function, variables),
                    shapes,
                    [example(name, size) for size in sizes],
                    _spread(taken, shapes),
                    _spread(given, results if isinstance(results, tuple) else (results,)),
                )
            except onnx_conversion.ConversionRefused as error:
                refused[name] = str(error)
            else:
                refused.pop(name, None)
                batch_sizes[name] = batch_size
                break
    if not converted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ValueError(
            f"onnx: expected a model that jax2onnx converts, but it refuses {reasons}; export "
            "without --onnx"
        )
    files = {f"{name}.onnx": function.content for name, function in converted.items()}
    described = {
        "jax2onnx": importlib.metadata.version("jax2onnx"),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "tolerance": onnx_conversion.TOLERANCE,
        "num_steps": num_steps,
        "functions": {
            name: {
                "file": f"{name}.onnx",
                "sha256": hashlib.sha256(function.content).hexdigest(),
                "inputs": list(function.inputs),
                "outputs": list(function.outputs),
                "batch_size": batch_sizes[name],
                "difference": function.difference,
            }
            for name, function in converted.items()
        },
        "refused": refused,
    }
    return described, files


_ONNX_NAMES = {
    "clip": (("frames", "lengths"), ("probabilities", "step_probabilities")),
    "start": (("frames",), ("carry",)),
    "step": (("carry", "frames"), ("new_carry", "step_probabilities", "probabilities")),
    "encode": (("images",), ("features",)),
    "search": (("features",), ("tokens", "lengths", "log_probabilities")),
    "attend": (("features", "tokens", "lengths"), ("attention",)),
    "logits": (("inputs", "lengths"), ("logits", "steps")),
}
"""Functions that are converted, with the names of their inputs and outputs."""


def _spread(names: tuple[str, ...], values: Any) -> list[str]:
    """Returns a name for each array; those of a list are numbered, None has none."""
    spread: list[str] = []
    for name, value in zip(names, values, strict=True):
        count = len(jax.tree.leaves(value))
        several = [f"{name}_{index}" for index in range(count)]
        spread += several if isinstance(value, list) else [name] * count
    return spread


def _fix_sizes(shapes: tuple[Any, ...], num_steps: int, batch_size: int | None) -> tuple[Any, ...]:
    """Returns shapes whose symbol ``t`` is a number, and that of the batch, too, unless None."""

    def fix_one(size: Any) -> Any:
        if isinstance(size, int):
            return size
        if str(size) == "t":
            return num_steps
        return size if batch_size is None else batch_size

    def fix(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(map(fix_one, shape.shape)), shape.dtype)

    return tuple(jax.tree.map(fix, shapes))


def _needs_fixed_length(module: Any) -> bool:
    classifier = getattr(module, "classifier", None)
    if classifier is None and hasattr(module, "network"):
        return _needs_fixed_length(module.network)
    return getattr(getattr(classifier, "pool", None), "__name__", "") == "pool_concatenate"


def _image_shape(preprocessing: Any) -> tuple[int, int, int]:
    size = preprocessing.size
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width), 3


def _card(model: Classifier | Captioner | Reader, onnx: Mapping[str, Any] | None) -> str:
    """Returns the model's card with a section on the use of the folder."""
    card = model.card or f"# {model.name}\n\nA model of the kind {model.kind}.\n"
    if isinstance(model, Captioner):
        use = 'model.caption("photo.jpg", num_captions=2, attention=True)'
    elif isinstance(model, Reader):
        use = f'model.read("{"recording.wav" if model.reads_sound else "line.png"}").text'
    elif model.kind == SOUND:
        use = 'model.predict("recording.wav").top(3)'
    elif model.kind == "video_classification":
        use = 'model.predict("clip.mp4").top(3)'
    else:
        use = 'model.predict("photo.jpg").top(3)'
    needs = f"'jax=={jax.__version__}' numpy pillow safetensors flatbuffers"
    reads_sound = isinstance(model, Reader) and model.reads_sound
    if reads_sound or model.kind in ("video_classification", SOUND):
        needs += " av"
    platforms = "CPUs, NVIDIA GPUs (`pip install 'jax[cuda13]'`) and TPUs (`'jax[tpu]'`)"
    text = card.rstrip() + "\n" + _USE.format(use=use, needs=needs, platforms=platforms)
    if onnx is None:
        return text
    functions, refused = onnx["functions"], onnx["refused"]
    first = next(iter(functions.values()))
    one = any(function["batch_size"] for function in functions.values())
    sizes = f"{onnx['num_steps']} steps in a clip"
    if isinstance(model, Reader):
        what, unit = ("spectrograms", "frames") if model.reads_sound else ("lines", "columns")
        sizes = (
            f"{what} filled up to {onnx['num_steps']} {unit}; class 0 of the logits is CTC's "
            "blank, class k the k-th character of `alphabet.json`"
        )
    return text + _ONNX.format(
        files="`, `".join(function["file"] for function in functions.values()),
        sizes=sizes,
        batch="one example at a time" if one else "any batch size",
        difference=max(function["difference"] for function in functions.values()),
        refused="".join(f"\njax2onnx refused `{name}` ({why})." for name, why in refused.items()),
        file=first["file"],
        inputs=", ".join(f'"{name}": {name}' for name in first["inputs"]),
    )
