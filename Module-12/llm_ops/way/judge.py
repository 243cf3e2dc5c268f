"""May the models that came out serve in the place of those that went in? Module 12's gate on held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_align.tasks import functions
from llm_core.generate import Sampling, stop_ids
from llm_peft.tasks.signatures import score
from llm_serve.engine.engine import Engine
from llm_serve.engine.request import Request
from llm_serve.server.run import load_engine

from course import check
from llm_ops.gate.verdict import Gate
from llm_ops.way.adapt import NAME
from llm_ops.way.align import MOST_NEW, TOO_FEW
from llm_ops.way.data import asked_signatures, read_prompts
from llm_ops.way.export import folder_of, questions
from llm_ops.way.settings import BABY
from llm_ops.way.stage import Made, Place

GATE = Gate(margin=0.1, confidence=0.95)  # of two dozen questions a smaller margin can hardly be shown


def run(place: Place) -> Made:
    """The stage."""
    facts = {}
    for name in place.settings.models:
        before_model = place.folder("train") / "model" if name == BABY else NAME
        (before, _), (after, texts) = (_asked(place, name, model) for model in (before_model, folder_of(place, name)))
        verdict, back = GATE.decide(before, after), GATE.decide(after, before)
        claim = check.when(place.settings.learns, TOO_FEW)
        claim.holds(f"{name}: the gate lets the new model serve", verdict.passed, verdict.reason)
        claim.holds(f"{name}: and would not let the old one come back", not back.passed, back.reason)
        facts[name] = {
            "before": verdict.before, "after": verdict.after, "difference": str(verdict.difference),
            "questions": len(before), "passed": verdict.passed, "example": texts[0],
            "repeating": sum(map(repeats_a_line, texts)) / len(texts),
        }  # fmt: skip
    return Made((), facts)


def repeats_a_line(text: str) -> bool:
    """Whether a line with a letter stands in a text twice."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalpha, line))]
    return len(set(lines)) < len(lines)


def _asked(place: Place, name: str, model: Path | str) -> tuple[list[float], list[str]]:
    """Scores of the held-out questions, and the answers: greedy ones of the serving engine."""
    engine = load_engine(str(model), ())
    texts = answers(engine, questions(place, name, engine.tokenizer))
    if name == BABY:
        prompts = read_prompts(place)
        return [functions.reward_with_body(prompt, text) for prompt, text in zip(prompts, texts, strict=True)], texts
    wanted = asked_signatures(place)
    return [score([(text.strip(), True)], [each]).right for text, each in zip(texts, wanted, strict=True)], texts


def answers(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[str]:
    """The likeliest answer to each prompt."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    ends = tuple(sorted({*stop_ids(engine.model), int(tokenizer.eos_token_id)}))
    sampling = Sampling(MOST_NEW, 0.0, stop_ids=ends)
    found = engine.run([Request(tuple(each), sampling) for each in prompts])
    return [each[0].text for each in found]
