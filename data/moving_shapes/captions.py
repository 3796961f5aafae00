"""English sentences about the scenes of the embedded data set."""

import re

import numpy as np

from data.moving_shapes.scenes import SHAPES, Scene

NUM_CAPTIONS = 5

# {target} reads "small red circle", {other} "grey square"; each motion has a finite form
# ("moves left") and a participle ("moving left").
TEMPLATES: tuple[str, ...] = (
    "A {target} {moves} while a {other} {other_moves}.",
    "While a {other} {other_moves}, a {target} {moves}.",
    "There is a {target} that {moves} and a {other} that {other_moves}.",
    "A {target} {moves}; the other object, a {other}, {other_moves}.",
    "A {target} is {moving}, and a {other} is {other_moving}.",
    "Two objects are in view: a {target} {moving} and a {other} {other_moving}.",
    "The {other} {other_moves}, but the {target} {moves}.",
    "In this clip a {target} is {moving} as a {other} {other_moves}.",
)

MOTION_PHRASES: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (("moves left", "moving left"), ("moves to the left", "moving to the left")),
    "right": (("moves right", "moving right"), ("moves to the right", "moving to the right")),
    "up": (("moves up", "moving up"), ("goes up", "going up")),
    "down": (("moves down", "moving down"), ("goes down", "going down")),
    "clockwise": (
        ("moves clockwise", "moving clockwise"),
        ("goes round clockwise", "going round clockwise"),
    ),
    "anticlockwise": (
        ("moves anticlockwise", "moving anticlockwise"),
        ("goes round anticlockwise", "going round anticlockwise"),
    ),
    "growing": (("grows", "growing"), ("grows larger", "growing larger")),
    "shrinking": (("shrinks", "shrinking"), ("shrinks in size", "shrinking in size")),
}


def describe(scene: Scene) -> tuple[str, ...]:
    """Describe a scene in five sentences of different build.

    Args:
      scene: what to describe; its ``caption_seed`` decides templates, order and words.

    Returns:
      Five sentences. Each names size, colour, shape and motion of the target, and colour (grey),
      shape and motion of the distractor.
    """
    rng = np.random.default_rng(scene.caption_seed)
    captions = []
    for template in rng.permutation(len(TEMPLATES))[:NUM_CAPTIONS]:
        phrases = MOTION_PHRASES[scene.target.motion_name]
        moves, moving = phrases[rng.integers(len(phrases))]
        phrases = MOTION_PHRASES[scene.distractor.motion_name]
        other_moves, other_moving = phrases[rng.integers(len(phrases))]
        captions.append(
            TEMPLATES[template].format(
                target=f"{scene.target.size_name} {scene.target.color} {scene.target.shape}",
                other=f"{scene.distractor.color} {scene.distractor.shape}",
                moves=moves,
                moving=moving,
                other_moves=other_moves,
                other_moving=other_moving,
            )
        )
    return tuple(captions)


def tells_motion(caption: str, scene: Scene, *, in_full: bool = False) -> bool:
    """Whether a caption says how the scene's coloured object moves.

    Args:
      caption: a sentence as ``describe`` makes them; case and punctuation do not matter, nor does
        what it says of the other object, which is grey.
      scene: what is described.
      in_full: whether size and shape must be right, too; else the colour tells which object is
        meant, and any shape may stand behind it.
    """
    words = " ".join(re.findall(r"[a-z]+", caption.lower()))
    target = scene.target
    named = f"{target.size_name} {target.color} {target.shape}"
    if not in_full:
        named = rf"{target.color} (?:{'|'.join(SHAPES)})"
    finite, participle = (
        "|".join(phrases) for phrases in zip(*MOTION_PHRASES[target.motion_name], strict=True)
    )
    # What may stand between the object and its motion: "that moves", "is moving", "moving".
    moves = rf"(?:(?:that )?(?:{finite})|(?:is )?(?:{participle}))"
    return bool(re.search(rf"\b{named} {moves}\b", words))
