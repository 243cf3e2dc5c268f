"""A model of a name made ready to be aligned: as a policy that writes, or to give numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llm_core.model import GPT
from llm_peft.lora.base import fingerprint_of_model
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
    if is_scalar_folder(base_name):
        model, tokenizer = load_scalar(base_name)
        if tokenizer is None:
            raise ValueError(f"{base_name} has no tokenizer; take another model")
        return _ready(Prepared(model, tokenizer, fingerprint_of_model(model), base_name), settings)
    return scalar_on(prepare_policy(base_name, replace(settings, method="full", dtype="float32")), settings)


def scalar_on(base: Prepared, settings: FineTune) -> Prepared:
    """The same on a model that is loaded, which stays as it is."""
    if not isinstance(base.model, GPT):
        raise TypeError(f"a {type(base.model).__name__} is no GPT; take one from prepare_policy")
    return _ready(replace(base, model=ScalarModel(base.model)), settings)


def _ready(base: Prepared, settings: FineTune) -> Prepared:
    model = base.model
    assert isinstance(model, ScalarModel)
    model.train().requires_grad_(True)
    if settings.method != "full":
        inject(model.model, settings.lora)
        model.score.requires_grad_(True)
    return base


def is_scalar_folder(place: str | Path) -> bool:
    """Whether a place is the folder of a model that gives numbers."""
    path = Path(place).expanduser() / "config.json"
    return path.is_file() and "ForSequenceClassification" in path.read_text("utf-8", errors="replace")
