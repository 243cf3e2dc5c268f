"""What this machine is, and which of the three scales a notebook runs at: `cpu`, `gpu` or `multi-gpu`."""

from __future__ import annotations

import functools
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
NAMES = ("cpu", "gpu", "multi-gpu")


@dataclass(frozen=True)
class Scale:
    """The machine, as a notebook needs to know it. `print(scale)` says it in one line.

    Attributes:
        name: "cpu", "gpu" or "multi-gpu". Apple's MPS counts as "cpu".
        device: where tensors go: "cpu", "cuda" or "mps".
        num_devices: processes a distributed job gets: the number of GPUs, or 1.
        memory: bytes of one device (the RAM, where the device is the CPU).
        precision: what the device does well, in Lightning's words: "32-true" or "bf16-mixed".
        hardware: the device's name, for records.
        reason: why this scale was chosen.
    """

    name: str
    device: str
    num_devices: int
    memory: int
    precision: str
    hardware: str
    reason: str

    def pick(self, *, cpu: T, gpu: T, multi_gpu: T) -> T:
        """The value for this machine; all three stand in the cell, where the reader sees them."""
        return {"cpu": cpu, "gpu": gpu, "multi-gpu": multi_gpu}[self.name]

    @property
    def accelerator(self) -> str:
        """The device in Lightning's words, for `Trainer(accelerator=...)`: "cpu", "gpu" or "mps"."""
        return {"cuda": "gpu"}.get(self.device, self.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype matrix products run in at `precision`."""
        import torch

        return torch.bfloat16 if self.precision.startswith("bf16") else torch.float32

    def __str__(self) -> str:
        return (
            f"scale {self.name} ({self.reason}): {self.num_devices} x {self.hardware}, "
            f"{self.memory / 2**30:.0f} GiB, {self.precision}"
        )


def detect(environ: dict[str, str] | None = None) -> Scale:
    """Choose the scale from the hardware, or as `COURSE_SCALE` (a scale's name) and `COURSE_DEVICE=mps` say.

    Raises:
        ValueError: for an unknown name, or one this machine cannot serve.
    """
    import torch

    env = os.environ if environ is None else environ
    wanted = env.get("COURSE_SCALE", "")
    wanted_device = env.get("COURSE_DEVICE", "")
    if wanted and wanted not in NAMES:
        raise ValueError(f"COURSE_SCALE={wanted!r} is not a scale; use one of {', '.join(NAMES)}, or unset it")
    if wanted_device not in ("", "mps"):
        raise ValueError(f"COURSE_DEVICE={wanted_device!r}: only 'mps' can be forced; else use COURSE_SCALE")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    needed = {"": 0, "cpu": 0, "gpu": 1, "multi-gpu": 2}[wanted]
    if gpus < needed:
        raise ValueError(
            f"COURSE_SCALE={wanted} needs {needed} CUDA GPU{'s' * (needed > 1)} and torch sees {gpus}; "
            "unset it, or run `course doctor`"
        )
    name = wanted or NAMES[min(gpus, 2)]
    chosen = "set by COURSE_SCALE" if wanted else None
    if name != "cpu":
        properties = torch.cuda.get_device_properties(0)
        # Ampere (8.0) is the first generation with bf16 units; is_bf16_supported() also says yes to
        # emulation.
        return Scale(
            name=name,
            device="cuda",
            num_devices=gpus if name == "multi-gpu" else 1,
            memory=properties.total_memory,
            precision="bf16-mixed" if properties.major >= 8 else "32-true",
            hardware=properties.name,
            reason=chosen or f"torch sees {gpus} CUDA GPU{'s' * (gpus > 1)}",
        )
    mps = torch.backends.mps.is_available()
    if wanted_device == "mps":
        if not mps:
            raise ValueError("COURSE_DEVICE=mps, but torch sees no Apple GPU; unset it")
        reason = "COURSE_DEVICE=mps; numbers differ from a CPU's"
        return Scale("cpu", "mps", 1, ram(), "32-true", "Apple MPS", reason)
    found = "an Apple GPU counts as cpu; COURSE_DEVICE=mps uses it" if mps else "torch sees no CUDA GPU"
    reason = chosen or found
    return Scale("cpu", "cpu", 1, ram(), "32-true", cpu_name(), reason)


def ram() -> int:
    """Bytes of memory that this machine, or the container around it, may use."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no cgroup, or "max"
            continue
    return total


@functools.cache
def cpu_name() -> str:
    """The processor's name with the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").split("\n"):
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name} ({cores()} cores)"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """The device a claim was measured on, for its record. Without torch in the process that is the CPU."""
    if "torch" not in sys.modules:
        return cpu_name()
    return _detected_hardware()


@functools.cache
def _detected_hardware() -> str:
    found = detect()
    return f"{found.num_devices} x {found.hardware}"
