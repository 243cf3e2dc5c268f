"""Module 8's helper package: a model moved towards answers that are preferred or checked.

`from llm_align import dpo, policy_loss`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_align.objectives.advantages import gae, group_advantages, leave_one_out
    from llm_align.objectives.policy import policy_loss
    from llm_align.objectives.preference import bradley_terry, dpo

__all__ = ["bradley_terry", "dpo", "gae", "group_advantages", "leave_one_out", "policy_loss"]

export(__name__, {
    "bradley_terry": "objectives.preference", "dpo": "objectives.preference", "gae": "objectives.advantages",
    "group_advantages": "objectives.advantages", "leave_one_out": "objectives.advantages",
    "policy_loss": "objectives.policy",
})  # fmt: skip
