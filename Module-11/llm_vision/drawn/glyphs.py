"""Pages of digits in strokes of whole pixels: how large may a patch be before reading stops?"""

from __future__ import annotations

import numpy as np

WIDTH, HEIGHT, CELL = 3, 5, 8  # of a digit, and of the side of its cell, in strokes
# Five rows of three bits for each digit.
BITS = {
    "0": (7, 5, 5, 5, 7), "1": (2, 6, 2, 2, 7), "2": (7, 1, 7, 4, 7), "3": (7, 1, 7, 1, 7), "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7), "6": (7, 4, 7, 5, 7), "7": (7, 1, 2, 2, 2), "8": (7, 5, 7, 5, 7), "9": (7, 5, 7, 1, 7),
}  # fmt: skip
FOREGROUND, BACKGROUND, NOISE = 225, 30, 12  # of 255


def glyph(digit: str, stroke: int) -> np.ndarray:
    """One digit, (5 stroke, 3 stroke) of True and False."""
    rows = np.array([[bool(row & 4), bool(row & 2), bool(row & 1)] for row in BITS[digit]])
    return rows.repeat(stroke, axis=0).repeat(stroke, axis=1)


def draw_pages(number: int, seed: int, side: int = 32, stroke: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Pages of random digits, one in each square cell of 8 strokes, and the digits.

    A digit stands anywhere in its cell, with a stroke of room at least on each side.

    Args:
        number: of pages.
        seed: of digits, places and noise.
        side: height and width in pixels.
        stroke: pixels of a stroke's width; a digit is 5 of them high and 3 wide.

    Returns:
        (number, side, side, 3) uint8, and (number, rows, rows) int64 of digits, with rows = side / (8 stroke).

    Raises:
        ValueError: when cells do not fill the page, with sides that they fill.
    """
    for name, value in (("number", number), ("side", side), ("stroke", stroke)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    cell = CELL * stroke
    if side % cell:
        wrong = f"side={side} is not filled by cells of {cell} pixels, which strokes of {stroke} need"
        raise ValueError(f"{wrong}; take a multiple of {cell}")
    dice, rows = np.random.default_rng(seed), side // cell
    digits = dice.integers(10, size=(number, rows, rows))
    down = dice.integers(stroke, (CELL - HEIGHT - 1) * stroke + 1, size=digits.shape)
    right = dice.integers(stroke, (CELL - WIDTH - 1) * stroke + 1, size=digits.shape)
    shapes = np.stack([glyph(str(digit), stroke) for digit in range(10)])
    pages, page = np.full((number, side, side), BACKGROUND, dtype=np.float32), np.arange(number)[:, None, None]
    for row, column in np.ndindex(rows, rows):  # the same cell of all pages at once
        y = cell * row + down[:, row, column, None, None] + np.arange(HEIGHT * stroke)[:, None]
        x = cell * column + right[:, row, column, None, None] + np.arange(WIDTH * stroke)
        pages[page, y, x] = np.where(shapes[digits[:, row, column]], FOREGROUND, BACKGROUND)
    pages += NOISE * dice.standard_normal(pages.shape, dtype=np.float32)
    return pages.clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=-1), digits
