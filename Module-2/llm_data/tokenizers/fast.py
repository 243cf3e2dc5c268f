"""What the course trains with: `PreTrainedTokenizerFast`, whose work is done by the `tokenizers` library.

The tokenisers of `llm_data.tokenizers.bpe` are proved equal to it, and are slower. All functions here keep two rules.
End of text and padding are two tokens, or a model whose loss ignores padding never learns to stop. And the text of a
document is never parsed for special tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm_data.tokenizers.bpe import BYTE_TO_CHAR, ByteLevelBPE
from llm_data.tokenizers.pretokenize import refuse_surrogates
from llm_data.tokenizers.tokenizer_json import END_OF_TEXT, to_json

PAD = "<|pad|>"
MAX_VOCAB = 1 << 22  # the library sets memory aside for each token asked for, and ends the process when there is none


def train_fast_tokenizer(texts: Iterable[str], vocab_size: int, min_frequency: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained by the library: `<|endoftext|>` is id 0, `<|pad|>` 1, the bytes follow, then merges.

    Args:
        texts: documents.
        vocab_size: number of tokens in all; fewer when no pair is left to join.
        min_frequency: a pair must occur this often to be joined.

    Raises:
        ValueError: for a size below the bytes and special tokens or above `MAX_VOCAB`, or a lone surrogate.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be several documents; for one text pass [text]")
    special = [END_OF_TEXT, PAD]
    if vocab_size < len(special) + len(BYTE_TO_CHAR):
        raise ValueError(f"vocab_size={vocab_size} is below 258, the 256 bytes and two special tokens; raise it")
    if vocab_size > MAX_VOCAB:
        raise ValueError(f"vocab_size={vocab_size} is above {MAX_VOCAB:,}; lower it")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(BYTE_TO_CHAR.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_checked(texts), trainer)
    return _wrap(tokenizer)


def character_tokenizer(texts: Iterable[str], special_tokens: bool = True) -> PreTrainedTokenizerFast:
    """One token for each character that occurs in `texts`, in the order of their code points: ids 0, 1, 2, ...

    A character that did not occur is refused by `encode_documents`: text is not lost in silence. Decoding is exact.

    Args:
        texts: all documents that will ever be encoded.
        special_tokens: whether `<|endoftext|>` and `<|pad|>` follow behind the characters.

    Raises:
        ValueError: when there is no character at all, or a lone surrogate.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be several documents; for one text pass [text]")
    found: set[str] = set()
    for text in _checked(texts):
        found.update(text)
    characters = sorted(found)
    if not characters:
        raise ValueError("no character in the texts; there is nothing to make a vocabulary of")
    # `unk_token` must name something; being in no vocabulary, it makes the library raise.
    tokenizer = Tokenizer(models.WordLevel({char: i for i, char in enumerate(characters)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if special_tokens:
        tokenizer.add_special_tokens([END_OF_TEXT, PAD])
    return _wrap(tokenizer)


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        refuse_surrogates(text)
        yield text


def to_fast(tokenizer: ByteLevelBPE) -> PreTrainedTokenizerFast:
    """Our tokeniser, run by the library. `<|endoftext|>` and `<|pad|>` get their roles where they are in it."""
    return _wrap(Tokenizer.from_str(to_json(tokenizer)))


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    roles = {"eos_token": END_OF_TEXT, "pad_token": PAD}
    present = {role: token for role, token in roles.items() if tokenizer.token_to_id(token) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **present)


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each document: nothing appended, nothing cut, and no special token found in the text.

    The library would otherwise turn the letters `<|endoftext|>` inside a document into the end of the text. It encodes
    on all cores; set `TOKENIZERS_PARALLELISM=false` in processes that run side by side.

    Raises:
        ValueError: for a lone surrogate, or a character that the vocabulary cannot spell, with document and place.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be several documents; for one text pass [text]")
    with _plain(tokenizer.backend_tokenizer) as backend:
        try:
            return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception as error:
            _explain(backend, texts, error)
            raise


@contextmanager
def _plain(backend: Tokenizer) -> Iterator[Tokenizer]:
    """Within, nothing is cut or filled up, and no special token is found in a text, whatever was asked for before."""
    state = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield backend
    finally:
        backend.encode_special_tokens = state[0]
        if state[1] is not None:
            backend.enable_truncation(**state[1])
        if state[2] is not None:
            backend.enable_padding(**state[2])


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that `tokenizer(text)` puts before a text's own: Llama's `<s>`, Gemma's `<bos>`; none for the course's.

    A model that always saw them predicts badly without them, so rows to train on and prompts begin with them.

    Raises:
        ValueError: for a tokenizer that can spell no text.
    """
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        with _plain(tokenizer.backend_tokenizer) as backend:
            return _begin(tokenizer, lambda text, special: backend.encode(text, add_special_tokens=special).ids)
    return _begin(tokenizer, lambda text, special: tokenizer(text, add_special_tokens=special)["input_ids"])


def _begin(tokenizer: PreTrainedTokenizerBase, encode: Callable[[str, bool], list[int]]) -> list[int]:
    # Any text will do that the vocabulary can spell; one of characters has perhaps no "a".
    for text in chain(["a"], tokenizer.get_vocab()):
        try:
            own, whole = encode(text, False), encode(text, True)
        except Exception:  # the library's own, for a text that it cannot spell
            continue
        for start in range(len(whole) if own else 0):
            if whole[start : start + len(own)] == own:
                return whole[:start]
    raise ValueError("the tokenizer can spell no text, not even its own tokens; it is damaged")


def vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id that the tokenizer can give, added tokens included: the rows that an embedding
    needs. Ids may have gaps, so it can be more than `len(tokenizer)`.

    Raises:
        ValueError: for two tokens of one id: into a gap the library may put a new token that is another's already.
    """
    tokens: dict[int, str] = {}
    for token, number in tokenizer.get_vocab().items():
        other = tokens.setdefault(number, token)
        if other != token:
            raise ValueError(
                f"tokens {other!r} and {token!r} share the id {number}; give the tokenizer a pad_token of its own, "
                "with an id that is free"
            )
    return max(tokens, default=-1) + 1


def _explain(backend: Tokenizer, texts: Sequence[str], error: Exception) -> None:
    """Raise the library's error again, with the document and the place."""
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"document {number} is of type {type(text).__name__}, not a str") from None
        try:
            refuse_surrogates(text)
        except ValueError as lone:
            raise ValueError(f"document {number}: {lone}") from None
        if isinstance(backend.model, models.WordLevel):
            for place, char in enumerate(text):
                if backend.model.token_to_id(char) is None:
                    raise ValueError(
                        f"document {number}: character {place}, {char!r}, is not in the vocabulary; "
                        "make the vocabulary from all texts"
                    ) from error


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """A sha256 of everything that decides which ids a text gets, and which end a document: 64 hexadecimal digits.

    The same after saving and loading, in another process, and whatever padding or truncation was last asked for.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    whole["truncation"] = whole["padding"] = None
    whole["roles"] = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
