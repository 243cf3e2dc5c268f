"""Learning-rate schedules as functions of the step alone: the share of the highest rate that a step takes.

Steps count from 0, and the first one takes 1 / warmup_steps: a rate of 0 would waste it. transformers and torch count
the same curves one step earlier, so that `schedule(step)` here is theirs at `step + 1`. After the end each stays at its
last value.
"""

from __future__ import annotations

import math

from llm_core.optimizers import rate_factor as cosine

__all__ = ["cosine", "inverse_square_root", "linear", "warmup_stable_decay"]


def check_steps(step: int, warmup_steps: int, steps: int) -> None:
    if step < 0 or not 0 <= warmup_steps < steps:
        raise ValueError(
            f"step={step} must be 0 or more, and warmup_steps={warmup_steps} from 0 to below {steps} steps"
        )


def linear(step: int, warmup_steps: int, steps: int, min_lr_ratio: float = 0.0) -> float:
    """A line up, and a line down to `min_lr_ratio` at the last step."""
    check_steps(step, warmup_steps, steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (min(step, steps - 1) - warmup_steps + 1) / (steps - warmup_steps)
    return 1 - done * (1 - min_lr_ratio)


def warmup_stable_decay(
    step: int, warmup_steps: int, decay_steps: int, steps: int, min_lr_ratio: float = 0.0, shape: str = "linear"
) -> float:
    """A line up, the highest rate for as long as one likes, and a fall over the last `decay_steps`.

    What is before the fall does not depend on the length of the run: from one run at the highest rate several can
    branch off and fall. Hu et al. 2024, section 4.

    Args:
        shape: of the fall: "linear", "cosine", or "sqrt", 1 - sqrt(done), which falls fast at first.

    Raises:
        ValueError: for steps that do not fit, or another shape.
    """
    check_steps(step, warmup_steps, steps)
    if not 0 < decay_steps <= steps - warmup_steps:
        raise ValueError(f"decay_steps={decay_steps} must be above 0 and leave room for the warm-up of {steps} steps")
    falls = {
        "linear": lambda done: 1 - done,
        "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
        "sqrt": lambda done: 1 - math.sqrt(done),
    }
    if shape not in falls:
        raise ValueError(f"shape={shape!r} is none of {', '.join(falls)}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = max(0, min(step + 1, steps) - (steps - decay_steps)) / decay_steps
    return falls[shape](done) * (1 - min_lr_ratio) + min_lr_ratio


def inverse_square_root(step: int, warmup_steps: int) -> float:
    """A line up, then sqrt(warmup_steps / (step + 1)): it needs no end. Vaswani et al. 2017, eq. 3, without its factor.

    Raises:
        ValueError: without a warm-up, which sets the scale.
    """
    if step < 0 or warmup_steps < 1:
        raise ValueError(f"step={step} must be 0 or more, warmup_steps={warmup_steps} 1 or more")
    return min((step + 1) / warmup_steps, math.sqrt(warmup_steps / (step + 1)))
