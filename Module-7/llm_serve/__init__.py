"""Module 7's helper package: many requests on one model, each answered as it would be alone, and with fewer bits.

`from llm_serve import Engine, EngineConfig, Request`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_serve.cache.paged import PagedCache
    from llm_serve.cache.preallocated import PreallocatedCache
    from llm_serve.engine.config import EngineConfig
    from llm_serve.engine.engine import Engine
    from llm_serve.engine.request import Request

__all__ = ["Engine", "EngineConfig", "PagedCache", "PreallocatedCache", "Request"]

export(__name__, {
    "Engine": "engine.engine", "EngineConfig": "engine.config", "PagedCache": "cache.paged",
    "PreallocatedCache": "cache.preallocated", "Request": "engine.request",
})  # fmt: skip
