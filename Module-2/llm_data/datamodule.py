"""`LLMDataModule`: from the name of a corpus to batches, for Lightning's Trainer or without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm_data.cache import cache_folder, digest, locked
from llm_data.corpora import SPLITS, Corpus, Split, load_corpus
from llm_data.fast_tokenizer import character_tokenizer, tokenizer_hash, train_fast_tokenizer
from llm_data.loader import StatefulLoader
from llm_data.packing import PACKINGS, Packing
from llm_data.row_table import RowTable, build_table, table_folder
from llm_data.shards import build_shards
from llm_data.token_shards import TokenShards


class LLMDataModule(pl.LightningDataModule):
    """Batches of a corpus for a causal language model.

    `prepare_data` (one process a node) trains the tokenizer if it has to, and tokenises the corpus into shards in the
    course's cache; done once, it is only checked. `setup` (every process) maps the shards and plans the rows. The
    training loader's position travels in Lightning's checkpoints, so a resumed run goes on with the next batch.

    Args:
        corpus: a name for `load_corpus`, or a `Corpus`.
        tokenizer: "bpe-N" trains a byte-level BPE of N tokens on the training documents, "char" takes one token a
            character; anything else is a folder or hub id for `AutoTokenizer`. Or a fast tokenizer. It needs an
            end-of-text token and another one for padding.
        context: the most tokens of a row.
        batch_size: rows of a batch, for each process.
        packing: one of `llm_data.packing.PACKINGS`.
        num_workers: processes that prepare batches ahead. Reading memory-mapped tokens needs none.
        seed: of the documents' layout and of each epoch's order.
        val_percent, test_percent: share of the documents; a share of 0 leaves that side out. A `Corpus` brings its own.
        drop_last: leave out a training epoch's last step when it is not full.
        errors: for `text:` corpora with bytes that are not UTF-8: "strict" or "replace".
        cache: folder for tokenizers and shards; `llm_data.cache.cache_folder()` by default.
        progress: whether to show a progress line while tokenising.

    Raises:
        ValueError: for numbers and names that cannot be; when the tokenizer comes to be known (in `setup` at the
            latest) also for one whose end-of-text and padding tokens are missing or the same.
    """

    def __init__(
        self,
        corpus: str | Corpus = "python-functions",
        tokenizer: str | PreTrainedTokenizerFast = "bpe-4096",
        context: int = 256,
        batch_size: int = 32,
        packing: Packing = "best_fit",
        num_workers: int = 0,
        seed: int = 0,
        *,
        val_percent: float | int = 5.0,
        test_percent: float | int = 5.0,
        drop_last: bool = False,
        errors: Literal["strict", "replace"] = "strict",
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if packing not in PACKINGS:
            raise ValueError(f"packing={packing!r}: choose one of {', '.join(PACKINGS)}")
        for name, value, least in (
            ("context", context, 2), ("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)
        ):  # fmt: skip
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number and at least {least}")
        if not isinstance(corpus, (str, Corpus)):
            raise ValueError(f"corpus={corpus!r}: give a name or a Corpus; for files write 'text:{corpus}'")
        self.corpus_name = corpus if isinstance(corpus, str) else corpus.name
        self.context = context
        self.batch_size = batch_size
        self.packing: Packing = packing
        self.num_workers = num_workers
        self.seed = seed
        self.drop_last = drop_last
        self._given_corpus = corpus
        if isinstance(corpus, Corpus):
            val_percent, test_percent = corpus.val_percent, corpus.test_percent
        self._shares = {"val_percent": val_percent, "test_percent": test_percent}
        self._errors = errors
        self._wanted_tokenizer = tokenizer
        self._cache = cache
        self._progress = progress
        self._tokens: dict[Split, TokenShards] = {}
        self._tables: dict[Split, RowTable] = {}
        self._tokenizer: PreTrainedTokenizerFast | None = None
        self._train_loader: StatefulLoader | None = None
        self._position: dict[str, Any] | None = None
        if not isinstance(tokenizer, str):
            _check_tokenizer(tokenizer)

    # -- Lightning's hooks --------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Make whatever is missing on disk: the tokenizer, and the shards of each side. Assigns nothing."""
        corpus = self._corpus()
        tokenizer = self._make_tokenizer(corpus)
        for split in self._sides():
            folder = self._folder(tokenizer, split)
            built = build_shards(corpus, split, tokenizer, folder, progress=self._progress)
            if self._progress:
                print(built)
            tokens = TokenShards(folder, verify=False)  # build_shards has just verified them
            build_table(tokens, folder / "rows", self.context, self.packing, self.seed, tokenizer.pad_token_id)

    def setup(self, stage: str | None = None) -> None:
        """Map the shards that `stage` needs: "fit" training and validation, "validate", "test", or None for all.

        Raises:
            ShardError: when `prepare_data` was not called before, or a shard is damaged.
        """
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: SPLITS}
        if stage not in wanted:
            raise ValueError(f"stage {stage!r}: choose fit, validate, test, or None for all")
        self._tokenizer = self._make_tokenizer(self._corpus())
        for split in self._sides():
            if split in wanted[stage]:
                # prepare_data has verified the checksums in one process; the others must not read it all again.
                folder = self._folder(self._tokenizer, split)
                tokens = self._tokens[split] = TokenShards(folder, verify=False)
                pad_id = self._tokenizer.pad_token_id
                self._tables[split] = RowTable(
                    table_folder(folder / "rows", tokens.manifest, self.context, self.packing, self.seed, pad_id)
                )

    def train_dataloader(self) -> StatefulLoader:
        """Training batches, in a new order each epoch, from where a restored state left off.

        Asked again under a Trainer (`reload_dataloaders_every_n_epochs`, a second `fit`), the new loader goes on where
        the old one is. With `overfit_batches` the order is fixed, and each epoch begins at its first row.
        """
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        loader = self._loader("train", shuffle=not overfit)
        if self._position is not None:
            loader.load_state_dict(self._position)
        elif self.trainer is not None and self._train_loader is not None and loader.continues(self._train_loader):
            loader.load_state_dict(self._train_loader.state_dict())
        self._position, self._train_loader = None, loader
        return loader

    def val_dataloader(self) -> StatefulLoader | list[StatefulLoader]:
        """Validation batches, always in the same order; an empty list with `val_percent=0`."""
        return self._loader("val", shuffle=False) if "val" in self._sides() else []

    def test_dataloader(self) -> StatefulLoader | list[StatefulLoader]:
        """Test batches, always in the same order; an empty list with `test_percent=0`."""
        return self._loader("test", shuffle=False) if "test" in self._sides() else []

    def state_dict(self) -> dict[str, Any]:
        """The training loader's position, the same on every rank."""
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position for the training loader: the one that is there, or the next one to be made."""
        position = state_dict.get("train")
        if self._train_loader is not None and position is not None:
            self._train_loader.load_state_dict(position)
        self._position = position

    def __str__(self) -> str:
        # Lightning's own asks the loaders for the sizes of data sets, and a loader of ours has none.
        return (
            f"LLMDataModule({self.corpus_name!r}, context={self.context}, batch_size={self.batch_size}, "
            f"packing={self.packing!r})"
        )

    # -- what a model needs to know -----------------------------------------------------------------------------

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer; there after `setup`."""
        if self._tokenizer is None:
            raise RuntimeError("the tokenizer is not there yet; call prepare_data() and setup() first")
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids: one more than the largest that a batch can hold."""
        return len(self.tokenizer)

    def tokens(self, split: Split) -> TokenShards:
        """The token ids of one side; there after `setup`."""
        if split not in self._tokens:
            raise RuntimeError(f"the {split} tokens are not there; call prepare_data() and setup() first")
        return self._tokens[split]

    def rows(self, split: Split) -> RowTable:
        """The rows of one side, as the loaders read them; there after `setup`."""
        if split not in self._tables:
            raise RuntimeError(f"the {split} rows are not there; call prepare_data() and setup() first")
        return self._tables[split]

    def bytes_per_token(self, split: Split) -> float:
        """Bytes of UTF-8 text for each token, end-of-text ids counted: what turns a loss into bits per byte."""
        manifest = self.tokens(split).manifest
        return manifest.text_bytes / manifest.tokens

    # -- parts --------------------------------------------------------------------------------------------------

    def _corpus(self) -> Corpus:
        if isinstance(self._given_corpus, Corpus):
            return self._given_corpus
        return load_corpus(self._given_corpus, errors=self._errors, **self._shares)

    def _sides(self) -> list[Split]:
        return [split for split in SPLITS if self._shares.get(f"{split}_percent", 1)]

    def _root(self) -> Path:
        return cache_folder() if self._cache is None else Path(self._cache)

    def _folder(self, tokenizer: PreTrainedTokenizerFast, split: Split) -> Path:
        shares = digest(self.corpus_name, self._errors, sorted(self._shares.items()))[:8]
        slug = "".join(letter if letter.isalnum() else "-" for letter in self.corpus_name)[-40:]
        return self._root() / "shards" / f"{slug}-{shares}-{tokenizer_hash(tokenizer)[:8]}" / split

    def _make_tokenizer(self, corpus: Corpus) -> PreTrainedTokenizerFast:
        wanted = self._wanted_tokenizer
        if not isinstance(wanted, str):
            return wanted
        kind, _, size = wanted.partition("-")
        if not (wanted == "char" or (kind == "bpe" and size.isdigit())):
            try:
                tokenizer = AutoTokenizer.from_pretrained(wanted)
            except (OSError, ValueError) as error:
                reason = str(error).split("\n")[0][:120]
                raise ValueError(
                    f"tokenizer {wanted!r} is neither bpe-N (N tokens, trained here) nor char, and no folder or hub id "
                    f"that can be loaded: {reason}"
                ) from error
            if not isinstance(tokenizer, PreTrainedTokenizerFast):
                raise ValueError(f"tokenizer {wanted!r} has no fast version, which tokenising a corpus needs")
            return _check_tokenizer(tokenizer)
        name = digest(corpus.name, corpus.fingerprint, sorted(self._shares.items()))
        folder = self._root() / "tokenizers" / f"{wanted}-{name}"
        if not (folder / "complete").exists():
            with locked(folder):
                if not (folder / "complete").exists():  # another process may have made it meanwhile
                    if kind == "char":  # all documents: a character seen in validation only would have no token
                        made = character_tokenizer(corpus.documents())
                    else:
                        made = train_fast_tokenizer(corpus.documents("train"), int(size))
                    made.save_pretrained(folder)
                    (folder / "complete").touch()
        loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        return loaded

    def _loader(self, split: Split, shuffle: bool) -> StatefulLoader:
        # Under tensor parallelism several processes share one rank of the data; Lightning knows which.
        place: dict[str, Any] = {"num_replicas": 1, "rank": 0}
        if self.trainer is not None and self.trainer.distributed_sampler_kwargs is not None:
            place = self.trainer.distributed_sampler_kwargs
        return StatefulLoader(
            self.rows(split),
            self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=place["rank"],
            world_size=place["num_replicas"],
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            drop_last=self.drop_last and split == "train",
        )


def _check_tokenizer(tokenizer: Any) -> PreTrainedTokenizerFast:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer must be a name or a PreTrainedTokenizerFast, not {type(tokenizer).__name__}")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token; set tokenizer.eos_token to the one that ends a text")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"pad_token is {tokenizer.pad_token!r} and eos_token {tokenizer.eos_token!r}; they must be "
            'two tokens, or the model never learns to stop; tokenizer.add_special_tokens({"pad_token": "<|pad|>"})'
        )
    return tokenizer
