"""One configuration of a service, for every place that it is put on."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ENGINES = ("llm-serve", "vllm")
NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")


@dataclass(frozen=True)
class Deployment:
    """A service.

    Args:
        name: of it, as Kubernetes takes names: a-z, 0-9 and -.
        model: what the engine loads: a folder on the machine that serves, or an id of the hub.
        engine: llm-serve, which is made to be read, or vllm, which is made to be run.
        image: of the container.
        replicas: to begin with.
        most_replicas: up to which Kubernetes adds them.
        gpus: of a replica; 0 for a CPU.
        cpus: of a replica.
        memory_gb: of a replica.
        port: that replicas listen on, inside.
        max_num_seqs: answers that a replica writes at once.
        start_seconds: that a replica may take until it is ready.
        stop_seconds: that it has to end open answers.
        key_secret: name of the secret that holds the API key under `key`; empty for no key.

    Raises:
        ValueError: for a value that cannot be, with what it may be.
    """

    name: str = "chat"
    model: str = "smollm2-135m"
    engine: str = "llm-serve"
    image: str = "localhost/llm-serve:1"
    replicas: int = 2
    most_replicas: int = 4
    gpus: int = 0
    cpus: int = 2
    memory_gb: int = 4
    port: int = 8000
    max_num_seqs: int = 32
    start_seconds: int = 300
    stop_seconds: int = 60
    key_secret: str = "chat-key"

    def __post_init__(self) -> None:
        for name in ("name", "key_secret"):
            value = getattr(self, name)
            if not NAME.fullmatch(value) and not (name == "key_secret" and not value):
                raise ValueError(f"{name}={value!r} must be of a-z, 0-9 and -, begin with a letter, 50 at most")
        if self.engine not in ENGINES:
            raise ValueError(f"engine={self.engine!r} is none of {', '.join(ENGINES)}")
        for name in ("model", "image"):
            if not re.fullmatch(r"[\w./][\w./:@-]*", getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r} must be of letters, digits and _ . / : @ -")
        if not 1 <= self.replicas <= self.most_replicas:
            raise ValueError(f"replicas={self.replicas} must be from 1 to most_replicas={self.most_replicas}")
        for name, least in (("gpus", 0), ("cpus", 1), ("memory_gb", 1), ("max_num_seqs", 1), ("start_seconds", 1),
                            ("stop_seconds", 1)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 1024 <= self.port < 65536:
            raise ValueError(f"port={self.port} must be from 1024 to 65535: a replica is not root")
        if self.engine == "vllm" and not self.gpus:
            raise ValueError("engine=vllm with gpus=0: its image is for GPUs; give gpus, or take llm-serve")

    def command(self) -> list[str]:
        """What a replica runs, with its options."""
        listens = ["--host", "0.0.0.0", "--port", str(self.port)]
        if self.engine == "vllm":
            return ["vllm", "serve", self.model, *listens, "--served-model-name", self.name,
                    "--max-num-seqs", str(self.max_num_seqs), "--tensor-parallel-size", str(self.gpus)]  # fmt: skip
        return ["llm-serve", self.model, *listens, "--served_model_name", self.name,
                "--max_num_seqs", str(self.max_num_seqs), "--shutdown_seconds", str(self.stop_seconds)]  # fmt: skip

    @property
    def key_variable(self) -> str:
        """The variable of the environment from which the engine takes the API key."""
        return "VLLM_API_KEY" if self.engine == "vllm" else "LLM_SERVE_API_KEY"


def read(path: Path | str) -> Deployment:
    """A configuration from a YAML file.

    Raises:
        ValueError: for a file that is not there or no YAML, an unknown key, and a value of another kind.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); Module-12/deployment.yaml is an example") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be a list of `key: value` lines; Module-12/deployment.yaml is an example")
    known: dict[str, Any] = {each.name: each.type for each in fields(Deployment)}
    for key, value in found.items():
        if key not in known:
            raise ValueError(f"{path}: {key!r} is no setting; there are {', '.join(known)}")
        wanted = int if known[key] == "int" else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"{path}: {key}={value!r} must be {'a whole number' if wanted is int else 'a text'}")
    return Deployment(**found)
