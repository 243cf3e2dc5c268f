"""From a model's name to a server that listens."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from llm_core.model import GPT
from llm_core.store.registry import load_model
from llm_peft.lora.bank import AdapterBank
from llm_peft.lora.base import fingerprint_of_model
from llm_peft.lora.files import read_adapter
from llm_peft.settings import DTYPES

from llm_serve.engine.config import EngineConfig
from llm_serve.engine.engine import Engine
from llm_serve.quantization.apply import written_out
from llm_serve.quantization.export import is_quantized, load_quantized
from llm_serve.server.app import application
from llm_serve.server.settings import ServerConfig


def load_engine(
    name: str, adapters: Sequence[str], dtype: str = "float32", device: str = "auto",
    config: EngineConfig | None = None,
) -> Engine:  # fmt: skip
    """An engine with a model, its tokenizer, and adapters given as NAME=FOLDER.

    A folder in compressed-tensors' format is served with its rounded weights written out in `dtype`: its answers are
    those of the quantised model, and its memory is that of a model which was never quantised.

    Raises:
        ValueError: for a model that is not Llama-like, a dtype or device that is not there, and a malformed adapter.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is none of {', '.join(DTYPES)}")
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--device {device}: there is {'cpu and cuda' if torch.cuda.is_available() else 'cpu'}")
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if is_quantized(Path(name).expanduser()):
        rounded, tokenizer = load_quantized(Path(name).expanduser())
        model = written_out(rounded).to(DTYPES[dtype])
    else:
        model, tokenizer = load_model(name, dtype=DTYPES[dtype])
    if not isinstance(model, GPT):
        raise ValueError(f"{name} is a {type(model).__name__}; the engine serves models of Llama's architecture")
    model = model.to(place)
    banks = {}
    for given in adapters:
        called, _, folder = given.partition("=")
        if not called or not folder or called in banks:
            raise ValueError(f"--adapter {given}: give NAME=FOLDER, each name once")
        adapter = read_adapter(Path(folder).expanduser())
        if adapter.base is not None and adapter.base != fingerprint_of_model(model):
            base = f" {adapter.base_name}" if adapter.base_name else ""
            raise ValueError(f"--adapter {given}: it was trained on another model{base}, not on {name}; serve that one")
        banks[called] = adapter.config, adapter.state
    bank = AdapterBank(model, banks) if banks else None
    return Engine(model, tokenizer, config, bank)


def end_with(parent: int) -> None:
    """Send this process a SIGTERM when the one that started it has gone, also where it was killed and could not say so.

    Args:
        parent: number of the process that started this one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _ends_by_signals(server: Any) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the server, and then the program goes on: uvicorn's own way sends them once more, and the
    program would end as one that was killed."""
    before = {each: signal.signal(each, server.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run(engine: Engine, config: ServerConfig, host: str, port: int, shutdown_seconds: int) -> int:
    """Listen until SIGTERM or Ctrl-C; then open answers have `shutdown_seconds` to end. Returns the exit code.

    Raises:
        ValueError: when the port is taken.
    """
    import uvicorn

    app = application(engine, config)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ValueError(f"{host}:{port} cannot be listened on ({error.strerror}); give another --port") from None
    shown = f"[{host}]" if ":" in host else host
    print(f"llm-serve: {config.model_name} on http://{shown}:{listener.getsockname()[1]}", flush=True)
    options = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=shutdown_seconds, server_header=False
    )
    server = uvicorn.Server(options)
    server.capture_signals = lambda: _ends_by_signals(server)  # type: ignore[method-assign]
    server.run(sockets=[listener])
    return 0
