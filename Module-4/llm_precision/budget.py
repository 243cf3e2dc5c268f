"""The peak memory of a training step, predicted from the configuration and its levers: what is held, saved, and when.

Letters as in `llm_core.costs.counts`: n tokens of a batch, C the residual stream, I inside the MLP, V the vocabulary,
H heads, N parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_core.config import GPTConfig
from llm_core.costs.counts import matmul_parameters, num_parameters

from llm_precision.levers import Levers


def mixed_bytes(config: GPTConfig) -> tuple[int, int]:
    """Bytes a token that a layer and the rest keep under autocast: norms in float32, what products read in 16 bits.

    Each of the products that read one norm casts it for itself: three copies for queries, keys and values, two for
    gate and up.
    """
    C, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    norm, casts = 2 * 4 * C + 4, (3 + 2) * 2 * C
    attention = 2 * (2 * C + 2 * keys) + 4 * config.num_attention_heads
    return 2 * norm + casts + attention + 2 * 4 * config.intermediate_size, norm + 2 * C + 4 * config.vocab_size


def compiled_bytes(config: GPTConfig, width: int) -> tuple[int, int]:
    """Bytes a token of a compiler that saves what products gave and computes everything element-wise again."""
    C, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    layer = 2 * (C + 1) + 2 * C + 2 * keys + config.num_attention_heads + 2 * config.intermediate_size
    return width * layer, width * (C + 1 + config.vocab_size + 1)


def saved_parts(config: GPTConfig, levers: Levers, batch: int, time: int) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass: of one layer, and of the rest (last norm, head, loss).

    In float32 they are `llm_core`'s `activation_bytes`. Four things stay in float32 at any width: the input of each
    norm (its statistics are taken in float32), its root, attention's log-sum-exps, and the log-probabilities.
    """
    n, layers = batch * time, config.num_hidden_layers
    C, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    width = 2 if levers.precision == "bf16-true" else 4
    if levers.precision.endswith("-mixed"):
        layer, rest = (n * each for each in mixed_bytes(config))
        head = config.vocab_size * C  # autocast keeps a copy in 16 bits of each matrix until the forward pass is over
        layer += 2 * (matmul_parameters(config) - head) // layers
        rest += 2 * head
        width = 2
    elif levers.compiled:
        layer, rest = (n * each for each in compiled_bytes(config, width))
    else:
        wide = 4 * n
        layer = width * n * (6 * C + 2 * keys + 4 * config.intermediate_size)
        layer += wide * (2 * C + config.num_attention_heads + 2)
        rest = width * n * 2 * C + wide * (C + config.vocab_size + 1)
    if levers.attention == "naive":  # the table in float32, and keys and values for each query head, in float32 too
        heads = config.num_attention_heads
        layer += 4 * n * heads * (time - 1) + n * (10 * C - 4 * keys if width == 2 else 8 * (C - keys))
    if levers.loss_chunk:
        rest -= 4 * n * config.vocab_size
    return layer, rest


class Moments:
    """Bytes at named moments of a step, of which the highest counts."""

    moments: dict[str, int]

    @property
    def bytes(self) -> int:
        """At the highest of them."""
        return max(self.moments.values())

    @property
    def moment(self) -> str:
        """When that is."""
        return max(self.moments, key=lambda name: self.moments[name])


@dataclass(frozen=True)
class Peak(Moments):
    """Bytes at the moments of a step at which its memory can be highest.

    Attributes:
        held: from step to step: weights and both moments.
        moments: by name. "forward end": the loss is computed, all activations are saved. "backward start": the gradient
            of the logits is computed. "recomputing": the last block is computed again, where blocks are. "backward
            end": every gradient is there, and no activation. "optimiser": its temporary numbers.
    """

    held: int
    moments: dict[str, int]


def predict_peak(
    config: GPTConfig, batch: int, time: int, levers: Levers | None = None, old_gradients: bool = False
) -> Peak:
    """The peak of a step with AdamW, of the levers that `build_step` makes.

    Args:
        config: sizes.
        batch: rows that go through the model at a time.
        time: positions of a row.
        levers: what is pulled; by default nothing.
        old_gradients: whether the last step's gradients still exist during the forward pass. They do where a loop
            clears them between the forward and the backward pass, as Lightning's does; and from the second of
            accumulated batches on.
    """
    levers = levers or Levers()
    N, n, V, C = num_parameters(config), batch * time, config.vocab_size, config.hidden_size
    width = 2 if levers.precision == "bf16-true" else 4
    narrow = 4 if levers.precision in ("fp32", "tf32") else 2
    held, gradients = 3 * width * N, width * N
    layer, rest = saved_parts(config, levers, batch, time)
    saved, inside = config.num_hidden_layers * layer, 0
    if levers.checkpointing:
        saved, inside = config.num_hidden_layers * 4 * n * C, layer
    logits = V * (min(levers.loss_chunk, n) if levers.loss_chunk else n)
    before = held + gradients * (levers.accumulate > 1)
    during = held + gradients * (old_gradients or levers.accumulate > 1)
    forward = logits * (narrow + (4 if narrow == 2 else 0)) + (4 * logits if levers.loss_chunk else 0)
    backward = 8 * logits + (4 * logits if levers.loss_chunk else 0)
    if levers.loss_chunk:  # those of the chunks before: of the head, and of what it reads
        backward += width * (V * C + n * C)
    if levers.compiled:
        backward = narrow * logits
    # A matrix that embedding and head share has two gradients and their sum for a moment. Chunks have added up one of
    # them; autocast makes one in 16 bits first; and what an earlier batch left is there beside them.
    copies = 1 if 0 < levers.loss_chunk < n or levers.precision.endswith("-mixed") else 2
    shared = (copies + (levers.accumulate > 1)) * width * V * C if config.tie_word_embeddings else 0
    largest = max(V * C, C * config.intermediate_size)
    spare = {"for-loop": 2 * width * largest, "foreach": width * N, "fused": 0}[levers.optimizer]
    moments = {
        "forward end": during + saved + rest + forward,
        "backward start": before + saved + rest + backward,
        "backward end": held + gradients + shared,
        "optimiser": held + gradients + spare,
    }
    if levers.checkpointing:
        # The block's output, gate and up have their gradients then, and the head and the last matrix of the MLP theirs.
        inside += width * (n * (C + 2 * config.intermediate_size) + V * C + C * config.intermediate_size)
        others = config.num_hidden_layers - 1  # before the last block their inputs are there, after it their gradients
        blocks = width * (N - (1 if config.tie_word_embeddings else 2) * V * C - C) // config.num_hidden_layers
        moments["recomputing"] = before + 4 * n * C + inside + others * max(4 * n * C, blocks)
    return Peak(held, moments)
