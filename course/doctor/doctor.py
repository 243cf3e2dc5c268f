"""`course doctor`: what this machine has, what is wrong with it, and what to type."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from course.doctor import probe
from course.errors import CourseError, one_line
from course.hardware import cpu_name, ram
from course.plan.curriculum import find_root

GIB = 2**30
# Withdrawn from the index after their publisher's account was taken over.
WITHDRAWN = {"pytorch-lightning": ("2.6.2", "2.6.3"), "lightning": ("2.6.2", "2.6.3")}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: "ok", "note" (the course runs all the same) or "WRONG" (it would not).
        text: what was found.
        fix: what to type, or nothing.
    """

    level: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level:<6}{self.text}" + (f"\n      type: {self.fix}" if self.fix else "")


def main() -> int:
    """Print every finding; returns 1 when the course would not run."""
    findings = []
    for part in (python, packages, torch_and_scale, memory_and_disk, kernels, clone):
        for finding in _guarded(part):
            print(finding, flush=True)
            findings.append(finding)
    wrong = sum(finding.level == "WRONG" for finding in findings)
    print("\nthe course runs here" if not wrong else f"\nthe course does not run here: {wrong} to mend")
    return 1 if wrong else 0


def _guarded(part: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one part; one that cannot look is a finding too, and the others still speak."""
    try:
        yield from part()
    except Exception as error:  # a broken installation or machine raises anything
        yield Finding("WRONG", f"{part.__name__.replace('_', ' ')}: {one_line(error)}")


def python() -> Iterator[Finding]:
    """The interpreter against `requires-python`."""
    from packaging.specifiers import SpecifierSet

    text = f"Python {platform.python_version()} at {sys.executable}"
    try:
        wanted = metadata.metadata("course")["Requires-Python"]
    except metadata.PackageNotFoundError:
        yield Finding("WRONG", f"{text}; the package `course` is not installed in it", "uv sync")
        return
    if SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        yield Finding("ok", text)
    else:
        yield Finding("WRONG", f"{text}; the course needs {wanted}", "uv python install 3.12 && uv sync --python 3.12")


def packages() -> Iterator[Finding]:
    """Installed versions against the pins in the package's own metadata."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("course") or []
    except metadata.PackageNotFoundError:
        return  # `python` has said so
    good = 0
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        needed = marker is None or marker.evaluate({"extra": ""})
        if not needed and not (marker and marker.evaluate({"extra": "dev"})):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if needed:
                yield Finding("WRONG", f"{requirement.name} is not installed", "uv sync")
            continue
        fix = f'uv sync   (or: pip install "{requirement.name}{requirement.specifier}")'
        if installed in WITHDRAWN.get(requirement.name, ()):
            yield Finding("WRONG", f"{requirement.name} {installed} was withdrawn: it was tampered with", fix)
        # `==2.13.0` also holds for a build such as 2.13.0+cpu.
        elif requirement.specifier.contains(installed, prereleases=True):
            good += 1
        else:
            wanted = f"{requirement.name} {installed}, pinned {requirement.specifier}"
            yield Finding("note", f"{wanted}: the numbers may differ", fix)
    yield Finding("ok", f"{good} packages as pinned")


def torch_and_scale() -> Iterator[Finding]:
    """torch and its build, the GPUs, and the scale that notebooks pick, all asked of a child process."""
    answer = probe.ask()
    if "torch" not in answer:
        yield Finding("WRONG", answer.get("error", "torch cannot be imported"), "uv sync --reinstall-package torch")
        return
    build = f"built for CUDA {answer['cuda']}" if answer.get("cuda") else "a build without CUDA"
    yield Finding("ok", f"torch {answer['torch']}, {build}")
    gpus: list[dict[str, Any]] = answer.get("gpus", [])
    driver = answer.get("driver")
    for index, gpu in enumerate(gpus):
        bf16 = "bf16" if gpu["bf16"] else "no bf16: trains in fp32"
        size = f"{gpu['memory'] / GIB:.0f} GiB"
        yield Finding(
            "ok",
            f"GPU {index}: {gpu['name']}, {size}, capability {gpu['capability']}, {bf16}, driver {driver}",
        )
    if "gpu_error" in answer:
        yield Finding("note", f"the GPU cannot be asked: {answer['gpu_error']}", "nvidia-smi")
    elif driver and not gpus:
        if answer.get("cuda"):
            yield Finding(
                "note",
                f"driver {driver}, but torch sees no GPU (CUDA_VISIBLE_DEVICES, or too old a driver)",
                "nvidia-smi",
            )
        else:
            yield Finding(
                "note",
                f"driver {driver}, but this torch is built without CUDA",
                "uv sync --reinstall-package torch",
            )
    elif not gpus:
        yield Finding("ok", f"no NVIDIA GPU; CPU {cpu_name()}, in fp32")
    if "scale" in answer:
        yield Finding("ok", answer["scale"]["text"])
    else:
        names = [name for name in ("COURSE_SCALE", "COURSE_DEVICE") if os.environ.get(name)]
        yield Finding(
            "WRONG",
            f"no scale: {answer.get('error', 'unknown')}",
            f"unset {' '.join(names)}" if names else "",
        )


def memory_and_disk() -> Iterator[Finding]:
    """RAM and free disk. A kernel takes 0.4 GiB before it does anything; lessons take up to a few."""
    memory = ram() / GIB
    text = f"{memory:.1f} GiB of RAM"
    yield (
        Finding("ok", text) if memory >= 4 else Finding("note", f"{text}: run with --jobs 1, and close other programs")
    )
    free = shutil.disk_usage(Path.cwd()).free / GIB
    text = f"{free:.1f} GiB of disk free"
    if free < 0.5:
        yield Finding("WRONG", f"{text}: checkpoints and reports need some 0.5 GiB")
    else:
        yield Finding("ok", text) if free >= 3 else Finding("note", f"{text}: little for later modules")


def kernels() -> Iterator[Finding]:
    """The kernels JupyterLab will offer, and whether its "python3" is this interpreter."""
    install = f"{sys.executable} -m ipykernel install --sys-prefix"
    try:
        import ipykernel
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError as error:
        yield Finding("WRONG", f"no kernel for notebooks: {error}", "uv sync")
        return
    specs = KernelSpecManager().get_all_specs()
    if "python3" not in specs:
        offered = ", ".join(sorted(specs)) or "none"
        yield Finding("note", f"JupyterLab offers no kernel named python3 (offered: {offered})", install)
        return
    program = specs["python3"]["spec"]["argv"][0]
    # jupyter_client starts a bare "python" with its own interpreter.
    if program in ("python", "python3") or _same_file(program, sys.executable):
        others = ", ".join(sorted(set(specs) - {"python3"}))
        yield Finding(
            "ok",
            f"kernel python3 (ipykernel {ipykernel.__version__})" + (f"; also {others}" if others else ""),
        )
    else:
        yield Finding("note", f"JupyterLab's kernel python3 is another Python: {program}", install)


def clone() -> Iterator[Finding]:
    """The notebooks themselves."""
    try:
        yield Finding("ok", f"the course at {find_root()}")
    except CourseError as error:
        yield Finding("WRONG", str(error))


def _same_file(one: str, other: str) -> bool:
    # Not `samefile`: the pythons of two virtual environments may be links to one file.
    return os.path.normcase(os.path.abspath(one)) == os.path.normcase(os.path.abspath(other))
