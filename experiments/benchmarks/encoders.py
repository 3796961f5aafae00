"""Feature extraction with EfficientNet-Lite0: images/s, side by side in one run.

    python -m experiments.benchmarks.encoders [--batch_size=32] [--image_size=224] [--repeats=9]

Compares the encoder on chunks of images (``map_in_chunks``), on the whole batch, on the whole batch
with XLA's native grouped convolution (that of ``nn.Conv``), and PyTorch, channels-last, where it is
installed. The ways take turns, so that other load on the machine affects all of them; a ratio is
the median of the rounds' ratios. Prints a table, writes ``--out``, and writes the ratios as
Markdown beside it.
"""

import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from absl import app, flags
from flax import linen as nn

from experiments.benchmarks.timing import measure
from flaxnets.configuration import local_path
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.pretrained import find_efficientnet_lite0, load_efficientnet_lite0
from flaxnets.layers.batch_sharding import map_in_chunks
from flaxnets.layers.depthwise import DepthwiseConv, native_depthwise_conv
from flaxnets.training.workdir import write_text_atomically

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images in a batch.", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 224, "Height and width of the images, pixels.", lower_bound=32
)
_REPEATS = flags.DEFINE_integer("repeats", 9, "Number of timed rounds.", lower_bound=1)
_CHUNK_SIZE = flags.DEFINE_integer("chunk_size", 2, "Images in a chunk.", lower_bound=1)
_OUT = flags.DEFINE_string("out", "runs/bench/encoders.json", "JSON file for the results.")

Encode = Callable[[np.ndarray], np.ndarray]
"""Images (N,H,W,3) uint8 to feature maps (N,h,w,1280) float32, ready on return."""

CHUNKED = "flaxnets, in chunks"
WHOLE = "flaxnets, whole batch"
NATIVE = "native grouped convolution"
PYTORCH = "PyTorch, channels-last"
# The native convolution takes up to 10 s for a batch.
_ROUNDS_AT_MOST = {NATIVE: 3}


def make_encoders(chunk_size: int) -> dict[str, Encode]:
    """Returns functions that compute the same feature maps, by the name of the implementation."""
    model = EfficientNetLite0()
    variables = jax.device_put(load_efficientnet_lite0())

    def whole(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    def chunked(variables: Any, images: jax.Array) -> Any:
        return map_in_chunks(lambda chunk: whole(variables, chunk), images, chunk_size)

    def native(variables: Any, images: jax.Array) -> Any:
        with nn.intercept_methods(_use_native_convolution):
            return whole(variables, images)

    def jitted(function: Callable[[Any, jax.Array], Any]) -> Encode:
        compiled = jax.jit(function)
        return lambda images: np.asarray(compiled(variables, images))

    encoders = {CHUNKED: jitted(chunked), WHOLE: jitted(whole), NATIVE: jitted(native)}
    if importlib.util.find_spec("torch") is not None:
        encoders[PYTORCH] = _make_torch_encoder()
    return encoders


def _use_native_convolution(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    if not isinstance(context.module, DepthwiseConv) or context.method_name != "__call__":
        return call(*args, **kwargs)
    kernel: Any = context.module.get_variable("params", "kernel")
    return native_depthwise_conv(args[0], kernel, context.module.strides)


def _make_torch_encoder() -> Encode:
    import torch

    from experiments.benchmarks.torch_efficientnet_lite import TorchEfficientNetLite0

    torch.set_num_threads(os.cpu_count() or 1)
    model = TorchEfficientNetLite0().eval()
    model.load_state_dict(torch.load(find_efficientnet_lite0(), weights_only=True))
    model = model.to(memory_format=torch.channels_last)

    def encode(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # The array is channels-last in memory, so the permutation copies nothing.
            x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127.0) / 128.0
            maps: np.ndarray = model(x).permute(0, 2, 3, 1).numpy()
        return maps

    return encode


def summarize(seconds: Mapping[str, list[float]], batch_size: int) -> dict[str, dict[str, float]]:
    """Returns images/s of the median round, milliseconds, and the speed-up of the first way."""
    ours = seconds[CHUNKED]
    results = {}
    for name, rounds in seconds.items():
        ratios = [theirs / own for theirs, own in zip(rounds, ours, strict=False)]
        results[name] = {
            "images_per_second": batch_size / statistics.median(rounds),
            "milliseconds": 1e3 * statistics.median(rounds),
            "milliseconds_min": 1e3 * min(rounds),
            "milliseconds_max": 1e3 * max(rounds),
            "speed_of_chunks_over_this": statistics.median(ratios),
        }
    return results


def format_ratios(
    results: Mapping[str, Mapping[str, float]], differences: Mapping[str, float]
) -> str:
    """Returns a Markdown table of speeds relative to the last way (PyTorch, where installed)."""
    *_, anchor = results.values()
    lines = [f"| | speed, {list(results)[-1]} = 1 | largest difference |", "|---|---|---|"]
    for name, row in results.items():
        speed = anchor["speed_of_chunks_over_this"] / row["speed_of_chunks_over_this"]
        lines.append(f"| {name} | {speed:.2f} | {differences[name]:.0e} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Measures, prints the table and writes the files."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, received {' '.join(argv[1:])}")
    size = _IMAGE_SIZE.value
    images = np.random.default_rng(0).integers(0, 256, (_BATCH_SIZE.value, size, size, 3), np.uint8)
    encoders = make_encoders(_CHUNK_SIZE.value)
    reference = encoders[WHOLE](images[:2])
    differences = {
        name: float(np.abs(encode(images[:2]) - reference).max())
        for name, encode in encoders.items()
    }
    steps = {name: partial(encode, images) for name, encode in encoders.items()}
    results = summarize(measure(steps, _REPEATS.value, _ROUNDS_AT_MOST), len(images))

    print(f"EfficientNet-Lite0, {len(images)} images of {size}x{size}, float32")
    print(f"{'':28}{'images/s':>9}{'ms':>9}{'(range)':>15}{'chunks are':>12}{'difference':>12}")
    for name, row in results.items():
        spread = f"({row['milliseconds_min']:.0f}-{row['milliseconds_max']:.0f})"
        print(
            f"{name:28}{row['images_per_second']:9.1f}{row['milliseconds']:9.0f}{spread:>15}"
            f"{row['speed_of_chunks_over_this']:11.2f}x{differences[name]:12.1e}"
        )
    if PYTORCH not in results:
        print("PyTorch is not installed: no comparison with it")
    path = Path(local_path("out", _OUT.value))
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "batch_size": len(images),
        "image_size": size,
        "chunk_size": _CHUNK_SIZE.value,
        "repeats": _REPEATS.value,
        "platform": jax.default_backend(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "largest_difference": differences,
        "results": results,
    }
    write_text_atomically(path, json.dumps(report, indent=1) + "\n")
    write_text_atomically(path.with_suffix(".md"), format_ratios(results, differences))
    print(f"written to {path} and, as ratios, {path.with_suffix('.md')}")


if __name__ == "__main__":
    app.run(main)
