"""Lines of text: alphabet, images, embedded generator, augmentation."""

from data.text_lines.alphabet import BLANK, Alphabet, UnknownCharacter
from data.text_lines.augmentation import LineAugmentation
from data.text_lines.line_images import LineSource

__all__ = ["BLANK", "Alphabet", "LineAugmentation", "LineSource", "UnknownCharacter"]
