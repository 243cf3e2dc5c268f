"""Between the two halves: a vision token becomes a vector of the language model's width."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Projector(nn.Module):
    """linear_2(gelu(linear_1(x))). Liu et al. 2023, section 3.2 (arXiv:2310.03744).

    The names are those of transformers' `LlavaMultiModalProjector`.

    Args:
        vision_size: width of a vision token.
        text_size: width of the language model.
    """

    def __init__(self, vision_size: int, text_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_size, text_size)
        self.linear_2 = nn.Linear(text_size, text_size)

    def forward(self, x: Float[Tensor, "images patches vision"]) -> Float[Tensor, "images patches text"]:
        return self.linear_2(F.gelu(self.linear_1(x)))
