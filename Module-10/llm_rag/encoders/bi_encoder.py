"""An encoder of our own: token vectors, their mean, a small MLP; learned from pairs by InfoNCE."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from llm_data.tokenizers.fast import encode_documents, tokenizer_hash, train_fast_tokenizer
from llm_data.whole_files import write_in_place
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from course.lightning_tools import quiet
from llm_rag.encoders.contrastive import info_nce
from llm_rag.encoders.encoder import as_texts, empty, mean_pool

CONFIG, TOKENIZER, WEIGHTS = "bi_encoder.json", "tokenizer.json", "model.safetensors"


@dataclass(frozen=True)
class BiEncoderConfig:
    """Sizes and training.

    Attributes:
        vocab_size: of the byte-level BPE that the pairs' texts train.
        dim: of a vector.
        hidden_size: inside the MLP.
        max_tokens: of a text; what lies behind is not read.
        temperature: of the loss.
        symmetric: both directions of the loss.
        learning_rate, weight_decay: of AdamW.
        batch_size: pairs; each has batch_size - 1 wrong answers.
        epochs: over all pairs.
        dropout: of whole tokens, in training.
        seed: of weights and order.

    Raises:
        ValueError: for values out of range.
    """

    vocab_size: int = 8192
    dim: int = 256
    hidden_size: int = 512
    max_tokens: int = 256
    temperature: float = 0.05
    symmetric: bool = True
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_size: int = 256
    epochs: int = 20
    dropout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "hidden_size", "max_tokens", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size={self.batch_size} must be at least 2: the others are the wrong answers")
        if not self.temperature > 0 or not self.learning_rate > 0:
            raise ValueError(f"temperature={self.temperature} and learning_rate={self.learning_rate} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be from 0 to below 1")


class BiEncoder(pl.LightningModule):
    """One tower for questions and answers.

    Args:
        tokenizer: of both.
        config: sizes and training.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: BiEncoderConfig) -> None:
        super().__init__()
        self.tokenizer, self.config, self.dim = tokenizer, config, config.dim
        self.embed_tokens = nn.Embedding(len(tokenizer), config.dim)
        nn.init.normal_(self.embed_tokens.weight, std=config.dim**-0.5)
        last = nn.Linear(config.hidden_size, config.dim)
        nn.init.zeros_(last.weight)  # at first a vector is the mean of its tokens', which already says something
        self.mlp = nn.Sequential(nn.Linear(config.dim, config.hidden_size), nn.GELU(), last)

    def forward(
        self, input_ids: Int[Tensor, "batch time"], attention_mask: Int[Tensor, "batch time"]
    ) -> Float[Tensor, "batch dim"]:
        """Vectors of length 1."""
        if self.training and self.config.dropout:
            kept = torch.rand(attention_mask.shape, device=attention_mask.device) >= self.config.dropout
            kept[:, 0] = True  # of a row something is left
            attention_mask = attention_mask * kept
        mean = mean_pool(self.embed_tokens(input_ids), attention_mask)
        return nn.functional.normalize(mean + self.mlp(mean), dim=-1)

    def tokens(self, texts: Sequence[str]) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]:
        """Ids, filled up at the end, and 1 where there is a token. A text without any is one end-of-text token."""
        end = int(self.tokenizer.eos_token_id)
        rows = [ids[: self.config.max_tokens] or [end] for ids in encode_documents(self.tokenizer, texts)]
        return _padded(rows, end)

    @property
    def name(self) -> str:
        """Changes with any weight and with the tokenizer."""
        total = hashlib.sha256(tokenizer_hash(self.tokenizer).encode())
        for values in self.state_dict().values():
            total.update(values.cpu().numpy().tobytes())
        return f"bi-encoder-{total.hexdigest()[:8]}"

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """A vector of length 1 for each text; see `Encoder`."""
        texts, training = as_texts(texts), self.training
        if not texts:
            return empty(self.dim)
        self.eval()
        parts = [self(*(each.to(self.device) for each in self.tokens(texts[start : start + 256]))).cpu()
                 for start in range(0, len(texts), 256)]  # fmt: skip
        self.train(training)
        return torch.cat(parts)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        questions, answers = (self(*side) for side in batch)
        loss = info_nce(questions, answers, self.config.temperature, self.config.symmetric)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(questions))
        return loss

    def configure_optimizers(self) -> Any:
        config, steps = self.config, int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.AdamW(self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def save(self, folder: Path | str) -> None:
        """Write a folder that `load_encoder` reads: safetensors, tokenizer, configuration."""
        folder = Path(folder).expanduser()
        state = {name: values.contiguous() for name, values in self.state_dict().items()}
        write_in_place(folder / WEIGHTS, lambda path: save_file(state, path))
        write_in_place(folder / TOKENIZER, lambda path: self.tokenizer.backend_tokenizer.save(str(path)))
        facts = json.dumps(asdict(self.config), indent=1)
        write_in_place(folder / CONFIG, lambda path: path.write_text(facts, encoding="utf-8"))


def train_bi_encoder(
    questions: Sequence[str], answers: Sequence[str], config: BiEncoderConfig | None = None, callbacks: Any = ()
) -> BiEncoder:
    """An encoder that brings each question near its own answer, in evaluation mode.

    Args:
        questions, answers: pairs in the same order.
        config: sizes and training.
        callbacks: of the Lightning trainer, such as `ProgressLine`.

    Raises:
        ValueError: for sides of unequal length, or fewer pairs than a batch.
    """
    config = config or BiEncoderConfig()
    if len(questions) != len(answers) or len(questions) < config.batch_size:
        raise ValueError(
            f"{len(questions)} questions and {len(answers)} answers: give as many of each, and at least "
            f"batch_size={config.batch_size}"
        )
    quiet()
    tokenizer = train_fast_tokenizer([*questions, *answers], config.vocab_size)
    with torch.random.fork_rng():  # the caller's own draws stay as they are
        torch.manual_seed(config.seed)
        return _fitted(BiEncoder(tokenizer, config), questions, answers, callbacks)


def _fitted(module: BiEncoder, questions: Sequence[str], answers: Sequence[str], callbacks: Any) -> BiEncoder:
    config = module.config
    end = int(module.tokenizer.eos_token_id)
    sides = [
        [ids[: config.max_tokens] or [end] for ids in encode_documents(module.tokenizer, texts)]
        for texts in (questions, answers)
    ]

    def collate(places: list[int]) -> list[tuple[Tensor, Tensor]]:
        return [_padded([side[place] for place in places], end) for side in sides]

    loader: Any = torch.utils.data.DataLoader(
        range(len(questions)), config.batch_size, shuffle=True, drop_last=True, collate_fn=collate  # type: ignore[arg-type]
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=config.epochs, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=list(callbacks), log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, loader)
    return module.eval()


def load(folder: Path) -> BiEncoder:
    """The encoder that `BiEncoder.save` wrote, in evaluation mode.

    Raises:
        ValueError: for a folder that holds none, or one that is damaged.
    """
    try:
        config = BiEncoderConfig(**json.loads((folder / CONFIG).read_text("utf-8")))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / TOKENIZER), eos_token="<|endoftext|>", pad_token="<|pad|>"
        )
        module = BiEncoder(tokenizer, config)
        module.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # odd files raise anything
        raise ValueError(f"{folder} holds no encoder that BiEncoder.save wrote ({str(error)[:150]})") from None
    return module.eval()


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(longest) < lengths[:, None]).long()
