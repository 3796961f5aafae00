"""Embedded generator of short texts: phrases, names, numbers, dates, prices, random strings.

Words alone would let a recogniser guess letters from their neighbours, so a third of the texts are
strings without a meaning. Each text belongs to one split by a hash, so that no text occurs in two.
"""

import zlib

import numpy as np

from data.text_lines.alphabet import Alphabet

LEAST, MOST = 5, 20
"""Characters of a text."""

_LOWER = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"
_MARKS = ".,;:!?'\"()-/&%+=#*"
ALPHABET = Alphabet(sorted({" ", *_LOWER, *_LOWER.upper(), *_DIGITS, *_MARKS}))
"""The characters that occur in the texts: 81 of ASCII."""

_WORDS = """
able about above across adder after again agile alarm almond amber anchor angle ankle apple apron
arch arrow aspen atlas attic autumn axle azure badge baker bamboo banjo barley basin basket beach
beaver below bench berry birch blanket blaze blossom bluff board bonnet bottle boulder branch
brass breeze brick bridge brook broom bucket buffer bugle butter button cabin cable cactus camel
candle canoe canvas cargo carpet castle cattle cedar cellar chalk chapel cherry chimney cider
circle clarinet clay cliff clock cloud clover coast cobalt coffee comet compass copper coral
corner cottage cotton cousin crane crayon cricket crown crystal cup curtain cycle daisy dance dawn
decade deck delta desert diary dinner dock dolphin donkey dove dozen dragon drawer dream drift
drum dusk eagle early earth east echo edge eight elbow ember engine envelope equal evening exact
fable falcon fathom feather fence fennel ferry fiddle field fifty flame flint flour flute foggy
forest fossil fountain fox frost funnel galaxy garden garlic gate gazelle gentle ginger glacier
glove goat golden grain granite grape gravel green guitar gull hammer harbor harvest hazel heron
hickory hill hinge hollow honey horizon hornet house hundred husk iceberg indigo inkwell inlet
iris island ivory jacket jaguar jasmine jelly jewel jigsaw jolly journey jug jungle juniper kayak
kennel kettle keyhole kitchen kite knot ladder lagoon lantern larch lattice lawn leaf lemon letter
lilac linen lizard lobster lunar magnet mallet mango maple marble market meadow melon mercury
midday mill mirror mitten moss motor mountain museum napkin narrow needle nephew nettle nickel
night north notebook nutmeg oak oboe ocean olive onion onyx orange orbit orchard otter oven owl
oxygen oyster paddle painter palm panther paper parcel pasture pearl pebble pelican pepper piano
pigeon pillow pine pixel planet plaza plum pocket pond poplar prism puddle pumpkin puzzle quail
quarry quartz queen quick quiet quilt rabbit radish rafter rain raven reef ribbon river robin
rocket rope rosemary rowing ruby saddle saffron sail salmon sandal satin school sequel seven
shadow shell shovel signal silver sketch sleigh slope snow soap south spade spark spider spring
spruce squash stable station stone storm straw summer sunday swallow table tango teapot temple
thimble thistle thunder tiger timber toffee topaz tower tractor tulip tunnel turquoise twelve
umbrella uncle under urban valley vanilla velvet vessel view village vinegar violet vivid volcano
voyage waffle wagon walnut water weaver west whale wharf wheat whisper willow window winter wizard
wolf wooden yacht yarn year yellow yonder zebra zenith zigzag
"""
WORDS = tuple(_WORDS.split())
"""The words of the phrases."""

_SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "June", "July", "Aug", "Sept", "Oct", "Nov", "Dec")


def split_of(text: str) -> str:
    """Returns the split of a text: eight tenths of all are "train", a tenth each of the others."""
    part = zlib.crc32(text.encode()) % 10
    return next(name for name, parts in _SPLITS.items() if part in parts)


def draw_text(rng: np.random.Generator, split: str) -> str:
    """Returns a text of ``LEAST`` to ``MOST`` characters of ``ALPHABET`` that belongs to a split.

    Args:
        rng: random numbers, on which alone the text depends.
        split: "train", "validation" or "test".

    Raises:
        ValueError: an unknown split.
    """
    if split not in _SPLITS:
        raise ValueError(f"split: expected one of {', '.join(_SPLITS)}, received {split!r}")
    while True:
        kind = rng.random()
        if kind < 0.55:
            text = _phrase(rng)
        elif kind < 0.7:
            text = _number(rng)
        else:
            text = _string(rng)
        text = text[:MOST].strip()
        if len(text) >= LEAST and split_of(text) == split:
            return text


def _phrase(rng: np.random.Generator) -> str:
    words = [WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(1, 4))]
    case = rng.random()
    if case < 0.2:
        words = [word.upper() for word in words]
    elif case < 0.5:
        words = [word.capitalize() for word in words]
    elif case < 0.8:
        words[0] = words[0].capitalize()
    joint = (" ", " ", " ", ", ", "-", " & ", "/", "; ", ": ")[rng.integers(9)]
    text = joint.join(words)
    around = ("{}", "{}", "{}", "{}.", "{}!", "{}?", '"{}"', "({})", "'{}'")[rng.integers(9)]
    return around.format(text[: MOST - len(around) + 2].strip())


def _number(rng: np.random.Generator) -> str:
    a, b, c = (int(number) for number in rng.integers(0, 10_000, 3))
    kinds = (
        f"{1 + a % 28} {_MONTHS[b % 12]} {1500 + c % 540}",
        f"{a:04d}-{1 + b % 12:02d}-{1 + c % 28:02d}",
        f"{a % 100},{b % 1000:03d}.{c % 100:02d}",
        f"No. {a}/{b % 100}",
        f"{a % 24:02d}:{b % 60:02d}:{c % 60:02d}",
        f"+{a % 90 + 10} {b} {c}",
        f"{a % 1000} + {b % 1000} = {a % 1000 + b % 1000}",
        f"{a % 100}.{b % 10}% (#{c})",
        f"pp. {a % 500}-{a % 500 + b % 40 + 1}",
    )
    return kinds[rng.integers(len(kinds))]


def _string(rng: np.random.Generator) -> str:
    """Returns groups of independent characters, each as probable as the others."""
    # Without context, nobody tells I from l in a font without serifs.
    characters = [name for name in ALPHABET.characters if name not in " Il"]
    groups = rng.integers(1, 5)
    sizes = rng.integers(1, 9, groups)
    drawn = iter(rng.integers(len(characters), size=int(sizes.sum())).tolist())
    return " ".join("".join(characters[next(drawn)] for _ in range(size)) for size in sizes)
