"""Bytes that a parameter takes in training, by precision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Bytes that each parameter takes for as long as training lasts, with AdamW."""

    weight: int
    gradient: int
    master: int
    moments: int

    @property
    def total(self) -> int:
        """Bytes a parameter."""
        return self.weight + self.gradient + self.master + self.moments


RECIPES: dict[str, Recipe] = {
    "32-true": Recipe(4, 4, 0, 8),
    "bf16-mixed": Recipe(4, 4, 0, 8),  # autocast: the bf16 copies live for one product
    "bf16, fp32 master and moments": Recipe(2, 2, 4, 8),  # Rajbhandari et al. 2020, section 3.1
    "bf16, fp32 moments": Recipe(2, 2, 0, 8),
    "bf16-true": Recipe(2, 2, 0, 4),
}
