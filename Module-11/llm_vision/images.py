"""Picture files to the floats that a model takes: one reading, one size, one normalisation, red first."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from llm_data.errors import one_line
from PIL import Image, ImageOps
from torch import Tensor

from llm_vision.errors import PictureError

MAX_PIXELS = 50_000_000  # 150 MB once decoded


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width 3"]:
    """A picture file as red, green and blue, upright.

    Transparent pixels are laid over white. Grey, palette and CMYK pictures become RGB; 16 bits become 8. The camera's
    note on how it was held (EXIF orientation) is followed: a file viewer shows the same.

    Args:
        path: of any format that Pillow reads.
        max_pixels: of the decoded picture: a small file may hold a huge one.

    Raises:
        PictureError: for what is no picture, is cut short, has several frames, or is too large; in one line.
        FileNotFoundError: where there is no file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture file")
    try:
        with warnings.catch_warnings():  # Pillow warns of large pictures; they are refused below
            warnings.simplefilter("ignore")
            picture: Any = Image.open(path)
        with picture:
            width, height = picture.size
            if width * height > max_pixels:
                wrong = f"{path} has {width} x {height} pixels, more than max_pixels={max_pixels:,}"
                raise PictureError(f"{wrong}; make it smaller, or raise max_pixels")
            if getattr(picture, "n_frames", 1) > 1:
                raise PictureError(f"{path} has {picture.n_frames} frames; save the one that you mean as a picture")
            return _to_rgb(ImageOps.exif_transpose(picture))
    except PictureError:
        raise
    except Exception as error:  # decoders raise anything for files that are damaged
        bomb = isinstance(error, Image.DecompressionBombError)
        advice = "make it smaller" if bomb else "open it in a viewer and save it anew as PNG"
        raise PictureError(f"{path} cannot be read as a picture ({one_line(error)}); {advice}") from None


def _to_rgb(picture: Any) -> np.ndarray:
    if picture.mode.startswith(("I;16", "I")):  # 16 bits; Pillow's own conversion would cut them off at 255
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError(f"values from {values.min()} to {values.max()}, and 16 bits are the most that is read")
        grey = (values // 257).astype(np.uint8) if values.max() > 255 or "16" in picture.mode else values.astype("u1")
        return grey[..., None].repeat(3, axis=-1)
    if picture.mode == "F":
        raise ValueError("its values are floats, of a range that nobody wrote down")
    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return np.array(picture.convert("RGB"))


@dataclass(frozen=True)
class Preprocess:
    """What stands between a picture and a model; the same for training and use. Mirrors `ViTImageProcessor`.

    Args:
        size: height and width that every picture is brought to, whatever its own proportions.
        mean, std: of each channel, red first, of values from 0 to 1; they are subtracted and divided by.
        order: of the channels of *arrays* that are handed over, "RGB" or "BGR" (OpenCV's); files are always RGB.

    Raises:
        ValueError: for numbers that cannot be.
    """

    size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    order: str = "RGB"

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise ValueError(f"size={self.size!r} must be a whole number and at least 1")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise ValueError(f"mean={self.mean}, std={self.std}: three numbers each, and those of std above 0")
        if self.order not in ("RGB", "BGR"):
            raise ValueError(f"order={self.order!r} is neither RGB nor BGR")

    def __call__(self, source: Path | str | np.ndarray) -> Float[Tensor, "3 size size"]:
        """One picture: a file, or an array (height, width, 3) of uint8.

        Raises:
            PictureError: for a file that cannot be read, and an array of another shape or type.
        """
        if isinstance(source, np.ndarray):
            pixels = checked_array(source[None])[0]
            pixels = pixels[..., ::-1] if self.order == "BGR" else pixels
        else:
            pixels = read_image(source)
        if pixels.shape[:2] != (self.size, self.size):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            pixels = np.array(picture.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return self.normalise(torch.from_numpy(np.ascontiguousarray(pixels)))

    def batch(self, arrays: UInt8[np.ndarray, "number height width 3"]) -> Float[Tensor, "number 3 size size"]:
        """Many arrays of one size. Raises as a call."""
        arrays = checked_array(arrays)
        if arrays.shape[1:3] != (self.size, self.size):
            return torch.stack([self(array) for array in arrays])
        ordered = arrays[..., ::-1] if self.order == "BGR" else arrays
        return self.normalise(torch.from_numpy(np.ascontiguousarray(ordered)))

    def normalise(self, pixels: UInt8[Tensor, "*batch height width 3"]) -> Float[Tensor, "*batch 3 height width"]:
        """(value / 255 - mean) / std, channels first."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((pixels.float() / 255 - mean) / std).movedim(-1, -3)


def checked_array(arrays: np.ndarray) -> np.ndarray:
    """Arrays of pictures, (number, height, width, 3) uint8; a PictureError for others, with what mends them."""
    if arrays.dtype != np.uint8:
        raise PictureError(f"pixels of the type {arrays.dtype}; whole numbers from 0 to 255 (uint8) are wanted")
    if arrays.ndim != 4 or arrays.shape[-1] != 3:
        mend = "give (height, width, 3)"
        if arrays.ndim == 4 and arrays.shape[1] == 3:
            mend = "its channels come first; np.moveaxis(array, -3, -1) mends it"
        elif arrays.ndim == 3 or arrays.shape[-1] == 1:
            mend = "grey pictures become RGB by repeating their channel three times"
        raise PictureError(f"an array of the shape {arrays.shape[1:]} is no picture; {mend}")
    if not arrays.size:
        raise PictureError(f"an array of the shape {arrays.shape} holds no pixel; give pictures")
    return arrays
