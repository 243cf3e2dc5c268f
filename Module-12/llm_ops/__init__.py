"""Module 12's helper package: a model as a service that is measured, watched and replaced without a pause.

`from llm_ops import Balancer, simulate, measure`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_ops.capacity.cluster import simulate
    from llm_ops.capacity.costs import StepCosts
    from llm_ops.capacity.requests import Arrival, figures, poisson
    from llm_ops.load.measure import measure
    from llm_ops.service.balancer import Balancer

__all__ = ["Arrival", "Balancer", "StepCosts", "figures", "measure", "poisson", "simulate"]

export(__name__, {
    "Arrival": "capacity.requests", "Balancer": "service.balancer", "StepCosts": "capacity.costs",
    "figures": "capacity.requests", "measure": "load.measure", "poisson": "capacity.requests",
    "simulate": "capacity.cluster",
})  # fmt: skip
