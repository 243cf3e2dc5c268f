"""`llm-ops deploy`: files for a place to serve in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from course.files import write_text
from course.terminal import options_of, parse
from llm_ops.deploy import container, kubernetes, ray_serve, slurm
from llm_ops.deploy.settings import Deployment, read

TARGETS = {"compose": container.files, "slurm": slurm.files, "kubernetes": kubernetes.files, "ray": ray_serve.files}


def deploy(arguments: Sequence[str]) -> int:
    """Write the files of a target into a folder; one that is there with other content is not written over."""
    parser = options_of("llm-ops deploy")
    parser.add_argument("target", help=f"one of {', '.join(TARGETS)}")
    parser.add_argument("--config", help="a YAML file such as Module-12/deployment.yaml; its defaults without one")
    parser.add_argument("--out", required=True, help="the folder that the files go into")
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    options = parse(parser, arguments)
    if options.target not in TARGETS:
        raise ValueError(f"there is no target {options.target!r}; there are {', '.join(TARGETS)}")
    files = TARGETS[options.target](read(options.config) if options.config else Deployment())
    folder = Path(options.out).expanduser()
    for name, text in files.items():
        path = folder / name
        if path.exists() and not options.force and path.read_text(encoding="utf-8", errors="replace") != text:
            raise ValueError(f"{path} is there with other content; give --force, or another --out")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)
        print(folder / name)
    return 0
