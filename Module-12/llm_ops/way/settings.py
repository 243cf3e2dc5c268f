"""How far each stage of the way goes."""

from __future__ import annotations

from dataclasses import dataclass

from llm_serve.quantization.rounding import WeightScheme

CORPUS, TOKENIZER, CONTEXT = "python-functions", "bpe-1024", 128
HIDDEN, LAYERS = 96, 4
INIT_STD = (2 / (5 * HIDDEN)) ** 0.5  # Module 3: of a small model's first weights
BABY, REAL = "babygpt", "smollm2"  # what the two models are called on the way
# How each is quantised. Four bits cost BabyGPT next to nothing. A model of 135M that was trained for long loses a
# quarter of a nat to them by the best method (docs/results/quantisation.json), and two thousandths to eight.
METHODS = {
    BABY: ("gptq", WeightScheme(bits=4, group_size=32)), REAL: ("rtn", WeightScheme(bits=8, group_size=32))
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Numbers of the way. The defaults take some ten minutes on two cores; `QUICK` shows that all of it is connected.

    Attributes:
        seed: of weights, order, answers and questions.
        smollm2: whether a real pretrained model is adapted beside BabyGPT.
        learns: whether steps and rounds are enough to tell anything from chance: claims of learning, of time and of
            small differences are skipped where they are not.
        train_steps: of BabyGPT on the text.
        adapt_steps: of smollm2's adapter on examples.
        align_steps: of BabyGPT on a checked reward, a round of answers each.
        questions: held-out ones for BabyGPT.
        asked: held-out ones for smollm2.
        requests: of a round of the load.
        rounds: of the load.
    """

    seed: int = 0
    smollm2: bool = True
    learns: bool = True
    train_steps: int = 800
    adapt_steps: int = 16
    align_steps: int = 40
    questions: int = 96
    asked: int = 24
    requests: int = 16
    rounds: int = 3

    @property
    def models(self) -> tuple[str, ...]:
        """The models that go on to be quantised and served."""
        return (BABY, REAL) if self.smollm2 else (BABY,)


QUICK = Settings(
    learns=False, train_steps=40, adapt_steps=2, align_steps=2, questions=16, asked=4, requests=6, rounds=1,
)  # fmt: skip
