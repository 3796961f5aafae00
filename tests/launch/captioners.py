"""Workdirs of untrained captioners, and images for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from PIL import Image

from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.checkpoint import Checkpointer, Position
from flaxnets.training.config import describe_run
from flaxnets.training.state import initialize_variables, make_state
from flaxnets.training.workdir import Workdir
from launch.program import load_experiment

EXPERIMENT = "experiments/show_attend_tell.py"
CAPTIONS = ("A red dog runs .", "Two men stand by the water", "The dog's ball is big")
SPLITS = {"train": 5, "dev": 4, "test": 12}


def make_flickr8k(root: Path, captions: Sequence[str] = CAPTIONS) -> Path:
    """Writes noise images and captions in Flickr8k's format; returns ``root``."""
    rng = np.random.default_rng(0)
    images, texts = root / "Flicker8k_Dataset", root / "Flickr8k_text"
    images.mkdir(parents=True)
    texts.mkdir()
    lines = []
    for split, count in SPLITS.items():
        names = [f"{split}{number}.jpg" for number in range(count)]
        (texts / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pixels = rng.integers(0, 256, (4, 5, 3), np.uint8)
            Image.fromarray(pixels).resize((80, 64)).save(images / name)
            lines += [f"{name}#{k}\t{caption}" for k, caption in enumerate(captions)]
    (texts / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    return root


def make_config(root: Path, experiment: str = EXPERIMENT, **changes: Any) -> Any:
    """Returns a small configuration; images of 64×64 give feature maps of 2×2."""
    config: Any = load_experiment(experiment)
    config.batch_size = 8
    config.data.root, config.data.cache = str(root), str(root / "features")
    config.data.image_size, config.data.min_count, config.data.num_corners = 64, 1, 0
    decoder = config.model.decoder
    decoder.features = decoder.embed_features = decoder.attention_features = 8
    config.search.beam_size, config.search.max_steps = 3, 6
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def make_run(path: Path, config: Any, experiment: str = EXPERIMENT) -> TrainedModel:
    """Writes a workdir with one checkpoint, of step 1, with random variables."""
    batch = {
        "features": jax.ShapeDtypeStruct((8, 2, 2, 1280), np.float16),
        "tokens": jax.ShapeDtypeStruct((8, 1, 6), np.int32),
        "token_lengths": jax.ShapeDtypeStruct((8, 1), np.int32),
        "mask": jax.ShapeDtypeStruct((8,), np.bool_),
    }
    if config.data.kind == "moving_shapes":
        del batch["features"]
        batch["video"] = jax.ShapeDtypeStruct((8, 16, 64, 64, 3), np.uint8)
        batch["lengths"] = jax.ShapeDtypeStruct((8,), np.int32)
    with Workdir(path) as workdir:
        workdir.claim(experiment, config)
        config.save_assets(path)
        workdir.record_run(describe_run(config), config.describe_inference())
    variables = initialize_variables(
        config.make_model(), config.make_prediction_task(), batch, config.seed
    )
    state = make_state(variables, optax.sgd(0.1), 0)
    checkpointer = Checkpointer(workdir.checkpoints, best_metric=config.best_metric)
    checkpointer.save(state.replace(step=state.step + 1), Position(0, {}))
    checkpointer.close()
    return TrainedModel(config, workdir)
