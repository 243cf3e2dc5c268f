"""A model that gives a number in place of a token: a reward where an answer ends, or a value at every place."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from llm_core.model import GPT
from llm_core.store.hf import pretrained, read_config, tokenizer_of_folder
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)


class ScalarModel(nn.Module):
    """A decoder with a row of weights in place of its head. Its state dict is that of transformers'
    `LlamaForSequenceClassification` with one label, name by name.

    Args:
        model: whose decoder it takes: a copy, which this one then trains.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.config = model.config
        self.model = copy.deepcopy(model.model)
        weight = model.model.embed_tokens.weight
        self.score = nn.Linear(model.config.hidden_size, 1, bias=False, dtype=torch.float32, device=weight.device)
        # Of the size of 1 behind a norm; at 0 the first step would give the decoder no gradient.
        nn.init.normal_(self.score.weight, std=(model.config.hidden_size + 1) ** -0.5)

    def forward(self, input_ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
        """A number at each place, from what stands up to it; rows are filled up on the right."""
        self.config.refuse_longer(input_ids.shape[1])
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        hidden = self.model(input_ids, positions, None, None)
        return self.score(hidden.float())[..., 0]


def read_last(
    scores: Float[Tensor, "batch time"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:  # fmt: skip
    """The number at the last token of each row, prompt and answer: the only place that has read all of it.

    By length, and not by looking for a padding token: where that is the end-of-text token too, the search stops one
    place early, before the answer's end was read.
    """
    return scores.gather(1, lengths[:, None] - 1)[:, 0]


def save_scalar(model: ScalarModel, tokenizer: PreTrainedTokenizerFast | None, folder: Path | str) -> None:
    """Write a folder that `load_scalar` reads, and `AutoModelForSequenceClassification` of transformers too."""
    config = model.config
    ends: dict[str, Any] = {name: getattr(tokenizer, name, None) for name in ("eos_token_id", "pad_token_id")}
    with torch.device("meta"):
        theirs = LlamaForSequenceClassification(LlamaConfig(**asdict(config), **ends, num_labels=1))
    theirs.load_state_dict(model.state_dict(), assign=True)
    theirs.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_scalar(folder: Path | str) -> tuple[ScalarModel, PreTrainedTokenizerFast | None]:
    """A model of a folder with Llama's architecture and one label, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: for a folder that is none, or gives several numbers.
    """
    if not Path(folder).expanduser().is_dir():
        raise ValueError(f"{folder}: no such folder; give that of a reward model")
    theirs: Any = pretrained(AutoModelForSequenceClassification, Path(folder).expanduser(), dtype=torch.float32)
    if not isinstance(theirs, LlamaForSequenceClassification) or theirs.config.num_labels != 1:
        kind = f"{type(theirs).__name__} with {theirs.config.num_labels} labels"
        raise ValueError(f"{folder} is a {kind}; a reward model here has Llama's architecture and one label")
    model = ScalarModel(GPT(read_config(folder)))
    model.load_state_dict(theirs.state_dict())
    return model.eval(), tokenizer_of_folder(folder)
