"""A picture as a row of patches, and back; a patch embedding is a linear layer on them, or a convolution.

Names say shapes: B pictures, H and W pixels, p pixels of a patch's side, P patches, C the width of a token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from llm_vision.config import VisionConfig, fitting
from llm_vision.errors import PictureError


def patchify(
    images: Shaped[Tensor, "batch channels height width"], patch_size: int
) -> Shaped[Tensor, "batch patches values"]:
    """Cut pictures into squares of p x p pixels, row by row; each becomes p * p * channels numbers, channels innermost.

    Dosovitskiy et al. 2020, section 3.1 (arXiv:2010.11929).

    Raises:
        PictureError: for sizes that patches do not divide.
    """
    batch, channels, height, width = images.shape
    for name, size in (("height", height), ("width", width)):
        if not size or size % patch_size:
            wrong = f"a {name} of {size} pixels does not divide into patches of {patch_size}"
            raise PictureError(f"{wrong}; {fitting(size, patch_size)}")
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size * channels)


def unpatchify(
    patches: Shaped[Tensor, "batch patches values"], patch_size: int, height: int, width: int
) -> Shaped[Tensor, "batch channels height width"]:
    """The pictures that `patchify` cut.

    Raises:
        PictureError: when the patches do not make pictures of this size.
    """
    batch, number, values = patches.shape
    rows, columns = height // patch_size, width // patch_size
    if rows * columns != number or rows * patch_size != height or columns * patch_size != width:
        wrong = f"{number} patches of {patch_size} pixels are no picture of {height} x {width}"
        raise PictureError(f"{wrong}; give the size that they were cut from")
    if values % patch_size**2:
        raise PictureError(f"a patch of {values} numbers has not {patch_size} x {patch_size} pixels; give its own size")
    cut = patches.reshape(batch, rows, columns, patch_size, patch_size, values // patch_size**2)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)


def to_conv(weight: Float[Tensor, "hidden values"], patch_size: int) -> Float[Tensor, "hidden channels p p"]:
    """The kernel of the convolution of stride p that does what a linear layer does on patches."""
    return weight.unflatten(1, (patch_size, patch_size, -1)).permute(0, 3, 1, 2)


def from_conv(kernel: Float[Tensor, "hidden channels p p"]) -> Float[Tensor, "hidden values"]:
    """The linear layer's weight that does on patches what a convolution of stride p does."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def refuse_unless_pixels(images: Tensor, num_channels: int) -> None:
    """Raise a PictureError for what is no batch of pictures: another number of axes, channels last, whole numbers."""
    shape = tuple(images.shape)
    if images.ndim != 4:
        hint = "; add the batch's axis with [None]" if images.ndim == 3 else ""
        raise PictureError(f"pictures of the shape {shape}: (batch, channels, height, width) is wanted{hint}")
    if images.shape[1] != num_channels:
        if images.shape[3] == num_channels:
            raise PictureError(f"pictures of the shape {shape} have their channels last; permute(0, 3, 1, 2) mends it")
        hint = '; read grey pictures with read_image(mode="RGB")' if images.shape[1] == 1 else ""
        raise PictureError(f"pictures of {images.shape[1]} channels, and the model takes {num_channels}{hint}")
    if not images.is_floating_point():
        wrong = f"pixels of the type {str(images.dtype).removeprefix('torch.')}"
        raise PictureError(f"{wrong}; Preprocess makes them floats from 0 to 1, and normalises them")
    if not images.shape[0]:
        raise PictureError("a batch without a picture; leave pixel_values out")


class PatchEmbedding(nn.Module):
    """A token for each patch: one linear layer on its numbers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.patch_values, config.hidden_size, bias=config.patch_bias)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches hidden"]:  # fmt: skip
        return self.projection(patchify(images, self.config.patch_size))

    def as_convolution(self) -> nn.Conv2d:
        """The same as `nn.Conv2d` with kernel and stride p, on copies of the weights."""
        p, made = self.config.patch_size, self.config
        conv = nn.Conv2d(made.num_channels, made.hidden_size, p, stride=p, bias=made.patch_bias)
        with torch.no_grad():
            conv.weight.copy_(to_conv(self.projection.weight, p))
            if conv.bias is not None:
                conv.bias.copy_(self.projection.bias)
        return conv
