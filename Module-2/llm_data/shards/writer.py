"""A corpus tokenised once, into files that every later run maps into memory.

A split's documents, in the corpus's order, fill shards of about `SHARD_CHARACTERS` each. A shard is two NumPy files:
the token ids of its documents, each begun as the tokenizer begins a text (Llama's: `<s>`) and closed by the
end-of-text id, and the documents' lengths. The manifest
holds, for each shard, the hash of the text that went in and the checksum of the files that came out. So a run that was
interrupted goes on at the first missing shard, a corpus that grew costs only what is new, and a damaged file is found
before a token of it is read.
"""

from __future__ import annotations

import copy
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from transformers import PreTrainedTokenizerFast

from course.hardware import cores
from course.progress import Line
from llm_data.shards.manifest import Built, Manifest, Shard, ShardError, is_whole, shard_paths
from llm_data.text.corpora import Corpus, Split
from llm_data.tokenizers.fast import begin_ids, encode_documents, tokenizer_hash, vocab_size
from llm_data.tokenizers.parallelism import tokenizers_in_one_thread
from llm_data.whole_files import checksum, write_in_place
from llm_data.workspace import locked

SHARD_CHARACTERS = 4_000_000
# The library's encodings cost some 65 bytes a token until they are copied out: small portions keep that small.
PORTION_CHARACTERS = 200_000


def build_shards(
    corpus: Corpus,
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path | str,
    *,
    num_workers: int | None = None,
    shard_characters: int = SHARD_CHARACTERS,
    progress: bool = True,
) -> Built:
    """Tokenise one split of a corpus into `folder`; what is there already, and whole, is kept.

    The workers are threads: the library tokenises outside Python's lock, so they run in parallel without copies of
    text between processes. At most `num_workers + 1` shards are in memory. Two processes may call this at once on one
    folder: the second waits.

    Args:
        corpus, split: what to tokenise.
        tokenizer: a fast tokenizer with an end-of-text token (`eos_token`).
        folder: where the files go; one corpus, split and tokenizer a folder.
        num_workers: threads that tokenise; one a core by default.
        shard_characters: text of one shard, in characters; a document is never divided.
        progress: whether to show a progress line.

    Raises:
        CorpusError: when the split holds no document, or its text cannot be read.
        ShardError: when the folder holds another corpus, or another side of it.
        ValueError: for a tokenizer without an end-of-text token, and numbers below 1.
        OSError: when a file cannot be written; what was written before is kept.
    """
    workers = cores() if num_workers is None else num_workers
    if workers < 1 or shard_characters < 1:
        raise ValueError(f"num_workers={workers} and shard_characters={shard_characters} must be at least 1")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token; documents need one at their end: set tokenizer.eos_token")
    folder = Path(folder)
    size = vocab_size(tokenizer)
    empty = Manifest(
        corpus=corpus.name,
        split=split,
        fingerprint=digest_of(corpus, shard_characters),
        tokenizer_sha256=tokenizer_hash(tokenizer),
        end_of_text=tokenizer.eos_token_id,
        vocab_size=size,
        dtype="uint16" if size <= 2**16 else "uint32",
        complete=False,
        begin_of_text=begin_ids(tokenizer),
    )
    found = _complete(folder, empty)
    if found is not None:  # without a lock: a finished folder may be read-only
        return found
    with locked(folder):
        found = _complete(folder, empty)  # another process may have made it meanwhile
        if found is not None:
            return found
        before = Manifest.read(folder)
        if before is not None and before.tokenizer_sha256 != empty.tokenizer_sha256:
            before = None
        known = {shard.name: shard for shard in before.shards} if before else {}
        damaged = {name for name, shard in known.items() if not is_whole(folder, shard)}
        return _build(corpus, split, tokenizer, folder, empty, known, damaged, workers, shard_characters, progress)


def _complete(folder: Path, wanted: Manifest) -> Built | None:
    """What is in the folder, when it is all that is wanted, and whole."""
    found = Manifest.read(folder)
    if found is None:
        return None
    if (found.corpus, found.split) != (wanted.corpus, wanted.split):
        raise ShardError(
            f"{folder} holds {found.corpus}, {found.split}; {wanted.corpus}, {wanted.split} needs a folder of its own"
        )
    same = (found.tokenizer_sha256, found.fingerprint) == (wanted.tokenizer_sha256, wanted.fingerprint)
    if found.complete and same and all(is_whole(folder, shard) for shard in found.shards):
        return Built(found, (), tuple(shard.name for shard in found.shards), ())
    return None


