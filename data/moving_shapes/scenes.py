"""Scenes of the embedded data set: their random parameters and trajectories.

A scene holds a coloured target, whose motion is the label, a grey distractor with another motion,
and a still, textured background. Two properties hold by construction:

* **A reversed clip belongs to the reversed class.** All parameters but the motion are drawn
  independently of it, and the second class of each pair (right, down, anticlockwise, shrinking)
  plays the trajectory of the first backwards. ``Scene.reversed`` is therefore as likely as the
  scene itself, and a model that ignores the order of the frames cannot exceed 50 % accuracy.
* **A single frame is almost uninformative.** The picture is a torus: an object that leaves on one
  side enters on the other. A position that is uniform at one time is then uniform at all times,
  whatever the motion, so positions carry no information. Sizes cannot wrap around; the growth is
  therefore small compared with the range of sizes, and objects of constant size take the size of a
  growing one at a random time. By size alone, the best guess is right for about 17 % of the clips
  from the first or last frame, and for 13 to 14 % from a middle frame (chance is 12.5 %).
"""

from dataclasses import dataclass, replace

import numpy as np

NUM_FRAMES = 16
IMAGE_SIZE = 64

CLASSES: tuple[str, ...] = (
    "left",
    "right",
    "up",
    "down",
    "clockwise",
    "anticlockwise",
    "growing",
    "shrinking",
)
REVERSED_CLASS: dict[int, int] = {motion: motion ^ 1 for motion in range(len(CLASSES))}
"""Class -> class of its clips when played backwards."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (240, 225, 50),
    "green": (50, 190, 70),
    "cyan": (50, 215, 220),
    "blue": (60, 95, 240),
    "purple": (150, 70, 220),
    "pink": (250, 130, 190),
}
TEXTURES: tuple[str, ...] = ("blotches", "stripes", "checks")

# Lengths are in pixels, speeds in pixels per frame.
RADIUS_RANGE = (4.0, 18.0)
GROWTH_RANGE = (3.4, 4.8)
SPEED_RANGE = (1.4, 2.8)
ORBIT_RADIUS_RANGE = (8.0, 14.0)
ORBIT_TURNS_RANGE = (0.55, 1.0)
MEDIUM_FROM, LARGE_FROM = 8.0, 12.5


@dataclass(frozen=True)
class Body:
    """One moving object.

    Every body has the parameters of all motions; ``motion`` selects those in use.

    Attributes:
      shape: one of ``SHAPES``.
      color: a key of ``COLORS``, or "grey".
      rgb: fill colour, each in [0,255].
      motion: class of the motion, 0..7.
      position: (x, y), pixels in [0,64), y downwards: the start (left, up) or end (right, down)
        of a straight motion, the centre of an orbit, or the fixed position of a body that grows or
        shrinks.
      speed: of straight motions, pixels per frame.
      orbit_radius: pixels.
      orbit_start: angle at which a clockwise orbit begins and an anticlockwise one ends, radians.
      orbit_turns: length of an orbit in a clip, full turns.
      smallest_radius: least radius of a body that grows or shrinks, pixels.
      growth: change of its radius in a clip, pixels.
      constant_radius: radius of a body of constant size, pixels.
    """

    shape: str
    color: str
    rgb: tuple[float, float, float]
    motion: int
    position: tuple[float, float]
    speed: float
    orbit_radius: float
    orbit_start: float
    orbit_turns: float
    smallest_radius: float
    growth: float
    constant_radius: float

    @property
    def motion_name(self) -> str:
        """Name of the motion, one of ``CLASSES``."""
        return CLASSES[self.motion]

    @property
    def size_name(self) -> str:
        """Size in words (small, medium or large), by the mean radius over the clip."""
        if CLASSES[self.motion] in ("growing", "shrinking"):
            mean_radius = self.smallest_radius + self.growth / 2
        else:
            mean_radius = self.constant_radius
        if mean_radius < MEDIUM_FROM:
            return "small"
        return "medium" if mean_radius < LARGE_FROM else "large"

    def trajectory(self) -> np.ndarray:
        """Returns position and size of the body in each frame.

        Returns:
          (T,3) float32: x, y in [0,64) (y downwards) and the radius of a disc of about the same
          area, in pixels.
        """
        time = np.arange(NUM_FRAMES) / (NUM_FRAMES - 1)  # (T,)
        x = np.full(NUM_FRAMES, self.position[0])
        y = np.full(NUM_FRAMES, self.position[1])
        radius = np.full(NUM_FRAMES, self.constant_radius)
        forward = min(self.motion, REVERSED_CLASS[self.motion])
        match CLASSES[forward]:
            case "left":
                x -= self.speed * (NUM_FRAMES - 1) * time
            case "up":
                y -= self.speed * (NUM_FRAMES - 1) * time
            case "clockwise":
                # y points downwards, so a growing angle is clockwise on the screen.
                angle = self.orbit_start + 2 * np.pi * self.orbit_turns * time
                x += self.orbit_radius * np.cos(angle)
                y += self.orbit_radius * np.sin(angle)
            case "growing":
                radius = self.smallest_radius + self.growth * time
        states = np.stack([x % IMAGE_SIZE, y % IMAGE_SIZE, radius], axis=1).astype(np.float32)
        # Rounding to float32 may lift a position to 64, which is 0 on the torus.
        states[:, :2] %= IMAGE_SIZE
        return states if self.motion == forward else states[::-1]

    def reversed(self) -> "Body":
        """Returns the body whose trajectory is this one's played backwards."""
        return replace(self, motion=REVERSED_CLASS[self.motion])


