"""Train the transformer to copy, reverse or sort sequences that it has never seen.

`python simple_training.py` trains on the copy task in under a minute on two CPU cores, reports how many
held-out sequences it copies without a single wrong token, and draws where the decoder looks meanwhile.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from annotated_transformer import (
    Logits,
    Tokens,
    Transformer,
    TransformerConfig,
    greedy_decode,
    label_smoothing_loss,
    noam_rate,
)
from jaxtyping import Float, Int
from torch import Tensor, nn

from course import plots, scale
from course.progress import Line

PAD, BOS, EOS = 0, 1, 2
FIRST_SYMBOL = 3  # symbol i is token FIRST_SYMBOL + i
TASKS: dict[str, Callable[[Sequence[int]], list[int]]] = {
    "copy": list,
    "reverse": lambda symbols: list(reversed(symbols)),
    "sort": sorted,
}


class Pairs(NamedTuple):
    """Sources and what the model is to answer, each symbols + `EOS`, padded with `PAD` to one length."""

    source: Int[Tensor, "batch time"]
    target: Int[Tensor, "batch time"]

    def to(self, device: str) -> "Pairs":
        return Pairs(self.source.to(device), self.target.to(device))


def make_pairs(
    task: str, num_train: int, num_held_out: int, seed: int, *,
    min_len: int = 3, max_len: int = 10, num_symbols: int = 10,
) -> tuple[Pairs, Pairs]:  # fmt: skip
    """Training and held-out pairs of random symbols, lengths uniform in [min_len, max_len].

    All sequences differ, so no held-out one is ever trained on.

    Raises:
        ValueError: for an unknown task, or more sequences than half of those that exist.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: must be one of {', '.join(TASKS)}")
    exist = sum(num_symbols**length for length in range(min_len, max_len + 1))
    if not 0 < 2 * (num_train + num_held_out) <= exist:
        raise ValueError(
            f"{num_train} + {num_held_out} sequences: must be 1 to {exist // 2:,}, half of those with "
            f"{num_symbols} symbols and {min_len} to {max_len} places; ask for fewer, or raise max_len"
        )
    generator = torch.Generator().manual_seed(seed)
    seen: dict[tuple[int, ...], None] = {}  # a dict keeps the order, a set does not
    while len(seen) < num_train + num_held_out:
        length = int(torch.randint(min_len, max_len + 1, (), generator=generator))
        symbols = torch.randint(FIRST_SYMBOL, FIRST_SYMBOL + num_symbols, (length,), generator=generator)
        seen[tuple(symbols.tolist())] = None
    rows = list(seen)
    source, target = _padded(rows, max_len), _padded([TASKS[task](row) for row in rows], max_len)
    held_out, train_ = slice(num_held_out), slice(num_held_out, None)
    return Pairs(source[train_], target[train_]), Pairs(source[held_out], target[held_out])


def _padded(rows: Sequence[Sequence[int]], max_len: int) -> Int[Tensor, "batch time"]:
    return torch.tensor([[*row, EOS] + [PAD] * (max_len - len(row)) for row in rows])  # (batch, max_len + 1)


def copy_config(*, max_len: int = 10, num_symbols: int = 10, **sizes: int | float) -> TransformerConfig:
    """A transformer small enough for a CPU: 64 wide, 4 heads, 1 layer. `sizes` are fields of the config."""
    small: dict[str, int | float] = {"d_model": 64, "num_heads": 4, "num_layers": 1, "d_ff": 128, "dropout": 0.0}
    ids = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS}
    fields = small | sizes | ids | {"vocab_size": FIRST_SYMBOL + num_symbols, "max_len": max_len + 1}
    return TransformerConfig(**fields)  # type: ignore[arg-type]


def copy_rate(
    config: TransformerConfig, steps: int, *, warmup_steps: int = 100, factor: float = 0.4
) -> Callable[[int], float]:
    """The paper's schedule times `factor`, falling to zero at the end of `steps`.

    The paper trains 100,000 steps, over which the rate falls far. In a few hundred it stays high, and one bad step
    near the end would decide the result.
    """
    return lambda step: factor * noam_rate(step, config.d_model, warmup_steps) * (1 - (step - 1) / steps)


def batches(pairs: Pairs, batch_size: int, steps: int, seed: int) -> Iterator[Pairs]:
    """`steps` random batches, the same for the same seed. Each is cut to its longest sequence."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(pairs.source), (batch_size,), generator=generator).to(pairs.source.device)
        source, target = pairs.source[rows], pairs.target[rows]
        longest = int((source != PAD).sum(dim=1).max())
        yield Pairs(source[:, :longest], target[:, :longest])


def decoder_input(target: Tokens) -> Tokens:
    """The target shifted right: `BOS`, then all but the last column. Position t is to answer target[t]."""
    return torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], dim=1)


def batch_loss(model: nn.Module, batch: Pairs, smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Mean loss (nats a token) of one batch."""
    logits: Logits = model(batch.source, decoder_input(batch.target))
    return label_smoothing_loss(logits, batch.target, PAD, smoothing)


