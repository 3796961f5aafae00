"""TFDS builder of the embedded data set, prepared and read without TensorFlow.

    builder = MovingShapes(data_dir=DIR)
    builder.download_and_prepare(file_format="array_record")
    source = builder.as_data_source(split="train")

Only ArrayRecord files can be read without TensorFlow. A ``MovingShapesConfig`` sets other sizes or
another seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.moving_shapes.captions import NUM_CAPTIONS
from data.moving_shapes.scenes import CLASSES, IMAGE_SIZE, NUM_FRAMES
from data.moving_shapes.source import SPLIT_SIZES
from data.moving_shapes.source import MovingShapes as MovingShapesSource


@dataclass(kw_only=True)
class MovingShapesConfig(tfds.core.BuilderConfig):
    """Sizes and seed of one variant of the data set.

    Attributes:
      name: name of the variant on disk; different settings need different names.
      train_examples: number of training clips.
      validation_examples: number of validation clips.
      test_examples: number of test clips.
      seed: of the whole data set, at least 0.
    """

    name: str = "default"
    train_examples: int = SPLIT_SIZES["train"]
    validation_examples: int = SPLIT_SIZES["validation"]
    test_examples: int = SPLIT_SIZES["test"]
    seed: int = 0


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """Builder of ``moving_shapes``; example ``i`` equals ``MovingShapes(split)[i]``.

    Features:
      video: (16,64,64,3) uint8 in [0,255].
      label: class of the coloured object's motion, 0..7.
      captions: five English sentences.
      index: () int32, index of the example in its split.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 - the base class's attribute
    BUILDER_CONFIGS = [MovingShapesConfig()]  # noqa: RUF012

    # Nothing is downloaded, so there are no checksums beside this file. TFDS 4.9.10 would import
    # importlib_resources, which it does not install, to look for them.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Clips of a moving coloured shape and a grey distractor on a textured background. "
                "The label is the motion of the coloured shape."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Tensor(
                        shape=(NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8
                    ),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                    "captions": tfds.features.Sequence(tfds.features.Text(), length=NUM_CAPTIONS),
                    "index": tfds.features.Scalar(dtype=np.int32),
                }
            ),
            supervised_keys=("video", "label"),
            # Examples are independent; shuffling would only lose their indices.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        config = self.builder_config
        sizes = {
            "train": config.train_examples,
            "validation": config.validation_examples,
            "test": config.test_examples,
        }
        return {
            split: self._generate_examples(MovingShapesSource(split, size, config.seed))
            for split, size in sizes.items()
        }

    def _generate_examples(
        self, source: MovingShapesSource
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(source)):
            example = source[index]
            yield (
                index,
                {
                    "video": example["video"],
                    "label": int(example["label"]),
                    "captions": list(source.captions(index)),
                    "index": index,
                },
            )
