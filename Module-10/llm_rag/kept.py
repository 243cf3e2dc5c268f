"""What took minutes and is needed again, in the course's cache: vectors of texts, and our own encoder of the library.

Everything here is made again, the same, where the cache is empty or damaged.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from llm_data.whole_files import checksum, is_sealed, seal, write_in_place
from llm_data.workspace import cache_folder, digest, locked
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_rag.encoders import bi_encoder
from llm_rag.encoders import encoder as shared
from llm_rag.encoders.encoder import Encoder, as_texts, empty
from llm_rag.pairs import library_pairs, split

EPOCHS = 12


def kept_vectors(encoder: Encoder, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
    """`encoder.encode(texts)`, kept under the encoder's name and source, and the texts.

    Args:
        encoder: whose name says which vectors it gives.
        texts: a file in the cache is of all of them together.
    """
    texts = as_texts(texts)
    if not texts:
        return empty(encoder.dim)
    folder = cache_folder() / "vectors"
    sources = checksum((Path(inspect.getfile(type(encoder))), Path(shared.__file__)))
    path = folder / f"{digest(encoder.name, sources, texts)}.safetensors"
    seal_path = path.with_suffix(".seal")
    if not is_sealed(seal_path):
        with locked(folder):
            if not is_sealed(seal_path):  # another process may have made it meanwhile
                vectors = encoder.encode(texts).contiguous()
                write_in_place(path, lambda unfinished: save_file({"vectors": vectors}, unfinished))
                seal(seal_path, [path])
    return load_file(path)["vectors"]


def library_encoder(config: bi_encoder.BiEncoderConfig | None = None, callbacks: Any = ()) -> bi_encoder.BiEncoder:
    """Our own encoder, trained on the library's pairs whose files are not for testing; names stand in the code.

    Half a minute the first time; then it comes from the cache.

    Args:
        config: sizes and training; by default `BiEncoderConfig` with 12 epochs.
        callbacks: of the Lightning trainer, such as `ProgressLine`.
    """
    config = config or bi_encoder.BiEncoderConfig(epochs=EPOCHS)
    train, _ = split(library_pairs())
    questions, answers = [pair.docstring for pair in train], [pair.code for pair in train]
    sources = checksum((Path(bi_encoder.__file__), Path(__file__)))
    place = cache_folder() / "bi-encoders"
    folder = place / digest(asdict(config), questions, answers, sources, torch.__version__)
    seal_path = folder / "complete"
    if not is_sealed(seal_path):
        with locked(place):
            if not is_sealed(seal_path):
                bi_encoder.train_bi_encoder(questions, answers, config, callbacks).save(folder)
                names = (bi_encoder.CONFIG, bi_encoder.TOKENIZER, bi_encoder.WEIGHTS)
                seal(seal_path, [folder / name for name in names])
    return bi_encoder.load(folder)
