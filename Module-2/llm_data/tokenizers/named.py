"""From a tokenizer's name to the tokenizer: trained here and kept in the cache, or read from a folder or the hub."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm_data.errors import is_failure, one_line
from llm_data.text.corpora import Corpus
from llm_data.tokenizers.fast import MAX_VOCAB, character_tokenizer, train_fast_tokenizer
from llm_data.whole_files import is_sealed, seal, write_in_place
from llm_data.workspace import locked

SEAL = "complete"


def is_trained_here(name: str) -> bool:
    """Whether the name is one of ours, "char" or "bpe-N", and so needs a corpus."""
    kind, _, size = name.partition("-")
    return name == "char" or (kind == "bpe" and size.isdecimal() and size.isascii())


def trained_tokenizer(name: str, corpus: Corpus, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer "bpe-N" or "char" of a corpus, from its folder; made there first, when it is not there whole.

    Raises:
        ValueError: for a size below the bytes and special tokens.
        CorpusError: when the corpus cannot be read.
        OSError: when the folder cannot be written.
    """
    if not is_sealed(folder / SEAL):
        with locked(folder):
            if not is_sealed(folder / SEAL):  # another process may have made it meanwhile
                if name == "char":  # all documents: a character seen in validation only would have no token
                    made = character_tokenizer(corpus.documents())
                else:
                    made = train_fast_tokenizer(corpus.documents("train"), _size(name))
                _save(made, folder)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


def loaded_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or hub id. Code that lies in the folder is never run.

    Raises:
        ValueError: when nothing there can be loaded, or it has no end of text and padding of its own.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except BaseException as error:  # for a damaged file the library in Rust raises bare ones, or panics
        if not is_failure(error):
            raise
        raise ValueError(
            f"tokenizer {name!r} is neither bpe-N (N tokens, trained here) nor char, and no folder or hub id "
            f"that can be loaded: {one_line(error)}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer {name!r} has no fast version, which tokenising a corpus needs")
    return checked_tokenizer(tokenizer)


def checked_tokenizer(tokenizer: Any) -> PreTrainedTokenizerFast:
    """The tokenizer, when it can end documents and fill up rows.

    Raises:
        ValueError: when it is no fast tokenizer, or its end-of-text and padding tokens are missing or the same.
    """
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


def _size(name: str) -> int:
    digits = name.partition("-")[2]
    if len(digits) > 9:  # thousands of digits would not even become a number
        raise ValueError(f"tokenizer {name[:40]!r}: a vocabulary has at most {MAX_VOCAB:,} tokens; lower it")
    return int(digits)


def _save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files, each in one step, and their checksums last."""
    aside = folder / f".{os.getpid()}"
    try:
        try:
            tokenizer.save_pretrained(aside)
        except Exception as error:  # the library in Rust raises bare exceptions when a disk is full
            raise OSError(
                f"{folder / 'tokenizer.json'} cannot be written ({one_line(error)}); make room there, or choose "
                "another folder"
            ) from None
        files = sorted(aside.iterdir())
        for file in files:
            write_in_place(folder / file.name, lambda path, file=file: shutil.copyfile(file, path))  # type: ignore[misc]
        seal(folder / SEAL, [folder / file.name for file in files])
    finally:
        shutil.rmtree(aside, ignore_errors=True)
