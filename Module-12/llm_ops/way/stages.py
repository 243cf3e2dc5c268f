"""The stages of the whole way, in their order."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

from llm_ops.way.settings import CORPUS, Settings
from llm_ops.way.stage import Made, Place, Stage


def _later(name: str) -> Callable[[Place], Made]:
    """`run` of a module of this folder, imported when the stage begins: one that is sealed costs nothing."""

    def run(place: Place) -> Made:
        made: Made = importlib.import_module(f"llm_ops.way.{name}").run(place)
        return made

    return run


def _outside(name: str) -> Callable[[Place], dict[str, str]]:
    """What a stage reads that no stage has left: the library of this Python, which another has otherwise, and the
    weights of smollm2, which are pinned."""

    def outside(place: Place) -> dict[str, str]:
        from llm_core.store.smollm2 import SHA256
        from llm_data.text.corpora import load_corpus

        texts = {"data": CORPUS, "align": "python", "quantize": "python"}
        found = {texts[name]: load_corpus(texts[name]).fingerprint} if name in texts else {}
        weights = place.settings.smollm2 and name in ("adapt", "judge")
        return {**found, **({"smollm2-135m": SHA256} if weights else {})}

    return outside


STAGES = tuple(
    Stage(name, purpose, needs, _later(name), _outside(name))
    for name, purpose, needs in (
        ("data", "text to tokenizer, shards, and questions that were not trained on", ()),
        ("train", "BabyGPT from nothing", ("data",)),
        ("adapt", "smollm2-135m by LoRA", ("data",)),
        ("align", "BabyGPT by GRPO on a checked reward", ("data", "train")),
        ("quantize", "fewer bits: four for BabyGPT, eight for smollm2", ("data", "adapt", "align")),
        ("export", "folders that transformers reads alike", ("data", "train", "adapt", "align", "quantize")),
        ("serve", "served, and loaded as predicted", ("data", "export")),
        ("judge", "the gate, before and after", ("data", "train", "export")),
    )
)  # fmt: skip


def stages_of(settings: Settings) -> tuple[Stage, ...]:
    """The stages that these settings ask for."""
    if settings.smollm2:
        return STAGES
    rest = (each for each in STAGES if each.name != "adapt")
    return tuple(replace(each, needs=tuple(need for need in each.needs if need != "adapt")) for each in rest)
