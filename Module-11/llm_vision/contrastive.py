"""Pictures and texts that belong together are brought together: CLIP's loss and SigLIP's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Images = Float[Tensor, "images dim"]
Texts = Float[Tensor, "texts dim_of_texts"]  # as many as pictures; `similarity` says so where they are not
Scalar = Float[Tensor, ""]


def similarity(image_embeds: Images, text_embeds: Texts) -> Float[Tensor, "texts images"]:
    """The cosine of every text with every picture.

    Raises:
        ValueError: when there are not as many texts as pictures, which the losses take for pairs.
    """
    if image_embeds.shape != text_embeds.shape:
        wrong = f"embeddings of pictures {tuple(image_embeds.shape)} and of texts {tuple(text_embeds.shape)}"
        raise ValueError(f"{wrong}; row i of the one belongs to row i of the other: give pairs")
    return F.normalize(text_embeds, dim=-1, eps=0.0) @ F.normalize(image_embeds, dim=-1, eps=0.0).T


def clip_loss(image_embeds: Images, text_embeds: Texts, logit_scale: Scalar) -> Scalar:
    """Cross-entropy of each text's own picture among all, and of each picture's own text; the mean of the two, in nats.

    Radford et al. 2021, figure 3 (arXiv:2103.00020). Mirrors the loss of transformers' `CLIPModel`. Without knowledge
    it is ln(batch).

    Args:
        image_embeds, text_embeds: of pairs, row by row, of any length.
        logit_scale: the logarithm of what cosines are multiplied by; learned.
    """
    logits = similarity(image_embeds, text_embeds) * logit_scale.exp()
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip_loss(image_embeds: Images, text_embeds: Texts, logit_scale: Scalar, logit_bias: Scalar) -> Scalar:
    """Each of the batch squared pairs is a yes or a no of its own; the sum of their losses, divided by the batch.

    Zhai et al. 2023, algorithm 1 (arXiv:2303.15343). Mirrors the loss of transformers' `SiglipModel`. A pair's loss
    needs no other pair, so that a batch may be cut anywhere.

    Args:
        image_embeds, text_embeds: of pairs, row by row, of any length.
        logit_scale: as in `clip_loss`.
        logit_bias: added to each logit; learned. It begins far below 0, as nearly all pairs are a no.
    """
    logits = similarity(image_embeds, text_embeds) * logit_scale.exp() + logit_bias
    signs = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def retrieval_accuracy(image_embeds: Images, text_embeds: Texts) -> float:
    """Share of texts whose nearest picture is their own."""
    nearest = similarity(image_embeds, text_embeds).argmax(dim=1)
    return float((nearest == torch.arange(len(nearest), device=nearest.device)).float().mean())
