"""What of an objective a checkpoint keeps, so that a run does not go on with another one in silence."""

from __future__ import annotations

from typing import Any

from llm_core.store.resume import plain_json
from llm_peft.local_lora import LocalLoRA

OBJECTIVE = "objective"  # key of a checkpoint


def refuse_another_objective(checkpoint: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare the settings that a run was made with with those that it is to go on with.

    Raises:
        ValueError: when one differs, or the checkpoint is of another kind of run.
    """
    told = checkpoint.get(OBJECTIVE)
    if not isinstance(told, dict) or told.get("kind") != wanted["kind"]:
        kind = told.get("kind") if isinstance(told, dict) else "another kind of run"
        raise ValueError(f"the checkpoint is of {kind}, and this is {wanted['kind']}; take one of its own")
    for part, values in wanted.items():
        if isinstance(values, dict):
            for name, value in values.items():
                before = told.get(part, {}).get(name)
                if plain_json(before) != plain_json(value):
                    raise ValueError(f"the run was made with {part}.{name}={before}, and not {value}; leave it so")


class ObjectiveModule(LocalLoRA):
    """`LocalLoRA` with an objective of its own, which its checkpoints keep, and which goes on with no other."""

    def objective_settings(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before, as plain values."""
        return {"kind": type(self).__name__.removeprefix("Configured")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[OBJECTIVE] = self.objective_settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_another_objective(checkpoint, self.objective_settings())
        super().on_load_checkpoint(checkpoint)
