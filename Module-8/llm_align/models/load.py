"""A model of a name made ready to be aligned: as a policy that writes, or to give numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llm_core.model import GPT
from llm_peft.lora.inject import inject
from llm_peft.prepare import Prepared, prepare
from llm_peft.settings import FineTune

from llm_align.models.scalar import ScalarModel, load_scalar


def prepare_policy(base_name: str, settings: FineTune) -> Prepared:
    """A `GPT` with what `settings` asks for, by our own layers: the serving engine writes with the very model that is
    trained.

    Args:
        base_name: "smollm2-135m", a run of babygpt, a folder of transformers, or an id of the hub.
        settings: method and adapter; its library must be "ours".

    Raises:
        ValueError: as `llm_peft.prepare`; for another architecture than Llama's; for PiSSA, which changes the frozen
            weights, so that a policy without its adapter is not what it began as.
    """
    if settings.method != "full" and settings.lora.init_lora_weights == "pissa":
        raise ValueError("init_lora_weights='pissa' changes the frozen weights, which are the reference; take kaiming")
    return prepare(base_name, settings, own=True)


def prepare_scalar(base_name: str, settings: FineTune) -> Prepared:
    """A `ScalarModel` on the decoder of a causal language model, or of an earlier reward model, ready to train.

    Args:
        base_name: as for `prepare_policy`; or the folder of a reward model.
        settings: method and adapter. With an adapter the row of weights that gives the number is trained whole.

    Raises:
        ValueError: as `prepare_policy`; for four bits.
    """
    if settings.method == "qlora":
        raise ValueError("method='qlora' is not made for models that give numbers; take lora")
    base = prepare_policy(base_name, replace(settings, method="full", dtype="float32"))
    if not isinstance(base.model, GPT):
        raise TypeError(f"{base_name} is no GPT")
    return scalar_on(base, settings)


def scalar_on(base: Prepared, settings: FineTune) -> Prepared:
    """The same on a model that is loaded, which stays as it is."""
    assert isinstance(base.model, GPT)
    model = ScalarModel(base.model).train()
    model.requires_grad_(True)
    if settings.method != "full":
        inject(model.model, settings.lora)
        model.score.requires_grad_(True)
    return Prepared(model, base.tokenizer, base.base, base.base_name)


def is_scalar_folder(place: str | Path) -> bool:
    """Whether a place is the folder of a model that gives numbers."""
    path = Path(place).expanduser() / "config.json"
    return path.is_file() and "ForSequenceClassification" in path.read_text("utf-8", errors="replace")


__all__ = ["is_scalar_folder", "load_scalar", "prepare_policy", "prepare_scalar", "scalar_on"]
