"""The trainings that lessons call, each one line: a tower that sees, a language model that writes, a projector between.

Every function is given a recipe and gives back what it trained, in evaluation mode; long ones are kept in the cache.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_data.whole_files import write_in_place
from llm_data.workspace import cache_folder, digest, locked
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from course.lightning_tools import ProgressLine, quiet
from llm_vision.config import VisionConfig
from llm_vision.data import Pictures, Table, batches, image_token, joined, rows, word_tokenizer
from llm_vision.drawn.shapes import ATTRIBUTES, KINDS, combinations
from llm_vision.reader import PictureReader
from llm_vision.training import CLIPTrainer, PictureModule, ReaderModule, VisionClassifier
from llm_vision.vit import ViT

CODE = ("recipes", "training", "reader", "language", "projector", "contrastive", "vit", "patches", "config", "data",
        "drawn/shapes")  # fmt: skip
# Pooled by the mean: every patch of the last block then learns. A class token would read those of the block before.
VISION = VisionConfig(
    image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, intermediate_size=128, initializer_range=0.1,
    class_token=False,
)  # fmt: skip
IMAGE_TOKENS = VISION.num_patches


@dataclass(frozen=True)
class Run:
    """How long, how fast, in which order.

    Args:
        steps: of training.
        batch_size: rows of each.
        learning_rate: at its highest.
        seed: of first weights and order.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


SEEING = Run(1_500, 32, 4e-3)
PAIRING = Run(1_000, 64, 2e-3)
WRITING = Run(300, 32, 4e-3)
PROJECTING = Run(600, 32, 6e-3)


def fit(module: PictureModule, table: Table, run: Run, label: str = "training") -> list[float]:
    """Train a module on a table on the CPU, and give back the loss of each step, in nats."""
    quiet()
    losses: list[float] = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    loader = batches(table, run.batch_size, run.seed)
    trainer = pl.Trainer(
        max_steps=run.steps, accelerator="cpu", devices=1, gradient_clip_val=1.0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[Keep(), ProgressLine(label)],
    )  # fmt: skip
    with warnings.catch_warnings():  # frozen parts are in evaluation mode, and are meant to be
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        trainer.fit(module.train(), loader)
    module.eval()
    return losses


def kept(name: str, modules: dict[str, nn.Module], parts: Sequence[object], train: Callable[[], list[float]]) -> None:
    """Fill modules with weights of the cache; where it has none, train them first. The key holds the recipe and the
    code behind it, so that another one is trained anew."""
    code = [(Path(__file__).parent / f"{each}.py").read_text("utf-8") for each in CODE]
    folder = cache_folder() / "models" / f"{name}-{digest(*parts, code)}"
    path = folder / "weights.safetensors"
    with locked(folder):
        if not path.is_file():
            train()
            weights = {
                f"{part}/{each}": values.detach().clone().contiguous()  # safetensors keeps no shared memory
                for part, module in modules.items() for each, values in module.state_dict().items()
            }  # fmt: skip
            write_in_place(path, lambda unfinished: save_file(weights, unfinished))
    found = load_file(path)
    for part, module in modules.items():
        own = {name.removeprefix(f"{part}/"): values for name, values in found.items() if name.startswith(f"{part}/")}
        module.load_state_dict(own)
        module.eval()


def pretrain_vision(pictures: Pictures, run: Run = SEEING, config: VisionConfig = VISION) -> VisionClassifier:
    """A tower that names the attributes of drawn shapes; its `vision` is what a reader takes.

    Args:
        pictures: to learn from, with `classes`.
        run: how long.
        config: of the tower.
    """
    pl.seed_everything(run.seed, verbose=False)
    classes = [len(known) for known in ATTRIBUTES.values()]
    module = VisionClassifier(ViT(config), classes, learning_rate=run.learning_rate)
    table = Table(pixel_values=pictures.pixel_values, classes=pictures.classes)
    parts = ("vision", run, config, pictures.captions, float(pictures.pixel_values.double().sum()))
    kept("vision", {"classifier": module}, parts, lambda: fit(module, table, run, "vision"))
    return module


