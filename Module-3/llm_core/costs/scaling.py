"""What a GPT costs before it is built: parameters, FLOPs, bytes, tokens and days, from its configuration.

Letters in formulas: C the residual stream, I inside the MLP, L layers, H heads, K heads of keys and values, V the
vocabulary, b rows of a batch, T positions; N parameters, D tokens. A FLOP is one addition or multiplication, so a
product of (m, k) and (k, n) takes 2 m k n of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from llm_core.model import GPT, GPTConfig

# From a laptop's model to Llama 2's 7B. The last three have published shapes: TinyLlama-1.1B, Llama-3.2-3B, Llama-2-7B.
CONFIGS: dict[str, GPTConfig] = {
    "1M": GPTConfig(1_024, 128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2),
    "10M": GPTConfig(
        4_096, 320, num_hidden_layers=7, num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=512
    ),
    "100M": GPTConfig(
        32_000, 768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=1_024
    ),
    "350M": GPTConfig(
        32_000, 1_024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=4,
        max_position_embeddings=2_048,
    ),
    "1B": GPTConfig(
        32_000, 2_048, 5_632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        max_position_embeddings=2_048, tie_word_embeddings=False,
    ),
    "3B": GPTConfig(
        128_256, 3_072, 8_192, num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8,
        max_position_embeddings=4_096,
    ),
    "7B": GPTConfig(
        32_000, 4_096, 11_008, num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=4_096,
        tie_word_embeddings=False,
    ),
}  # fmt: skip


def parameter_parts(config: GPTConfig) -> dict[str, int]:
    """Parameters by what they are for; their sum is N.

    Attention has 2 C² + 2 C (K C / H) a layer, the MLP 3 C I, and there are 2 L + 1 norms of C. A tied head has none of
    its own.
    """
    C, layers = config.hidden_size, config.num_hidden_layers
    keys = config.num_key_value_heads * config.head_dim
    return {
        "embedding": config.vocab_size * C,
        "attention": layers * (2 * C * C + 2 * C * keys),
        "mlp": layers * 3 * C * config.intermediate_size,
        "norms": (2 * layers + 1) * C,
        "head": 0 if config.tie_word_embeddings else config.vocab_size * C,
    }


def num_parameters(config: GPTConfig) -> int:
    """N: all parameters, a tied matrix once."""
    return sum(parameter_parts(config).values())


def matmul_parameters(config: GPTConfig) -> int:
    """M: parameters of matrices that every token is multiplied by.

    The head is one of them, tied or not. The embedding is not: a row is looked up. Nor are the norms.
    """
    parts = parameter_parts(config)
    return parts["attention"] + parts["mlp"] + config.vocab_size * config.hidden_size


def flops_per_token(config: GPTConfig, time: int, training: bool = True) -> int:
    """FLOPs of the matrix products for one token in a row of `time`: 6 M + 12 L C T, or 2 M + 4 L C T without training.

    The scores and their use count as full T x T products, though half of them are masked: the convention of Chowdhery
    et al. 2022, appendix B, so that utilisations compare. A backward pass has two products for each one forward.

    Args:
        config: sizes.
        time: T.
        training: forward and backward pass; else the forward pass alone.
    """
    forward = 2 * matmul_parameters(config) + 4 * config.num_hidden_layers * config.hidden_size * time
    return 3 * forward if training else forward


@dataclass(frozen=True)
class Recipe:
    """Bytes that each parameter takes for as long as training lasts, with AdamW."""

    weight: int
    gradient: int
    master: int
    moments: int

    @property
    def total(self) -> int:
        """Bytes a parameter."""
        return self.weight + self.gradient + self.master + self.moments


RECIPES: dict[str, Recipe] = {
    "32-true": Recipe(4, 4, 0, 8),
    "bf16-mixed": Recipe(4, 4, 0, 8),  # autocast: the bf16 copies live for one product
    "bf16, fp32 master and moments": Recipe(2, 2, 4, 8),  # Rajbhandari et al. 2020, section 3.1
    "bf16, fp32 moments": Recipe(2, 2, 0, 8),
    "bf16-true": Recipe(2, 2, 0, 4),
}


def activation_bytes(config: GPTConfig, batch: int, time: int) -> int:
    """Bytes that a forward pass in float32 keeps for the backward pass.

    4 b T (L (8 C + 2 K C / H + 4 I + H + 2) + 3 C + V + 1), with fused attention, which keeps no T x T matrix. A norm
    keeps its input, a root and the normalised input, and its output is the input of the projections; attention keeps
    queries, keys, values, its output and a sum a head; the MLP keeps gate, silu(gate), up and their product; the loss
    keeps the log-probabilities. Left out are the ids and the tables of the rotary positions, which all rows share.
    """
    C, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    layer = 8 * C + 2 * keys + 4 * config.intermediate_size + config.num_attention_heads + 2
    return 4 * batch * time * (config.num_hidden_layers * layer + 3 * C + config.vocab_size + 1)


@dataclass(frozen=True)
class LossFit:
    """L(N, D) = E + A / N^alpha + B / D^beta: the loss, in nats a token, of N parameters after D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float | int, tokens: float | int) -> float:
        """L(N, D)."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta


# As printed, to two or four digits. Hoffmann et al. 2022, section 3.3 and appendix D.3.
HOFFMANN = LossFit(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
# The same form, fitted again to the points of their figure 4. Besiroglu et al. 2024 (arXiv:2404.10102).
BESIROGLU = LossFit(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


class Split(NamedTuple):
    """A budget, split into parameters and tokens."""

    parameters: float
    tokens: float


def optimal_split(compute: float | int, fit: LossFit) -> Split:
    """The N and D of lowest loss among those with 6 N D = `compute` FLOPs. Hoffmann et al. 2022, section 3.3.

    Where the loss is lowest, alpha A / N^alpha = beta B / D^beta.

    Raises:
        ValueError: for a budget that is not above 0.
    """
    if not compute > 0:
        raise ValueError(f"compute={compute} FLOPs must be above 0")
    G = (fit.alpha * fit.A / (fit.beta * fit.B)) ** (1 / (fit.alpha + fit.beta))
    product = compute / 6
    parameters = G * product ** (fit.beta / (fit.alpha + fit.beta))
    return Split(parameters, product / parameters)


# FLOP/s of dense bf16 products, by `torch.cuda.get_device_name()`. NVIDIA's data sheets of the H100, H200 and A100; for
# Hopper they print twice this, "with sparsity". Exact names only: a part of a GPU (MIG) has another name and peak.
PEAK_FLOPS: dict[str, float] = {
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of a GPU in FLOP/s; None for a device that is not in the table."""
    return PEAK_FLOPS.get(device_name)


def days(flops: float | int, peak: float | int, mfu: float | int, gpus: int = 1) -> float:
    """Days for `flops` on `gpus` devices of `peak` FLOP/s each, of which a share `mfu` arrives in the model.

    Args:
        flops: of the whole training: `flops_per_token` times tokens.
        peak: FLOP/s of one device, dense.
        mfu: model FLOPs utilisation, above 0 and at most 1. It falls with the number of devices; this is that of all.
        gpus: devices.

    Raises:
        ValueError: for a share that cannot be.
    """
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu={mfu} must be above 0 and at most 1; it is a share of the peak")
    return flops / (gpus * peak * mfu) / 86_400


@torch.no_grad()
def scale_residual_outputs(model: GPT) -> None:
    """Divide the matrices that write into the residual stream by sqrt(2 L), in place, once after initialisation.

    Each of the 2 L sublayers then adds a share 1 / (2 L) of the variance, and the stream does not grow with depth.
    Radford et al. 2019, section 2.3.
    """
    factor = 1 / math.sqrt(2 * model.config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_(factor)
