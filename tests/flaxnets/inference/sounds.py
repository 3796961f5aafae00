"""Small readers and classifiers for the tests of their use, with random parameters."""

from typing import Any

import jax
import numpy as np

from flaxnets.configuration import describe_part
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.inference.runtime.models import Classifier
from flaxnets.inference.runtime.readers import Reader
from flaxnets.inference.store import build_model
from flaxnets.models.column_crnn import ColumnCRNN, ColumnCRNNConfig, make_column_crnn
from flaxnets.recurrent.config import RecurrentConfig

ALPHABET = ("a", "b", "ä")
RATE, MELS, HEIGHT = 8_000, 16, 16
LOG_MEL = {
    "kind": "log_mel",
    "sample_rate": RATE,
    "window": 0.032,
    "hop": 0.01,
    "num_mels": MELS,
    "low": 0.0,
    "high": 4_000.0,
}
SEED = 17
"""Of parameters whose logits change from step to step, so that texts have some characters."""
LINE = {"kind": "line", "height": HEIGHT, "max_width": 512}


def network(
    num_classes: int,
    rows: int = MELS,
    *,
    encoder: EncoderConfig | None = None,
    pool: str = "none",
    **recurrent: Any,
) -> ColumnCRNN:
    """Returns a small network with a stride of 4, by default causal."""
    own = EncoderConfig("sound_cnn", features=(4, 6), strides=(4, 4), column_strides=(2, 2))
    settings: dict[str, Any] = {"cell": "gru", "features": 5, "bidirectional": False}
    config = ColumnCRNNConfig(
        encoder or own, RecurrentConfig(**settings | recurrent), HeadConfig(pool)
    )
    return make_column_crnn(config, num_classes, rows)


def variables_of(module: ColumnCRNN, inputs: np.ndarray) -> Any:
    """Returns variables of which none is zero or one, statistics of BatchNorm included."""
    lengths = np.array([inputs.shape[2 if inputs.ndim == 4 else 1]], np.int32)
    shapes = jax.eval_shape(
        lambda key: module.init(key, inputs, lengths, train=False), jax.random.key(0)
    )
    random = np.random.default_rng(SEED)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        scores = "scores" in jax.tree_util.keystr(path)
        values = random.normal(0, 6.0 if scores and leaf.ndim == 2 else 0.8, leaf.shape)
        if "var" in jax.tree_util.keystr(path):
            values = np.abs(values) + 0.3
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def describe(kind: str, module: ColumnCRNN, preprocessing: Any, **more: Any) -> dict[str, Any]:
    """Returns a ``model.json``."""
    return {
        "format": 1,
        "kind": kind,
        "name": "toy",
        "network": describe_part(module),
        "encoder": None,
        "preprocessing": preprocessing,
        **more,
    }


def reader(
    module: ColumnCRNN | None = None, preprocessing: Any = LOG_MEL, *, width: int = 0
) -> tuple[Reader, dict[str, Any]]:
    """Returns a reader of speech, or of lines, and its description."""
    lines = preprocessing["kind"] == "line"
    module = module or network(len(ALPHABET) + 1, HEIGHT if lines else MELS)
    shape = (1, HEIGHT, 64, 1) if lines else (1, 64, MELS)
    inputs = np.zeros(shape, np.uint8 if lines else np.float32)
    described = describe("transcription", module, preprocessing, search={"width": width})
    made = build_model(described, variables_of(module, inputs), alphabet=ALPHABET)
    assert isinstance(made, Reader)
    return made, described


def classifier(**options: Any) -> tuple[Classifier, dict[str, Any]]:
    """Returns a classifier of sounds of three classes, in two windows of 0.5 s."""
    module = network(3, **{"pool": "mean", **options})
    inputs = np.zeros((1, 51, MELS), np.float32)
    described = describe(
        "sound_classification",
        module,
        {**LOG_MEL, "num_frames": 51, "num_windows": 2},
        labels=["dog", "rain", "clock"],
        averaging="clip",
    )
    made = build_model(described, variables_of(module, inputs))
    assert isinstance(made, Classifier)
    return made, described


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Returns noise of changing colour and level, (S,) float32 in [-1,1]."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 0.2, round(seconds * RATE))
    parts = np.array_split(noise, max(1, round(seconds * 8)))
    coloured = [
        np.convolve(part, random.normal(0, 1, 5), "same") * random.uniform(0, 1) for part in parts
    ]
    return np.clip(np.concatenate(coloured), -1, 1).astype(np.float32)
