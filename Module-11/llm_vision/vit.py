"""A vision transformer by hand: patches, learned positions, blocks that look to all sides.

Its weights carry the names of transformers' `ViTModel`. CLIP's and SigLIP's encoders are the same blocks with other
switches (`VisionConfig`). Names say shapes: B pictures, N tokens, C the width of a token, H heads, D width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from llm_vision.config import VisionConfig
from llm_vision.errors import PictureError
from llm_vision.patches import PatchEmbedding, refuse_unless_pixels

Tokens = Float[Tensor, "batch tokens hidden"]


class VisionOutput(NamedTuple):
    """`last_hidden_state` is behind the last norm. `hidden_states` are not: before the first block, and behind each."""

    last_hidden_state: Tokens
    hidden_states: tuple[Tensor, ...]


def resize_positions(
    positions: Float[Tensor, "1 tokens hidden"], rows: int, columns: int, class_token: bool
) -> Float[Tensor, "1 others hidden"]:
    """Positions that were learned for a square of patches, for another grid: bicubic, the class token's as it is.

    Mirrors `interpolate_pos_encoding` of transformers. Dosovitskiy et al. 2020, section 3.2.
    """
    first, grid = positions[:, : int(class_token)], positions[:, int(class_token) :]
    side = int(grid.shape[1] ** 0.5)
    if (rows, columns) == (side, side):
        return positions
    square = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, C, side, side)
    made = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([first, made.flatten(2).transpose(1, 2)], dim=1)


class Embeddings(nn.Module):
    """Patches as tokens, a class token before them, and a learned position for each."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        tokens = config.num_patches + int(config.class_token)
        self.patch_embeddings = PatchEmbedding(config)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, tokens, config.hidden_size))

    def forward(self, images: Float[Tensor, "batch channels height width"], resize: bool) -> Tokens:
        height, width = images.shape[-2:]
        size, p = self.config.image_size, self.config.patch_size
        if not resize and (height, width) != (size, size):
            wrong = f"pictures of {height} x {width} pixels, and the model's positions are for {size} x {size}"
            raise PictureError(f"{wrong}; resize the pictures, or pass resize_positions=True")
        x = self.patch_embeddings(images)
        if self.config.class_token:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x + resize_positions(self.position_embeddings, height // p, width // p, self.config.class_token)


class Attention(nn.Module):
    """Every token looks at every token; no mask, no rotation."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        self.q_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tokens) -> Tokens:
        split = (self.config.num_attention_heads, self.config.head_dim)
        q, k, v = (
            made(x).unflatten(-1, split).transpose(1, 2) for made in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, H, N, D)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.hidden_act = config.hidden_act
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tokens) -> Tokens:
        x = self.fc1(x)
        if self.hidden_act == "quick_gelu":
            return self.fc2(x * torch.sigmoid(1.702 * x))
        return self.fc2(F.gelu(x, approximate="none" if self.hidden_act == "gelu" else "tanh"))


class VisionBlock(nn.Module):
    """Attention, then MLP, each behind a norm and beside the residual stream."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tokens) -> Tokens:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.mlp(self.layernorm_after(x))


class ViT(nn.Module):
    """Pictures to tokens. Dosovitskiy et al. 2020, equations 1 to 4 (arXiv:2010.11929).

    Args:
        config: sizes.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        if config.pre_layernorm:
            self.pre_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(VisionBlock(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=config.initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.embeddings.position_embeddings, std=config.initializer_range)
        if config.class_token:
            nn.init.trunc_normal_(self.embeddings.cls_token, std=config.initializer_range)

    def forward(self, images: Num[Tensor, "..."], resize_positions: bool = False) -> VisionOutput:
        """All tokens, the class token first.

        Args:
            images: (batch, channels, height, width), normalised floats.
            resize_positions: take pictures of another size, with positions between the learned ones.

        Raises:
            PictureError: for pictures of another shape, type or size.
        """
        refuse_unless_pixels(images, self.config.num_channels)
        x = self.embeddings(images.to(self.layernorm.weight.dtype), resize_positions)
        if self.config.pre_layernorm:
            x = self.pre_layernorm(x)
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return VisionOutput(self.layernorm(states[-1]), tuple(states))

    def pooled(self, images: Num[Tensor, "..."], resize_positions: bool = False) -> Float[Tensor, "batch hidden"]:
        """One vector a picture: the class token's; without one, the mean of all tokens. Raises as `forward`."""
        x = self(images, resize_positions).last_hidden_state
        return x[:, 0] if self.config.class_token else x.mean(dim=1)

    def patch_features(self, images: Num[Tensor, "..."], layer: int = -1) -> Tokens:
        """A vector for each patch, as LLaVA takes them: behind block `layer`, before the last norm, no class token.

        Args:
            images: as for `forward`.
            layer: of `hidden_states`; 0 is before the first block.

        Raises:
            PictureError: as `forward`, and for a layer that is not there.
        """
        blocks = self.config.num_hidden_layers
        if not -blocks - 1 <= layer <= blocks:
            raise PictureError(f"layer={layer} of {blocks} blocks; take one from {-blocks - 1} to {blocks}")
        return self(images).hidden_states[layer][:, int(self.config.class_token) :]
