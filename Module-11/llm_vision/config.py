"""The sizes of a vision transformer, checked once."""

from __future__ import annotations

from dataclasses import dataclass

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class VisionConfig:
    """Sizes under the names of transformers' `ViTConfig`; the last four make it ViT's, CLIP's or SigLIP's encoder.

    Args:
        image_size: height and width in pixels that the positions were learned for.
        patch_size: p, pixels of a patch's side.
        num_channels: of a picture.
        hidden_size: C.
        num_hidden_layers: blocks.
        num_attention_heads: H.
        intermediate_size: width inside the MLP; 0 takes 4 C.
        hidden_act: "gelu" (ViT), "quick_gelu" (CLIP) or "gelu_pytorch_tanh" (SigLIP).
        layer_norm_eps: inside the root of LayerNorm.
        initializer_range: standard deviation of the initial weights.
        class_token: whether a learned token stands before the patches; SigLIP has none.
        patch_bias: whether the patch embedding adds a bias; CLIP's adds none.
        qkv_bias: whether queries, keys and values have one.
        pre_layernorm: whether a norm comes before the first block, as in CLIP.

    Raises:
        ValueError: for sizes that cannot be, with those that would.
    """

    image_size: int = 32
    patch_size: int = 8
    num_channels: int = 3
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    class_token: bool = True
    patch_bias: bool = True
    qkv_bias: bool = True
    pre_layernorm: bool = False

    def __post_init__(self) -> None:
        if self.intermediate_size == 0 and type(self.hidden_size) is int:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        for name in ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers",
                     "num_attention_heads", "intermediate_size"):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number and at least 1")
        if self.image_size % self.patch_size:
            wrong = f"patch_size={self.patch_size} does not divide image_size={self.image_size}"
            raise ValueError(f"{wrong}; {fitting(self.image_size, self.patch_size)}")
        if self.hidden_size % self.num_attention_heads:
            wrong = f"hidden_size={self.hidden_size} does not divide among {self.num_attention_heads} heads"
            raise ValueError(f"{wrong}; make it a multiple of {self.num_attention_heads}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act!r} is none of {', '.join(ACTIVATIONS)}")
        if not self.layer_norm_eps > 0 or not self.initializer_range >= 0:
            wrong = f"layer_norm_eps={self.layer_norm_eps} and initializer_range={self.initializer_range}"
            raise ValueError(f"{wrong}: the first must be above 0, the second 0 or more")
        for name in ("class_token", "patch_bias", "qkv_bias", "pre_layernorm"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}={getattr(self, name)!r} must be true or false")

    @property
    def head_dim(self) -> int:
        """D."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_patches(self) -> int:
        """(image_size / patch_size) squared: tokens of a picture, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_values(self) -> int:
        """Numbers in a patch: p * p * channels."""
        return self.patch_size**2 * self.num_channels


def fitting(size: int, patch_size: int) -> str:
    """Which sizes near a picture's would divide into patches, and which patches divide the picture's, in words."""
    low = size // patch_size * patch_size
    sizes = " or ".join(str(each) for each in (low, low + patch_size) if each)
    divisors = [each for each in range(2, size + 1) if size % each == 0]
    near = sorted(sorted(divisors, key=lambda each: abs(each - patch_size))[:3])
    patches = f", or patches of {', '.join(map(str, near))}" if near else ""
    return f"a size of {sizes} would do{patches}"
