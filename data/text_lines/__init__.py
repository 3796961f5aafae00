"""Lines of text: alphabet, images, embedded generator, augmentation."""

from data.text_lines.alphabet import BLANK, Alphabet, UnknownCharacter
from data.text_lines.augmentation import LineAugmentation
from data.text_lines.line_images import LineSource
from data.text_lines.scores import (
    ErrorSums,
    bootstrap_interval,
    confusions,
    error_rates,
)
from data.text_lines.synthetic_lines import SyntheticLines

__all__ = [
    "BLANK",
    "Alphabet",
    "ErrorSums",
    "LineAugmentation",
    "LineSource",
    "SyntheticLines",
    "UnknownCharacter",
    "bootstrap_interval",
    "confusions",
    "error_rates",
]
