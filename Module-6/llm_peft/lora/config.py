"""What an adapter is: its rank, its scale, and the layers it goes to. The names are those of peft's `LoraConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass

INITIALISATIONS = ("kaiming", "pissa")


@dataclass(frozen=True)
class LoRAConfig:
    """Settings of an adapter.

    Attributes:
        r: rank, the width between A and B.
        lora_alpha: the update is scaled by `lora_alpha / r`.
        target_modules: "all-linear" for every linear layer but the head; a tuple of names, each of which stands for
            all layers whose path ends in it ("q_proj"); or a regular expression that matches whole paths.
        lora_dropout: share of the input that A does not see, in training.
        use_rslora: scale by `lora_alpha / sqrt(r)`. Kalajdzievski 2023.
        use_dora: learn the length of each row of the weight apart from its direction. Liu et al. 2024.
        init_lora_weights: "kaiming" draws A and sets B to 0; "pissa" starts from the largest singular values of the
            weight, and leaves the rest of it frozen. Meng et al. 2024.

    Raises:
        ValueError: for what cannot be.
    """

    r: int = 8
    lora_alpha: float = 16.0
    target_modules: tuple[str, ...] | str = "all-linear"
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: str = "kaiming"

    def __post_init__(self) -> None:
        if not isinstance(self.r, int) or isinstance(self.r, bool) or self.r < 1:
            raise ValueError(f"r={self.r!r}: a rank is a whole number and at least 1; raise r")
        for name, allowed, holds in (
            ("lora_alpha", "a finite number above 0", 0 < self.lora_alpha < math.inf),
            ("lora_dropout", "0 or more, and below 1", 0 <= self.lora_dropout < 1),
            ("target_modules", "'all-linear', names, or an expression", bool(self.target_modules)),
        ):
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {allowed}")
        if self.init_lora_weights not in INITIALISATIONS:
            raise ValueError(f"init_lora_weights={self.init_lora_weights!r} is none of {', '.join(INITIALISATIONS)}")
        if self.use_dora and self.init_lora_weights == "pissa":
            raise ValueError("use_dora with init_lora_weights='pissa': take one of them")

    @property
    def scaling(self) -> float:
        """What the update is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)
