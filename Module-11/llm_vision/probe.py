"""A picture that travels with a model, with what its pixels and features were: what goes red when channels are swapped.

A swap of red and blue has the right shape, the right type and a likely loss; nothing in a tensor tells it. A pipeline
is therefore asked for something known: the file of a picture whose channels, sides and ends all differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from llm_data.whole_files import write_in_place
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_vision.errors import PictureError
from llm_vision.images import Preprocess
from llm_vision.vit import ViT

PICTURE, VALUES = "probe.png", "probe.safetensors"
WITHIN = 0.05  # of normalised values: another resize rounds otherwise, and a swap moves them by more than 1
FEATURES_WITHIN = 1e-3


def probe_picture() -> np.ndarray:
    """48 x 64 pixels: a quarter red, one green, one blue, and one that brightens to the right and less so down."""
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    picture[:24, :32] = (230, 20, 10)
    picture[:24, 32:] = (10, 200, 40)
    picture[24:, :32] = (30, 60, 240)
    picture[24:, 32:] = (np.arange(32) * 6 + np.arange(24)[:, None] * 2)[..., None]
    return picture


@dataclass(frozen=True)
class Probe:
    """What a model's own pipeline made of the probe's picture.

    Attributes:
        pixel_values: normalised.
        features: of the model, for these.
        mean, std: of the pipeline, to name what a foreign one left out.
    """

    pixel_values: Float[Tensor, "3 height width"]
    features: Float[Tensor, " hidden"]
    mean: Float[Tensor, " 3"]
    std: Float[Tensor, " 3"]

    @classmethod
    @torch.no_grad()
    def of(cls, preprocess: Preprocess, vision: ViT) -> Probe:
        """Ask the pipeline and the model that belong together."""
        rgb = probe_picture()
        pixels = preprocess(np.ascontiguousarray(rgb[..., ::-1]) if preprocess.order == "BGR" else rgb)
        return cls(pixels, vision.pooled(pixels[None])[0], torch.tensor(preprocess.mean), torch.tensor(preprocess.std))

    def save(self, folder: Path | str) -> Path:
        """Write the picture and the values beside a model; returns the picture's path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: getattr(self, name).contiguous() for name in self.__dataclass_fields__}
        write_in_place(folder / VALUES, lambda path: save_file(values, path))
        write_in_place(folder / PICTURE, lambda path: Image.fromarray(probe_picture()).save(path, format="PNG"))
        return folder / PICTURE

    @classmethod
    def load(cls, folder: Path | str) -> Probe:
        """What `save` wrote.

        Raises:
            PictureError: where it is missing or damaged.
        """
        try:
            with safe_open(Path(folder) / VALUES, framework="pt") as file:
                return cls(**{name: file.get_tensor(name) for name in cls.__dataclass_fields__})
        except Exception as error:  # safetensors raises its own
            wrong = f"{Path(folder) / VALUES} is no probe ({type(error).__name__})"
            raise PictureError(f"{wrong}; save the model's probe again") from None

    def verify(self, pipeline: Callable[[Any], Tensor], picture: Path | str | np.ndarray) -> None:
        """Run the picture through the pipeline that is really used.

        Args:
            pipeline: picture to normalised pixels, as it will be called; with a batch's axis or without.
            picture: the file that `save` wrote, or for pipelines of arrays what they read from it.

        Raises:
            PictureError: when other pixels come out, with what was done to them where it is one of the usual mistakes.
        """
        found = pipeline(picture).detach().float()
        found = found[0] if found.ndim == 4 and len(found) == 1 else found
        if _near(found, self.pixel_values):
            return
        for words, mended in self._mistakes(found):
            if _near(mended, self.pixel_values):
                raise PictureError(f"the pipeline gives other pixels than the model was trained on: {words}")
        apart = ""
        if found.shape == self.pixel_values.shape:
            apart = f", up to {float((found - self.pixel_values).abs().max()):.2f} away"
        wanted = f"{tuple(self.pixel_values.shape)} is wanted and {tuple(found.shape)} came out{apart}"
        raise PictureError(f"the pipeline gives other pixels than the model was trained on: {wanted}; compare both")

    @torch.no_grad()
    def verify_model(self, vision: ViT) -> None:
        """Raise a PictureError when a model's features of the probe's own pixels are not those that were written down:
        its weights are others, or were laid out for another order of channels."""
        found = vision.pooled(self.pixel_values[None].to(vision.layernorm.weight))[0].float().cpu()
        if found.shape == self.features.shape and torch.allclose(found, self.features, atol=FEATURES_WITHIN, rtol=1e-3):
            return
        words = "its weights are others"
        if vision.config.num_channels == 3:
            swapped = vision.pooled(self.pixel_values.flip(0)[None].to(vision.layernorm.weight))[0].float().cpu()
            if swapped.shape == self.features.shape and torch.allclose(swapped, self.features, atol=1e-3, rtol=1e-3):
                words = "its patch embedding reads blue first"
        raise PictureError(f"the model does not see in the probe what it saw when it was saved: {words}")

    def _mistakes(self, found: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Usual mistakes, one or two at a time, each with the pixels as they would be without it."""
        mean, std = self.mean[:, None, None], self.std[:, None, None]
        layouts = [("", found)]
        if found.ndim == 3 and found.shape[-1] == 3 and found.shape[0] != 3:
            layouts = [("its channels come last (HWC); permute(2, 0, 1)", found.permute(2, 0, 1))]
        sides = {
            "": lambda x: x, "height and width are exchanged": lambda x: x.mT,
            "it is upside down": lambda x: x.flip(1), "left and right are exchanged": lambda x: x.flip(2),
        }  # fmt: skip
        scales = {  # back to values from 0 to 1
            "": lambda x: x * std + mean, "it is not normalised by mean and std": lambda x: x,
            "it is not normalised, and its values go to 255": lambda x: x / 255,
            "it is normalised as if its values, which go to 255, went to 1": lambda x: (x * std + mean) / 255,
        }  # fmt: skip
        orders = sorted(itertools.permutations(range(3)))
        for (layout, x), (side, turn), (scale, value), order in itertools.product(
            layouts, sides.items(), scales.items(), orders
        ):
            if x.ndim != 3 or x.shape[0] != 3:
                continue
            swap = {(0, 1, 2): "", (2, 1, 0): "red and blue are exchanged (BGR for RGB)"}.get(
                order, f"its channels come in the order {''.join('RGB'[order.index(place)] for place in range(3))}"
            )
            words = [each for each in (layout, side, scale, swap) if each]
            turned = turn(x)
            if words and turned.shape == self.pixel_values.shape:
                if swap and not scale:
                    yield "; ".join([*words, "after mean and std were taken"]), turned[list(order)]
                yield "; ".join(words), (value(turned)[list(order)] - mean) / std


def _near(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= WITHIN
