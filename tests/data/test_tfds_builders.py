"""Our TFDS builders: prepared and read without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.moving_shapes.scenes import CLASSES
from data.moving_shapes.source import MovingShapes as MovingShapesSource

ROOT = Path(__file__).parents[2]


def test_moving_shapes_is_prepared_and_read_back_without_tensorflow(tmp_path: Path) -> None:
    from data.tfds_builders.moving_shapes import MovingShapes, MovingShapesConfig

    sizes = {"train": 12, "validation": 3, "test": 5}
    config = MovingShapesConfig(
        name="tiny", train_examples=12, validation_examples=3, test_examples=5, seed=7
    )
    builder = MovingShapes(data_dir=tmp_path, config=config)
    builder.download_and_prepare(file_format="array_record")

    assert builder.name == "moving_shapes"
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == sizes
    assert tuple(builder.info.features["label"].names) == CLASSES
    for split, size in sizes.items():
        read = builder.as_data_source(split=split)
        drawn = MovingShapesSource(split, size, seed=7)
        assert len(read) == size
        for index in range(size):
            example, expected = read[index], drawn[index]
            assert example["video"].dtype == np.uint8
            np.testing.assert_array_equal(example["video"], expected["video"])
            assert example["label"] == expected["label"]
            assert example["index"] == index
            captions = tuple(caption.decode() for caption in example["captions"])
            assert captions == drawn.captions(index)
    assert "tensorflow" not in sys.modules


@pytest.mark.subprocess
@pytest.mark.parametrize(
    "module", ["data.moving_shapes.source", "data.tfds_builders.moving_shapes"]
)
def test_import_loads_neither_tensorflow_nor_jax(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([m for m in ('tensorflow', 'torch', 'jax', 'flaxnets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