def _build(
    corpus: Corpus,
    split: Split,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    manifest: Manifest,
    known: dict[str, Shard],
    damaged: set[str],
    workers: int,
    shard_characters: int,
    progress: bool,
) -> Built:
    shards: list[Shard] = []
    written: list[str] = []
    # Shards of the earlier run that this one has not come to yet stay listed: interrupted again, nothing is lost.
    later = dict(known)
    documents_done = 0
    line = Line(f"tokenising {corpus.name}, {split}: documents") if progress else None

    def take(future: Future[Shard]) -> None:
        nonlocal documents_done
        shard = future.result()
        shards.append(shard)
        documents_done += shard.documents
        later.pop(shard.name, None)
        if line:
            line.update(documents_done)
        # A manifest names all shards: written after each of many, it would cost the square of their number.
        if len(shards) % (1 + len(shards) // 50) == 0:
            listed = [*shards, *(shard for name, shard in later.items() if name not in damaged)]
            replace(manifest, shards=listed).write(folder)

    # Encoding sets flags on a tokenizer, so each thread takes one of its own for the time of a shard.
    tokenizers = SimpleQueue[PreTrainedTokenizerFast]()
    for _ in range(workers):
        tokenizers.put(copy.deepcopy(tokenizer))

    def write(name: str, documents: list[str], text_sha256: str) -> Shard:
        own = tokenizers.get()
        try:
            return _write_shard(folder, name, documents, text_sha256, own, manifest)
        finally:
            tokenizers.put(own)

    with tokenizers_in_one_thread(), ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Shard]] = deque()
        try:
            for number, documents in enumerate(_portions(corpus.documents(split), shard_characters)):
                name = f"{split}-{number:05d}"
                text_sha256 = _text_hash(documents)
                old = known.get(name)
                if old is not None and name not in damaged and old.text_sha256 == text_sha256:
                    done: Future[Shard] = Future()
                    done.set_result(old)
                    pending.append(done)
                else:
                    written.append(name)
                    pending.append(pool.submit(write, name, documents, text_sha256))
                while len(pending) > workers:
                    take(pending.popleft())
            while pending:
                take(pending.popleft())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            if line:
                line.close()
    complete = replace(manifest, shards=shards, complete=True)
    complete.write(folder)
    _remove_strays(folder, {shard.name for shard in shards})
    kept = tuple(shard.name for shard in shards if shard.name not in written)
    return Built(complete, tuple(written), kept, tuple(sorted(damaged)))


def digest_of(corpus: Corpus, shard_characters: int) -> str:
    """Changes when the shards of a corpus may have to change."""
    parts = (corpus.fingerprint, corpus.val_percent, corpus.test_percent, shard_characters)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _write_shard(
    folder: Path,
    name: str,
    documents: list[str],
    text_sha256: str,
    tokenizer: PreTrainedTokenizerFast,
    manifest: Manifest,
) -> Shard:
    tokens: list[np.ndarray] = []
    lengths: list[int] = []
    for portion in _portions(documents, PORTION_CHARACTERS):
        for ids in encode_documents(tokenizer, portion):
            whole = [*manifest.begin_of_text, *ids, manifest.end_of_text]
            tokens.append(np.array(whole, dtype=manifest.dtype))
            lengths.append(len(whole))
    paths = shard_paths(folder, name)
    arrays: tuple[np.ndarray, np.ndarray] = (np.concatenate(tokens), np.array(lengths, dtype=np.uint32))
    for path, array in zip(paths, arrays, strict=True):
        write_in_place(path, lambda unfinished, array=array: _save(unfinished, array))  # type: ignore[misc]
    return Shard(
        name=name,
        documents=len(lengths),
        tokens=int(sum(lengths)),
        text_bytes=sum(len(document.encode("utf-8", "surrogatepass")) for document in documents),
        text_sha256=text_sha256,
        sha256=checksum(paths),
    )


def _portions(documents: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Consecutive documents, until they reach so many characters."""
    portion: list[str] = []
    size = 0
    for document in documents:
        portion.append(document)
        size += len(document)
        if size >= characters:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _text_hash(documents: list[str]) -> str:
    total = hashlib.sha256()
    for document in documents:
        data = document.encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "big") + data)  # with the length, no two lists give the same bytes
    return total.hexdigest()


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _remove_strays(folder: Path, names: set[str]) -> None:
    """Delete shards of an earlier, longer set, and what a killed run left unfinished."""
    for path in folder.iterdir():
        unfinished = path.name.startswith(".")
        if unfinished or (path.suffix == ".npy" and path.name.split(".")[0] not in names):
            path.unlink()
