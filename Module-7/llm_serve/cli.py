"""`llm-serve`: serve a model over HTTP, and say beforehand what a machine can serve.

A mistake is one line on stderr and exit code 1; COURSE_TRACEBACK=1, or `llm-serve --traceback ...`, shows where it came
from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from course.terminal import options_of, parse, run_program

HELP = """usage: llm-serve MODEL [OPTIONS]

  llm-serve smollm2-135m               serve it on http://127.0.0.1:8000, with OpenAI's interface and a page to talk on
  llm-serve FOLDER --adapter german=ADAPTER
                                       a folder of transformers, with an adapter that requests name as their model
  llm-serve plan 13B --gpus 2 --memory 80
                                       what these GPUs can serve, before anything is loaded
  llm-serve bench http://127.0.0.1:8000 --rate 2
                                       what callers of a server wait, at two requests a second

`llm-serve MODEL --help` lists the options, and so do `llm-serve plan --help` and `llm-serve bench --help`.
"""


def serve(arguments: Sequence[str]) -> int:
    """`llm-serve MODEL`."""
    parser = options_of("llm-serve MODEL")
    parser.add_argument("model", help="smollm2-135m, a run of babygpt, a folder of transformers, also "
                        "one of a quantised model, or an id of the hub")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one and prints it (8000)")
    parser.add_argument("--served_model_name", help="what requests call it; MODEL by default")
    parser.add_argument("--api_key", help="that requests must bring; LLM_SERVE_API_KEY of the environment by default")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=FOLDER", help="may stand several times")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (float32)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (auto)")
    parser.add_argument("--block_size", type=int, default=16, help="positions in a block of the cache (16)")
    parser.add_argument("--num_blocks", type=int, default=512, help="blocks: all the memory of keys and values (512)")
    parser.add_argument("--max_num_seqs", type=int, default=32, help="answers that are written at once (32)")
    parser.add_argument("--max_num_batched_tokens", type=int, default=256, help="tokens of a step (256)")
    parser.add_argument("--max_waiting", type=int, default=256, help="requests that may wait; then 429 (256)")
    parser.add_argument("--kv_cache_dtype", default="auto", help="of keys and values: int8, int4, fp8, or auto (auto)")
    parser.add_argument("--no_prefix_caching", action="store_true", help="do not find beginnings of prompts again")
    parser.add_argument("--request_seconds", type=float, default=600.0, help="the longest of a request (600)")
    parser.add_argument("--shutdown_seconds", type=int, default=30, help="for open answers after SIGTERM (30)")
    parser.add_argument("--parent", type=int, help="number of the process with which this one ends (none)")
    options = parse(parser, arguments)
    if not 0 <= options.port < 65536:
        raise ValueError(f"--port {options.port} must be from 0 to 65535")
    if options.shutdown_seconds < 0:
        raise ValueError("--shutdown_seconds must be 0 or more")
    from llm_serve.engine.config import EngineConfig
    from llm_serve.server.run import end_with, load_engine, run
    from llm_serve.server.settings import ServerConfig

    if options.parent is not None:
        end_with(options.parent)
    config = EngineConfig(
        block_size=options.block_size, num_blocks=options.num_blocks, max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens, max_waiting=options.max_waiting,
        enable_prefix_caching=not options.no_prefix_caching, kv_cache_dtype=options.kv_cache_dtype,
    )  # fmt: skip
    key = os.environ.get("LLM_SERVE_API_KEY", "") if options.api_key is None else options.api_key
    name = options.served_model_name or Path(os.path.abspath(options.model)).name  # "." has no name
    server = ServerConfig(name, key, options.request_seconds)
    engine = load_engine(options.model, options.adapter, options.dtype, options.device, config)
    return run(engine, server, options.host, options.port, options.shutdown_seconds)


def run_command(given: Sequence[str]) -> int:
    """One command; the exit code. Help where none is named."""
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    if given[0] == "plan":
        from llm_serve.plan import main as plan

        return plan(given[1:])
    if given[0] == "bench":
        from llm_serve.bench import main as bench

        return bench(given[1:])
    return serve(given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    from llm_core.cli import told

    serving = (sys.argv[1:] if arguments is None else list(arguments))[:1] not in (["plan"], ["bench"])
    # uvicorn answers SIGTERM itself: it lets open answers end.
    return run_program("llm-serve", run_command, told, arguments, catch_sigterm=not serving)


if __name__ == "__main__":
    sys.exit(main())
