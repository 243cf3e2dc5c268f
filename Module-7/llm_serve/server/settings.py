"""How the server deals with those who call it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerConfig:
    """Limits of the HTTP side.

    Args:
        model_name: that requests name the model by.
        api_key: that requests must bring as `Authorization: Bearer ...`; empty for none.
        request_seconds: the longest that a request may take, its body and its waiting included.
        max_body_bytes: the largest body that is read.

    Raises:
        ValueError: for limits that let nothing through.
    """

    model_name: str
    api_key: str = ""
    request_seconds: float = 600.0
    max_body_bytes: int = 4_000_000

    def __post_init__(self) -> None:
        if not self.model_name:
            raise ValueError("model_name is empty; requests name the model by it")
        if not self.request_seconds > 0 or self.max_body_bytes < 1:
            raise ValueError("request_seconds must be above 0, and max_body_bytes at least 1")
