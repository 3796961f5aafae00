"""Captions of the embedded data set: English sentences about a scene."""

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


def describe_scene(scene: Scene) -> tuple[str, ...]:
    """Returns five captions of a scene, each from another template.

    Args:
      scene: the scene; its ``caption_seed`` chooses templates, order and words.

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
    """Returns True if a caption states the motion of the scene's target correctly.

    Args:
      caption: a sentence in the form of ``describe_scene``. Case, punctuation and statements about
        the distractor are ignored.
      scene: the captioned scene.
      in_full: require the right size and shape, too; False identifies the target by its colour
        alone and accepts any shape.
    """
    words = " ".join(re.findall(r"[a-z]+", caption.lower()))
    target = scene.target
    named = f"{target.size_name} {target.color} {target.shape}"
    if not in_full:
        named = rf"{target.color} (?:{'|'.join(SHAPES)})"
    finite, participle = (
        "|".join(phrases) for phrases in zip(*MOTION_PHRASES[target.motion_name], strict=True)
    )
    # The motion follows the object as "that moves", "is moving" or "moving".
    moves = rf"(?:(?:that )?(?:{finite})|(?:is )?(?:{participle}))"
    return bool(re.search(rf"\b{named} {moves}\b", words))