@dataclass(frozen=True)
class Background:
    """A still, textured background of two dim colours.

    Attributes:
      texture: one of ``TEXTURES``.
      rgb: the two colours it mixes, each in [0,255].
      period: size of one blotch, stripe or check, pixels.
      angle: of stripes and checks, radians.
      noise_seed: seed of its blotches and grain.
    """

    texture: str
    rgb: tuple[tuple[float, float, float], tuple[float, float, float]]
    period: float
    angle: float
    noise_seed: int


@dataclass(frozen=True)
class Scene:
    """All parameters of a clip.

    Attributes:
      target: the coloured object; its motion is the label.
      distractor: the grey object, drawn behind the target; its motion is of another class.
      background: the background.
      caption_seed: seed of the wording of the captions.
    """

    target: Body
    distractor: Body
    background: Background
    caption_seed: int

    @property
    def label(self) -> int:
        """Class of the target's motion, 0..7."""
        return self.target.motion

    def reversed(self) -> "Scene":
        """Returns the scene whose clip is this one's played backwards, frame by frame."""
        return replace(self, target=self.target.reversed(), distractor=self.distractor.reversed())


def draw_scene(rng: np.random.Generator) -> Scene:
    """Returns a random scene.

    The class of the target is uniform over the eight classes, that of the distractor uniform over
    the other seven; all other parameters are independent of both.

    Args:
      rng: the only source of randomness.
    """
    label = int(rng.integers(len(CLASSES)))
    other = (label + int(rng.integers(1, len(CLASSES)))) % len(CLASSES)
    color = tuple(COLORS)[rng.integers(len(COLORS))]
    red, green, blue = np.asarray(COLORS[color]) + rng.uniform(-10, 5, 3)
    grey = rng.uniform(110, 210)
    return Scene(
        target=_draw_body(rng, label, color, (red, green, blue)),
        distractor=_draw_body(rng, other, "grey", (grey, grey, grey)),
        background=_draw_background(rng),
        caption_seed=int(rng.integers(2**32)),
    )


def _draw_body(
    rng: np.random.Generator, motion: int, color: str, rgb: tuple[float, float, float]
) -> Body:
    growth = rng.uniform(*GROWTH_RANGE)
    smallest_radius = rng.uniform(RADIUS_RANGE[0], RADIUS_RANGE[1] - growth)
    return Body(
        shape=SHAPES[rng.integers(len(SHAPES))],
        color=color,
        rgb=rgb,
        motion=motion,
        position=(rng.uniform(0, IMAGE_SIZE), rng.uniform(0, IMAGE_SIZE)),
        speed=rng.uniform(*SPEED_RANGE),
        orbit_radius=rng.uniform(*ORBIT_RADIUS_RANGE),
        orbit_start=rng.uniform(0, 2 * np.pi),
        orbit_turns=rng.uniform(*ORBIT_TURNS_RANGE),
        smallest_radius=smallest_radius,
        growth=growth,
        constant_radius=smallest_radius + growth * rng.random(),
    )


def _draw_background(rng: np.random.Generator) -> Background:
    tint = rng.uniform(0.8, 1.2, (2, 3))
    dark, light = rng.uniform(15, 40), rng.uniform(50, 80)
    first, second = np.asarray([[dark], [light]]) * tint  # (2,3)
    return Background(
        texture=TEXTURES[rng.integers(len(TEXTURES))],
        rgb=(tuple(first.tolist()), tuple(second.tolist())),
        period=rng.uniform(6, 16),
        angle=rng.uniform(0, np.pi),
        noise_seed=int(rng.integers(2**32)),
    )
