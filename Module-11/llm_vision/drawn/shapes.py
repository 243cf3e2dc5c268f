"""One coloured shape on 32 x 32 pixels, and the sentence that is true of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SIDE = 32
BACKGROUND = 40  # of 255, in each channel
NOISE = 12  # standard deviation of each pixel's noise, of 255
COLOURS = {
    "red": (220, 30, 30), "green": (30, 190, 50), "blue": (40, 60, 230), "yellow": (230, 215, 30),
    "cyan": (30, 205, 215), "white": (240, 240, 240),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring")
POSITIONS = {
    "top left": (9, 9), "top right": (9, 23), "bottom left": (23, 9), "bottom right": (23, 23), "centre": (16, 16)
}  # fmt: skip
SIZES = {"small": 4.0, "large": 7.0}
ATTRIBUTES = {
    "size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES, "position": tuple(POSITIONS)
}  # fmt: skip
# Pairs of colour and shape that no training picture shows; each colour and each shape is shown, in other pairs.
HELD_OUT_PAIRS = (("blue", "circle"), ("yellow", "square"), ("green", "ring"))
KINDS = ("seen", "unseen", "unseen pair")


@dataclass(frozen=True)
class Drawn:
    """A picture before it is drawn.

    Args:
        size, colour, shape, position: names of `ATTRIBUTES`.
        down, right: pixels that the shape is moved by, which its name of a position does not tell.
        seed: of its noise.

    Raises:
        ValueError: for a name that is not drawn.
    """

    size: str
    colour: str
    shape: str
    position: str
    down: int = 0
    right: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in ATTRIBUTES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if max(abs(self.down), abs(self.right)) > 2:
            raise ValueError(f"down={self.down}, right={self.right}: a shape is moved by 2 pixels at most")

    @property
    def caption(self) -> str:
        """The sentence that is true of it."""
        place = "in the centre" if self.position == "centre" else f"at the {self.position}"
        return f"a {self.size} {self.colour} {self.shape} {place}"

    @property
    def classes(self) -> tuple[int, ...]:
        """The number of each attribute's value, in the order of `ATTRIBUTES`."""
        return tuple(known.index(getattr(self, name)) for name, known in ATTRIBUTES.items())


def kind_of(spec: Drawn) -> str:
    """Which of `KINDS` a combination of attributes is, whatever its move and noise.

    "unseen pair": its colour and shape are one of `HELD_OUT_PAIRS`. "unseen": a tenth of the others, evenly spread, so
    that each pair of any two attributes' values is seen somewhere. "seen": the rest, which training draws from.
    """
    if (spec.colour, spec.shape) in HELD_OUT_PAIRS:
        return "unseen pair"
    size, colour, shape, position = spec.classes
    return "unseen" if (5 * size + colour + 2 * shape + 3 * position) % 10 == 0 else "seen"


def combinations(kind: str) -> list[Drawn]:
    """Every combination of one of `KINDS`, without its move and noise.

    Raises:
        ValueError: for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}")
    every = (Drawn(*names) for names in itertools.product(SIZES, COLOURS, SHAPES, POSITIONS))
    return [each for each in every if kind_of(each) == kind]


def draw_specs(number: int, seed: int, kind: str = "seen") -> list[Drawn]:
    """Combinations at random, with moves and noise of their own; the same for the same seed.

    Args:
        number: of pictures.
        seed: of the choice; pictures of two seeds are drawn apart.
        kind: of `KINDS`.

    Raises:
        ValueError: for a number below 1, and another kind.
    """
    if number < 1:
        raise ValueError(f"number={number} of pictures must be at least 1")
    dice, known = np.random.default_rng(seed), combinations(kind)
    chosen, moves = dice.integers(len(known), size=number), dice.integers(-2, 3, size=(number, 2))
    noise = dice.integers(2**31, size=number)
    return [
        replace(known[which], down=int(down), right=int(right), seed=int(own))
        for which, (down, right), own in zip(chosen, moves, noise, strict=True)
    ]


def render(specs: Sequence[Drawn], side: int = SIDE) -> np.ndarray:
    """The pictures, (number, side, side, 3) uint8, red first; on another side than 32 places move with it, and shapes
    keep their size."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    pictures = np.empty((len(specs), side, side, 3), dtype=np.uint8)
    for picture, spec in zip(pictures, specs, strict=True):
        row, column = (place * side / SIDE for place in POSITIONS[spec.position])
        inside = _inside(spec.shape, rows - row - spec.down, columns - column - spec.right, SIZES[spec.size])
        drawn = np.where(inside[..., None], np.array(COLOURS[spec.colour], np.float32), np.float32(BACKGROUND))
        drawn += NOISE * np.random.Generator(np.random.PCG64(spec.seed)).standard_normal(drawn.shape, dtype=np.float32)
        picture[:] = drawn.clip(0, 255)
    return pictures


def _inside(shape: str, down: np.ndarray, right: np.ndarray, radius: float) -> np.ndarray:
    if shape == "circle":
        return down**2 + right**2 <= radius**2
    if shape == "ring":
        distance = down**2 + right**2
        return (distance <= radius**2) & (distance >= (radius * 0.6) ** 2)
    if shape == "square":
        return np.maximum(abs(down), abs(right)) <= radius * 0.85
    if shape == "cross":
        return (np.minimum(abs(down), abs(right)) <= radius * 0.25) & (np.maximum(abs(down), abs(right)) <= radius)
    return (abs(right) <= (down + radius) / 2) & (down <= radius * 0.9)  # a triangle, point up
