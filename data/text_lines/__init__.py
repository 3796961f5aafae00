"""Lines of text: alphabet, embedded generator, augmentation."""

from data.text_lines.alphabet import BLANK, Alphabet, UnknownCharacter

__all__ = ["BLANK", "Alphabet", "UnknownCharacter"]
