"""The environment and the interpreter of every kernel: for `course run` and for notebooks under pytest the same."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from course.errors import CourseError
from course.folders import absolute_folders


def kernel_environment(env: Mapping[str, str], notebook: str, claims: Path | None) -> dict[str, str | None]:
    """What a kernel's environment has other than this process's, so that a notebook runs the same everywhere.

    Args:
        env: of this process.
        notebook: its path relative to the root, for the records of its claims.
        claims: the file that its claims are appended to.

    Returns:
        Names and values; None for a name that is to be taken out.
    """
    return {
        **absolute_folders(env),
        # One thread: sums are added in the same order everywhere, and on cores that others use too, several threads
        # were up to eight times slower than one. A reader who sets the variable knows better.
        "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONHASHSEED": "0",
        # Without bytecode each kernel compiles torch's and Lightning's thousands of files anew: 9 CPU seconds.
        "PYTHONDONTWRITEBYTECODE": None,
        "COURSE_NOTEBOOK": notebook,
        "COURSE_CLAIMS": None if claims is None else str(claims),
    }


def kernel_manager(**options: Any) -> Any:
    """A manager of kernels that knows one, the one of the running interpreter.

    The one that JupyterLab calls "python3" may point to another environment.

    Raises:
        CourseError: when ipykernel is not installed.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    try:
        from ipykernel.kernelspec import get_kernel_dict
    except ImportError:
        raise CourseError(
            f"no Python kernel in this environment; type: {sys.executable} -m pip install ipykernel"
        ) from None

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> Any:
            return KernelSpec(resource_dir="", **get_kernel_dict())

    return AsyncKernelManager(**{**options, "kernel_name": "python3", "kernel_spec_manager": ThisInterpreter()})
