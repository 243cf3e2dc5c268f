"""What of an objective a checkpoint keeps, so that a run does not go on with another one in silence."""

from __future__ import annotations

from typing import Any

from llm_core.store.resume import plain_json

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
