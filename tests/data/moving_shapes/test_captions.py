"""Captions of the embedded data set name the right objects and the right motions."""

import re

from data.moving_shapes.captions import MOTION_PHRASES, TEMPLATES, tells_motion
from data.moving_shapes.scenes import CLASSES
from data.moving_shapes.source import MovingShapes

WORDS = {
    "left": {"left"},
    "right": {"right"},
    "up": {"up"},
    "down": {"down"},
    "clockwise": {"clockwise"},
    "anticlockwise": {"anticlockwise"},
    "growing": {"grows", "growing"},
    "shrinking": {"shrinks", "shrinking"},
}


def test_captions_name_both_objects_and_both_motions() -> None:
    source = MovingShapes("train", 200)
    motion_words = set().union(*WORDS.values())
    for index in range(len(source)):
        scene, captions = source.scene(index), source.captions(index)
        assert len(captions) == 5
        assert len(set(captions)) == 5
        target = f"{scene.target.size_name} {scene.target.color} {scene.target.shape}"
        other = f"grey {scene.distractor.shape}"
        for caption in captions:
            assert caption[0].isupper()
            assert caption.endswith(".")
            assert "  " not in caption
            assert target in caption
            assert other in caption
            # The motion that follows a name, and precedes the other name, belongs to it.
            first, second = sorted((target, other), key=caption.index)
            middle = caption.index(second)
            said = [
                set(part.rstrip(".").replace(",", "").replace(";", "").split()) & motion_words
                for part in (caption[:middle], caption[middle:])
            ]
            bodies = {target: scene.target, other: scene.distractor}
            for words, name in zip(said, (first, second), strict=True):
                assert words
                assert words <= WORDS[CLASSES[bodies[name].motion]]


def test_all_templates_are_used_and_no_clip_uses_one_twice() -> None:
    source = MovingShapes("train", 60)
    frames = set()
    for index in range(len(source)):
        scene = source.scene(index)
        openings = []
        for caption in source.captions(index):
            for body, name in ((scene.target, "T"), (scene.distractor, "D")):
                caption = caption.replace(f"{body.color} {body.shape}", name)
            caption = caption.replace(scene.target.size_name + " T", "T")
            openings.append(caption)
        kinds = [_template_of(caption) for caption in openings]
        assert len(set(kinds)) == 5
        frames.update(kinds)
    assert frames == set(range(len(TEMPLATES)))


def test_a_caption_tells_the_motion_of_the_coloured_object_alone() -> None:
    source = MovingShapes("train", 150)
    motions = set()
    for index in range(len(source)):
        scene = source.scene(index)
        target, other = scene.target.motion_name, scene.distractor.motion_name
        motions.add(target)
        for caption in source.captions(index):
            assert tells_motion(caption, scene)
            # As models write them: lower case, without punctuation.
            assert tells_motion(re.sub(r"[^a-z ]", "", caption.lower()), scene)
            assert not tells_motion(caption.replace(scene.target.color, "mauve"), scene)
            assert not tells_motion(caption.replace(scene.target.shape, "hexagon"), scene)
            # Colour alone identifies the object, unless the caption must be right in full.
            size, color, shape = scene.target.size_name, scene.target.color, scene.target.shape
            named = f"{size} {color} {shape}"
            assert tells_motion(caption, scene, in_full=True)
            for other_name in (
                f"{'small' if size == 'large' else 'large'} {color} {shape}",
                f"{size} {color} {'ring' if shape == 'cross' else 'cross'}",
            ):
                changed = caption.replace(named, other_name)
                assert tells_motion(changed, scene)
                assert not tells_motion(changed, scene, in_full=True)
            if other != target:
                # A wrong motion counts for the target, not for the distractor.
                start = caption.index(scene.target.color)
                told = _with_motion(caption, start, target, other)
                assert told != caption
                assert not tells_motion(told, scene)
                start = caption.index(f"grey {scene.distractor.shape}")
                assert tells_motion(_with_motion(caption, start, other, "growing"), scene)
    assert motions == set(CLASSES)
    assert not tells_motion("", source.scene(0))


def _with_motion(caption: str, start: int, old: str, new: str) -> str:
    """Returns the caption with the first motion ``old`` after ``start`` replaced by ``new``."""
    for form in (0, 1):
        phrases = sorted((pair[form] for pair in MOTION_PHRASES[old]), key=len, reverse=True)
        found = re.search("|".join(rf"\b{phrase}\b" for phrase in phrases), caption[start:])
        name = re.match(r"\w+ \w+,?(?: that| is)? ", caption[start:])
        if found and name and found.start() == name.end():
            first, end = start + found.start(), start + found.end()
            return caption[:first] + MOTION_PHRASES[new][0][form] + caption[end:]
    raise AssertionError(f"no motion {old} in {caption[start:]!r}")


def _template_of(caption: str) -> int:
    """Returns the index of the template whose fixed pieces occur in a caption, in order."""
    found = []
    for number, template in enumerate(TEMPLATES):
        pieces = template.replace("{target}", "T").replace("{other}", "D").split("{")
        fixed = [pieces[0]] + [piece.split("}", 1)[1] for piece in pieces[1:]]
        position, matches = 0, caption.startswith(fixed[0])
        for piece in fixed:
            at = caption.find(piece, position)
            matches = matches and at >= 0
            position = max(at, position) + len(piece)
        if matches:
            found.append(number)
    assert len(found) == 1, (caption, found)
    return found[0]
