"""`rag`: index a folder, ask it, and measure how well it is searched.

A mistake is one line on stderr and exit code 1; COURSE_TRACEBACK=1, or `rag --traceback ...`, shows where it came from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from course.terminal import options_of, parse, run_program

HELP = """usage: rag COMMAND [OPTIONS]

  rag index FOLDER --store FILE        put a folder's texts into a store; again, and only what changed is encoded
  rag ask "..." --store FILE           an answer from the passages found, its citations checked
  rag ask "..." --store FILE --kind passages
                                       only the passages; --method words needs no encoder
  rag eval                             recall of each method: which function does a docstring describe?
  rag eval --pairs FILE.jsonl --store FILE
                                       the same on your own questions

`rag COMMAND --help` lists the options.
"""
ENCODER = "minilm, or a folder that BiEncoder.save wrote (minilm)"


def index(arguments: Sequence[str]) -> int:
    """`rag index`."""
    parser = options_of("rag index")
    parser.add_argument("folder", help="of documents; what is no text is left out and named")
    parser.add_argument("--store", required=True, help="the file to keep them in")
    parser.add_argument("--encoder", default="minilm", help=ENCODER)
    parser.add_argument("--chunk_size", type=int, help="the most characters of a passage (600)")
    parser.add_argument("--chunk_overlap", type=int, help="characters that the next passage repeats, at most (100)")
    parser.add_argument("--max_bytes", type=int, help="of a file; larger ones are left out (4194304)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    options = parse(parser, arguments)
    if options.max_bytes is not None and options.max_bytes < 1:
        raise ValueError(f"--max_bytes {options.max_bytes} must be at least 1")
    _quiet()
    from llm_rag.command.index import run

    print(run(options.folder, options.store, options.encoder, options.chunk_size, options.chunk_overlap,
              options.max_bytes, options.json))  # fmt: skip
    return 0


def ask(arguments: Sequence[str]) -> int:
    """`rag ask`."""
    parser = options_of("rag ask")
    parser.add_argument("question")
    parser.add_argument("--store", required=True, help="a file that `rag index` wrote")
    parser.add_argument("--k", type=int, default=5, help="passages that are looked for (5)")
    parser.add_argument("--method", default="hybrid", help="words, vectors, or hybrid (hybrid)")
    parser.add_argument("--kind", default="generated", choices=("generated", "extracted", "passages"),
                        help="a model's words, a sentence of a passage, or only the passages (generated)")  # fmt: skip
    parser.add_argument("--model", default="smollm2-135m", help="that answers (smollm2-135m)")
    parser.add_argument("--encoder", default="minilm", help=ENCODER)
    parser.add_argument("--budget", type=int, default=1024, help="tokens of the prompt (1024)")
    parser.add_argument("--max_new_tokens", type=int, default=120, help="the most of an answer (120)")
    parser.add_argument("--show", action="store_true", help="print the passages whole")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parse(parser, arguments)
    _quiet()
    from llm_rag.command.ask import run

    print(run(options.question, options.store, options.k, options.method, options.model, options.encoder,
              options.budget, options.max_new_tokens, options.kind, options.show, options.json))  # fmt: skip
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """`rag eval`."""
    parser = options_of("rag eval")
    parser.add_argument("--pairs", help='a .jsonl file of {"question": ..., "path" or "answer": ...}')
    parser.add_argument("--store", help="where these are asked")
    parser.add_argument("--limit", type=int, help="docstrings of the library that are taken; all by default")
    parser.add_argument("--hidden", action="store_true", help="without the functions' own names")
    parser.add_argument("--k", type=int, default=10, help="of the recall (10)")
    parser.add_argument("--encoder", default="minilm", help=ENCODER)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parse(parser, arguments)
    if options.limit is not None and options.limit < 2:
        raise ValueError(f"--limit {options.limit} must be at least 2")
    _quiet()
    from llm_rag.command.evaluate import run

    print(run(options.pairs, options.store, options.limit, options.hidden, options.k, options.encoder, options.json))
    return 0


def _quiet() -> None:
    """Without the libraries' chatter."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def run_command(given: Sequence[str]) -> int:
    """One command; the exit code. Help where none is named."""
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    commands = {"index": index, "ask": ask, "eval": evaluate}
    if given[0] not in commands:
        raise ValueError(f"no command {given[0]!r}; choose {', '.join(commands)}")
    return commands[given[0]](given[1:])


def told(error: BaseException) -> str:
    """An error in one line; Lightning and the option parser of others are imported only where they are needed."""
    if isinstance(error, ValueError):
        return " ".join(str(error).split())[:1000]
    from llm_core.cli import told as told_by_babygpt

    return told_by_babygpt(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    return run_program("rag", run_command, told, arguments, "index", "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
