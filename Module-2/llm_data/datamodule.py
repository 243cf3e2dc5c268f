"""`LLMDataModule`: from the name of a corpus to batches, for Lightning's Trainer or without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from llm_data.rows.module import RowsDataModule, refuse_numbers
from llm_data.rows.packing import PACKINGS, Packing
from llm_data.rows.table import RowTable, build_table, table_folder
from llm_data.shards.reader import TokenShards
from llm_data.shards.writer import build_shards
from llm_data.split_record import refuse_leaks, split_record
from llm_data.text.corpora import SPLITS, Corpus, Split, load_corpus
from llm_data.tokenizers.fast import tokenizer_hash, vocab_size
from llm_data.tokenizers.named import checked_tokenizer, is_trained_here, loaded_tokenizer, trained_tokenizer
from llm_data.workspace import cache_folder, digest


class LLMDataModule(RowsDataModule):
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
        packing: one of `llm_data.rows.packing.PACKINGS`.
        num_workers: processes that prepare batches ahead. Reading memory-mapped tokens needs none.
        seed: of the documents' layout and of each epoch's order.
        val_percent, test_percent: share of the documents; a share of 0 leaves that side out. A `Corpus` brings its own.
        drop_last: leave out a training epoch's last step when it is not full.
        errors: for `text:` corpora with bytes that are not UTF-8: "strict" or "replace".
        cache: folder for tokenizers and shards; `llm_data.workspace.cache_folder()` by default.
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
        val_percent: float = 5.0,
        test_percent: float = 5.0,
        drop_last: bool = False,
        errors: Literal["strict", "replace"] = "strict",
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        if packing not in PACKINGS:
            raise ValueError(f"packing={packing!r}: choose one of {', '.join(PACKINGS)}")
        refuse_numbers(context, batch_size, num_workers, seed)
        if not isinstance(corpus, (str, Corpus)):
            raise ValueError(f"corpus={corpus!r}: give a name or a Corpus; for files write 'text:{corpus}'")
        super().__init__(batch_size, num_workers, seed, drop_last)
        self.corpus_name = corpus if isinstance(corpus, str) else corpus.name
        self.context = context
        self.packing: Packing = packing
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
        self._split: dict[str, Any] | None = None
        self._trained_split: Any = None  # of the run whose state was loaded
        if not isinstance(tokenizer, str):
            checked_tokenizer(tokenizer)

    # -- Lightning's hooks --------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Make whatever is missing on disk, or damaged: the tokenizer, and the shards of each side. Assigns nothing.

        Raises:
            CorpusError: when the corpus cannot be read, or a side of it is empty.
            ValueError: for a tokenizer that cannot be loaded, and for a context longer than all text to train on.
            OSError: when the cache cannot be written.
        """
        corpus = self._corpus()
        tokenizer = self._make_tokenizer(corpus)
        for split in self.sides():
            folder = self._folder(tokenizer, split)
            built = build_shards(corpus, split, tokenizer, folder, progress=self._progress)
            if self._progress:
                print(built)
            tokens = TokenShards(folder, verify=False)  # build_shards has just verified them
            if split == "train" and self.context > tokens.manifest.tokens:
                raise ValueError(
                    f"context={self.context} and {self.corpus_name} has {tokens.manifest.tokens:,} tokens to train on; "
                    "lower context, or take more text"
                )
            build_table(tokens, folder / "rows", self.context, self.packing, self.seed, tokenizer.pad_token_id)

    def setup(self, stage: str | None = None) -> None:
        """Map the shards that `stage` needs: "fit" training and validation, "validate", "test", or None for all.

        Raises:
            ShardError: when `prepare_data` was not called before, or a shard is damaged.
            ValueError: when a state was loaded before whose run trained on documents of a side that is set up.
        """
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: SPLITS}
        if stage not in wanted:
            raise ValueError(f"stage {stage!r}: choose fit, validate, test, or None for all")
        corpus = self._corpus()
        self._tokenizer = self._make_tokenizer(corpus)
        self._split = split_record(corpus)
        for split in self.sides():
            if split in wanted[stage]:
                # prepare_data has verified the checksums in one process; the others must not read it all again.
                folder = self._folder(self._tokenizer, split)
                tokens = self._tokens[split] = TokenShards(folder, verify=False)
                pad_id = self._tokenizer.pad_token_id
                self._tables[split] = RowTable(
                    table_folder(folder / "rows", tokens.manifest, self.context, self.packing, self.seed, pad_id)
                )
        refuse_leaks(self._trained_split, self._split, list(self._tables))

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank: "train", the training loader's position, where there is such a loader, and "split",
        which documents the training side was (see `llm_data.split_record`), after `setup`."""
        state = super().state_dict()
        return state if self._split is None else {**state, "split": self._split}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position for the training loader: the one that is there, or the next one to be made.

        Raises:
            ValueError: when the run that saved the state trained on documents of a side that is set up here, or its
                rows were other rows.
        """
        self._trained_split = state_dict.get("split")
        if self._split is not None:
            refuse_leaks(self._trained_split, self._split, list(self._tables))
        super().load_state_dict(state_dict)

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
        return vocab_size(self.tokenizer)

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
        """Bytes of UTF-8 text for each token that is predicted, end-of-text ids counted and begin-of-text ids not: what
        turns a loss into bits per byte."""
        manifest = self.tokens(split).manifest
        return manifest.text_bytes / manifest.text_tokens

    # -- parts --------------------------------------------------------------------------------------------------

    def _corpus(self) -> Corpus:
        if isinstance(self._given_corpus, Corpus):
            return self._given_corpus
        return load_corpus(self._given_corpus, errors=self._errors, **self._shares)

    def sides(self) -> list[Split]:
        """The sides that have documents."""
        return [split for split in SPLITS if self._shares.get(f"{split}_percent", 1)]

    def _root(self) -> Path:
        return cache_folder() if self._cache is None else Path(self._cache).expanduser()

    def _folder(self, tokenizer: PreTrainedTokenizerFast, split: Split) -> Path:
        name = self.corpus_name
        # Two projects may both have a `text:input.txt`; so the folder's name says where it lies.
        place = os.path.realpath(Path(name[5:]).expanduser()) if name.startswith("text:") else ""
        shares = digest(name, place, self._errors, sorted(self._shares.items()))[:8]
        slug = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)[-40:]
        return self._root() / "shards" / f"{slug}-{shares}-{tokenizer_hash(tokenizer)[:8]}" / split

    def _make_tokenizer(self, corpus: Corpus) -> PreTrainedTokenizerFast:
        wanted = self._wanted_tokenizer
        if not isinstance(wanted, str):
            return wanted
        if not is_trained_here(wanted):
            return loaded_tokenizer(wanted)
        # Not the path of `text:` files: a moved project, or a second one of the same text, has the same tokenizer.
        kind = "text:" if corpus.name.startswith("text:") else corpus.name
        name = digest(kind, corpus.fingerprint, sorted(self._shares.items()))
        return trained_tokenizer(wanted, corpus, self._root() / "tokenizers" / f"{wanted[:40]}-{name}")