def pretrain_pairs(
    pictures: Pictures, tokenizer: PreTrainedTokenizerFast, run: Run = PAIRING, config: VisionConfig = VISION,
    kind: str = "clip",
) -> CLIPTrainer:  # fmt: skip
    """A tower and a text tower that bring pictures and captions together; no class is ever named.

    Args:
        pictures: to learn from, with `captions`.
        tokenizer: of the captions.
        run, config: as for `pretrain_vision`.
        kind: "clip" or "siglip".
    """
    pl.seed_everything(run.seed, verbose=False)
    module = CLIPTrainer(ViT(config), GPT(_language_config(tokenizer)), kind=kind, learning_rate=run.learning_rate)
    made = rows(tokenizer, pictures.captions, 0)
    table = Table(
        pixel_values=pictures.pixel_values, input_ids=made["input_ids"], attention_mask=made["attention_mask"]
    )
    parts = ("pairs", run, config, kind, pictures.captions, float(pictures.pixel_values.double().sum()))
    kept("pairs", {"pairs": module}, parts, lambda: fit(module, table, run, kind))
    return module


def shape_words() -> PreTrainedTokenizerFast:
    """The tokenizer of all captions of drawn shapes."""
    return word_tokenizer(spec.caption for kind in KINDS for spec in combinations(kind))


def facts(captions: Sequence[str], number: int, seed: int) -> list[str]:
    """For each caption its own words of content, in any order, each at least once, filled up to `number` words.

    A text of this kind is what a language model learns to turn into a sentence; a picture's tokens then have to say
    such words, and the language model is never trained on a picture.
    """
    dice, made = random.Random(seed), list[str]()
    for caption in captions:
        words = [word for word in caption.split() if word not in ("a", "at", "in", "the")]
        chosen = words + dice.choices(words, k=number - len(words))
        dice.shuffle(chosen)
        made.append(" ".join(chosen))
    return made


def _language_config(tokenizer: PreTrainedTokenizerFast) -> GPTConfig:
    return GPTConfig(
        len(tokenizer), 96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        initializer_range=0.06,
    )  # fmt: skip


class TextModule(PictureModule):
    """A `GPT` on rows of text, with the loss of their answers."""

    def __init__(self, model: GPT, **options: Any) -> None:
        super().__init__(**options)
        self.model = model

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        loss = self.model(**batch).loss
        assert loss is not None  # the batch has labels
        return loss


def pretrain_language(
    tokenizer: PreTrainedTokenizerFast, run: Run = WRITING, words: int = IMAGE_TOKENS, number: int = 10_000
) -> GPT:
    """A language model that turns words into the sentence that says them. It reads text only, of seen combinations
    *and* unseen ones: it knows that a blue circle may be, as any language model does; it has never seen one.

    Args:
        tokenizer: of `shape_words`.
        run: how long.
        words: in a row before the sentence.
        number: of sentences.
    """
    pl.seed_everything(run.seed, verbose=False)
    model = GPT(_language_config(tokenizer))
    every = [spec.caption for kind in KINDS for spec in combinations(kind)]
    captions = random.Random(run.seed).choices(every, k=number)
    made = rows(tokenizer, captions, 0, facts(captions, words, run.seed))
    module = TextModule(model, learning_rate=run.learning_rate)
    parts = ("language", run, words, number, len(tokenizer))
    kept("language", {"model": model}, parts, lambda: fit(module, Table(**made), run, "language"))
    return model


def train_projector(
    vision: ViT, language_model: nn.Module, tokenizer: PreTrainedTokenizerFast, pictures: Pictures,
    run: Run = PROJECTING, feature_layer: int = -1, frozen: Sequence[str] = ("vision", "language"),
) -> tuple[ReaderModule, list[float]]:  # fmt: skip
    """A reader of which only what is not frozen learns to caption pictures; not kept in the cache.

    Args:
        vision, language_model: the halves, trained.
        tokenizer: of the language model.
        pictures: to learn from, with `captions`.
        run: how long.
        feature_layer: of the tower.
        frozen: parts that stay as they are.

    Returns:
        The module, whose `reader` reads, and the loss of each step in nats.
    """
    pl.seed_everything(run.seed, verbose=False)
    reader = PictureReader(vision, language_model, image_token(tokenizer), feature_layer)
    module = ReaderModule(reader, frozen, learning_rate=run.learning_rate)
    table = joined(pictures, rows(tokenizer, pictures.captions, reader.tokens_per_image))
    return module, fit(module, table, run, "projector")
