"""The peak memory of a training step, predicted from the configuration: what is held, what is saved, and when."""

from __future__ import annotations

from dataclasses import dataclass

from llm_core.config import GPTConfig
from llm_core.costs.counts import activation_bytes, num_parameters


def saved_bytes(config: GPTConfig, batch: int, time: int, width: int = 4) -> int:
    """Bytes that a forward pass keeps for the backward pass, with weights and activations of `width` bytes a number.

    `llm_core`'s `activation_bytes` for float32, scaled to the width. Four things stay in float32 at any width: the
    input of each norm (its statistics are taken in float32), its root, attention's log-sum-exps, and the
    log-probabilities of the loss.

    Args:
        width: 4 (float32) or 2 (bfloat16 throughout).
    """
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    wide = (2 * layers + 1) * config.hidden_size + layers * (heads + 2) + config.vocab_size + 1
    return activation_bytes(config, batch, time) * width // 4 + (4 - width) * batch * time * wide


@dataclass(frozen=True)
class Peak:
    """Bytes at the three moments of a step at which its memory can be highest.

    Attributes:
        held: from step to step: weights and both moments.
        forward_end: the loss is computed; all activations are saved.
        backward_start: the gradient of the logits is computed.
        backward_end: every gradient is there, and no activation.
    """

    held: int
    forward_end: int
    backward_start: int
    backward_end: int

    @property
    def bytes(self) -> int:
        """The highest of them."""
        return max(self.forward_end, self.backward_start, self.backward_end)


def predict_peak(config: GPTConfig, batch: int, time: int, width: int = 4, old_gradients: bool = False) -> Peak:
    """The peak of a step with AdamW whose weights, gradients and moments are all of `width` bytes a number.

    Beside what is saved, the loss takes at the end of the forward pass: the logits (`width` bytes), and at width 2
    their copy in float32. At the start of the backward pass it takes the gradients of log-probabilities and of logits,
    both in float32.

    Args:
        config: sizes.
        batch: rows.
        time: positions of a row.
        width: 4 (float32) or 2 (bfloat16 throughout).
        old_gradients: whether the last step's gradients still exist during the forward pass. They do where a loop
            clears them between the forward and the backward pass, as Lightning's does.
    """
    N, tokens = num_parameters(config), batch * time
    held, gradients = 3 * width * N, width * N
    saved = saved_bytes(config, batch, time, width)
    logits = tokens * config.vocab_size
    return Peak(
        held,
        held + old_gradients * gradients + saved + logits * (width + (4 if width == 2 else 0)),
        held + saved + 8 * logits,
        # A matrix that embedding and head share has two gradients and their sum for a moment.
        held + gradients + (2 * width * config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0),
    )
