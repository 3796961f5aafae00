"""Configuration of readers of text lines: images, their size and augmentation, and the network."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import flax.linen as nn
import numpy as np

from data.text_lines.augmentation import LineAugmentation
from data.text_lines.line_images import LineSource
from data.text_lines.synthetic_lines import SyntheticLines
from experiments.transcription.config import (
    FILES,
    TextsConfig,
    TranscriptionConfig,
    TranscriptSource,
)
from flaxnets.configuration import check_at_least
from flaxnets.models.column_crnn import ColumnCRNNConfig, make_column_crnn
from flaxnets.recurrent.config import NONE


@dataclasses.dataclass
class LinesConfig(TextsConfig):
    """Location of the lines, their split, size and augmentation.

    ``dataset`` is ``files`` or ``synthetic``: drawn lines, for which no data are needed.
    """

    height: int = 48
    """Pixels to which all lines are scaled, with their aspect ratio."""
    max_width: int = 4_096
    """Greatest width of a line after scaling, pixels; wider ones are left out, and named."""
    polarity: str = "dark"
    """``dark`` ink on light paper, ``light`` (inverted), or ``auto``: by each image's median."""


@dataclasses.dataclass
class TextLinesConfig(TranscriptionConfig):
    """Experiment that reads lines of text; a paper's file sets its network and training."""

    datasets: ClassVar[tuple[str, ...]] = (FILES, "synthetic")

    data: LinesConfig = dataclasses.field(default_factory=LinesConfig)
    model: ColumnCRNNConfig = dataclasses.field(default_factory=ColumnCRNNConfig)

    def validate(self) -> None:
        """Checks the values as ``TranscriptionConfig.validate``, and those of the network."""
        super().validate()
        check_at_least("data", self.data, {"height": 8, "max_width": 1})
        make_column_crnn(self.model, 2, self.data.height)

    @property
    def stride(self) -> int:
        """Columns for each step of the network."""
        return make_column_crnn(self.model, 2, self.data.height).stride

    def make_drawn(self, split: str) -> SyntheticLines:
        """Returns the drawn lines of a split."""
        data = self.data
        count = data.num_examples if split == "train" else max(1, data.num_examples // 10)
        return SyntheticLines(split, count, height=data.height)

    def make_source(self, paths: Sequence[str], texts: Sequence[str]) -> LineSource:
        """Returns images of lines with their texts."""
        return LineSource(
            tuple(paths),
            tuple(texts),
            self.alphabet,
            height=self.data.height,
            max_width=self.data.max_width,
            polarity=cast(Literal["dark", "light", "auto"], self.data.polarity),
            unknown="drop",
        )

    def make_transform(self) -> LineAugmentation:
        """Returns slant, stretch, shift, blur and so on, at random."""
        return LineAugmentation()

    def make_model(self) -> nn.Module:
        """Returns the network, whose classes are the blank and the characters."""
        return make_column_crnn(self.model, len(self.alphabet) + 1, self.data.height)

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the size of the lines and their polarity."""
        data = self.data
        return {"height": data.height, "max_width": data.max_width, "polarity": data.polarity}

    def draw(self, example: Mapping[str, Any]) -> np.ndarray:
        """Returns the line, (H,W,3) uint8."""
        return np.repeat(np.asarray(example["image"]), 3, axis=2)

    def describe_inputs(self, source: TranscriptSource) -> str:
        """Returns number and sizes of the training lines in words."""
        widths = source.lengths()
        return (
            f"{len(source)} for training, {self.data.height} pixels high, "
            f"{int(np.median(widths))} wide in the median, {widths.max()} at most"
        )

    def describe_network(self) -> list[str]:
        """Returns lines about encoder and recurrent layer."""
        cell = self.model.recurrent
        layer = "none"
        if cell.cell != NONE:
            both = ", both directions" if cell.bidirectional else ""
            layer = f"{cell.num_layers} × {cell.cell} of {cell.features} units{both}"
        return [
            f"encoder       {self.model.encoder.name}, a step for {self.stride} columns",
            f"recurrent     {layer}",
        ]