def train(
    model: nn.Module, pairs: Pairs, rate: Callable[[int], float], *, steps: int, batch_size: int = 64,
    smoothing: float = 0.0, seed: int = 0, label: str = "training",
    after_step: Callable[[int], None] = lambda step: None,
) -> list[float]:  # fmt: skip
    """Train with the paper's Adam (section 5.3) and return the loss of each step.

    Args:
        rate: learning rate of step 1, 2, ...
        after_step: called with the number of steps done, say to look at the model.
    """
    optimizer = make_optimizer(model)
    losses: list[float] = []
    line = Line(label, steps)
    try:
        for step, batch in enumerate(batches(pairs, batch_size, steps, seed), start=1):
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            loss = batch_loss(model, batch, smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            line.update(step, {"loss": losses[-1]})
            after_step(step)
    finally:
        line.close()
    return losses


def make_optimizer(model: nn.Module) -> torch.optim.Adam:
    """Adam as in section 5.3; its learning rate of 1 is to be set, or multiplied, at each step."""
    return torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9, fused=True)


def exact_match(model: Transformer, pairs: Pairs) -> float:
    """Fraction of sources that greedy decoding answers without one wrong token, `EOS` included."""
    return (answers(model, pairs.source) == pairs.target).all(dim=1).float().mean().item()


def answers(model: Transformer, source: Tokens) -> Tokens:
    """What greedy decoding answers, padded to the shape of `source`. Dropout is off meanwhile."""
    was_training = model.training
    output = greedy_decode(model.eval(), source, max_len=source.size(1))
    model.train(was_training)
    return nn.functional.pad(output, (0, source.size(1) - output.size(1)), value=PAD)


@torch.no_grad()
def cross_attention(model: Transformer, pair: Pairs) -> Float[Tensor, "layers heads target_time source_time"]:
    """Where the decoder looks in the source at each step of one target (a batch of one), without padding."""
    length = int((pair.source != PAD).sum())
    source, target = pair.source[:, :length], pair.target[:, :length]
    was_training = model.training
    model.eval()(source, decoder_input(target))
    model.train(was_training)
    return torch.stack([layer.cross_attn.weights[0] for layer in model.decoder])  # type: ignore[union-attr, index]


def symbols(tokens: Tensor) -> list[str]:
    """Tokens as a reader sees them: digits, and "end"."""
    return ["end" if token == EOS else str(token - FIRST_SYMBOL) for token in tokens.tolist() if token != PAD]


def draw_attention(model: Transformer, pair: Pairs, path: Path) -> None:
    """Write the heads of the last decoder layer, over one pair (a batch of one), as a PNG."""
    from matplotlib.figure import Figure

    heads = cross_attention(model, pair)[-1]
    figure = Figure(figsize=(3 * len(heads), 3.4), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(heads), squeeze=False)[0]
    for number, (ax, weights) in enumerate(zip(axes, heads, strict=True), start=1):
        plots.heatmap(ax, weights, symbols(pair.target[0]), symbols(pair.source[0]), cmap="Blues")
        ax.set(title=f"head {number}", xlabel="source", ylabel="target" if number == 1 else "")
    figure.suptitle("Cross-attention of the last layer: dark where a target position looks")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, report and draw; returns the exact-match rate on the held-out sequences."""
    parser = _Parser(description="Train the 2017 transformer on sequences of digits.")
    parser.add_argument("--task", choices=TASKS, default="copy")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and batches (default: 0)")
    parser.add_argument("--output", type=Path, help="PNG to write (default: runs/attention-TASK.png)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: must be at least 1")
    output = options.output or Path("runs") / f"attention-{options.task}.png"
    if output.suffix != ".png":
        parser.error(f"--output {output}: must end in .png")

    torch.manual_seed(options.seed)
    pairs, held_out = make_pairs(options.task, 20_000, 1_000, options.seed)
    pairs, held_out = pairs.to(scale.device), held_out.to(scale.device)
    model = Transformer(config := copy_config()).to(scale.device)
    print(scale)
    print(f"task {options.task}: {len(pairs.source):,} training and {len(held_out.source):,} held-out sequences")
    print(f"of 3 to 10 digits, none in both; {sum(p.numel() for p in model.parameters()):,} parameters")
    rate = copy_rate(config, options.steps)
    losses = train(model, pairs, rate, steps=options.steps, smoothing=0.1, seed=options.seed)
    uniform = math.log(config.vocab_size)
    print(f"loss of step 1: {losses[0]:.3f} nats; predicted ln {config.vocab_size} = {uniform:.3f}")
    source, answer = held_out.source[:1], answers(model, held_out.source[:1])
    print(f"for example  {' '.join(symbols(source[0]))}  gives  {' '.join(symbols(answer[0]))}")
    matched = exact_match(model, held_out)
    print(f"exact {options.task} of held-out sequences: {matched:.1%}")
    draw_attention(model, Pairs(*(part[:1] for part in held_out)), output)
    print(f"attention map: {output}")
    return matched


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second one gains a fifth on idle cores and costs threefold on busy ones
    main()
