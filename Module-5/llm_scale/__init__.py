"""Module 5's helper package: ranks to run code on, collectives, data parallel and sharded training, budgets, plans.

`from llm_scale import Ranks, plan`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_scale.budget import Budget, Setup, budget
    from llm_scale.collectives import LIBRARY, RING, ring_all_reduce
    from llm_scale.parallel.ddp import DataParallel, NaiveDataParallel
    from llm_scale.parallel.zero1 import Zero1
    from llm_scale.parallel.zero2 import Zero2
    from llm_scale.parallel.zero3 import Zero3
    from llm_scale.planner import MODELS, plan, table
    from llm_scale.ranks import RankError, Ranks

__all__ = [
    "LIBRARY", "MODELS", "RING", "Budget", "DataParallel", "NaiveDataParallel", "RankError", "Ranks", "Setup", "Zero1",
    "Zero2", "Zero3", "budget", "plan", "ring_all_reduce", "table",
]  # fmt: skip

export(__name__, {
    "Budget": "budget", "DataParallel": "parallel.ddp", "LIBRARY": "collectives", "MODELS": "planner",
    "NaiveDataParallel": "parallel.ddp", "RING": "collectives", "RankError": "ranks", "Ranks": "ranks",
    "Setup": "budget", "Zero1": "parallel.zero1", "Zero2": "parallel.zero2", "Zero3": "parallel.zero3",
    "budget": "budget",    "plan": "planner", "ring_all_reduce": "collectives", "table": "planner",
})  # fmt: skip
