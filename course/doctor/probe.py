"""What torch sees on this machine, asked of a child process: the command line itself never imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SECONDS = 180


def ask() -> dict[str, Any]:
    """The child's answer; where it has none, an "error" says why in one line."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", "course.doctor.probe"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"torch was not imported within {SECONDS} s"}
    lines = child.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        said = child.stderr.strip().splitlines()
        return {"error": said[-1] if said else f"importing torch ended with status {child.returncode}"}
    return answer if isinstance(answer, dict) else {"error": f"unexpected answer {lines[-1][:100]!r}"}


def look() -> dict[str, Any]:
    """What the child finds out."""
    answer: dict[str, Any] = {"driver": _driver()}
    try:
        import torch
    except Exception as error:  # a broken installation raises anything: OSError for a missing library, too
        first = str(error).strip().splitlines()
        return {**answer, "error": f"import torch: {type(error).__name__}: {first[0] if first else ''}"}
    answer["torch"] = torch.__version__
    answer["cuda"] = torch.version.cuda
    answer["gpus"] = []
    try:
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            properties = torch.cuda.get_device_properties(index)
            answer["gpus"].append(
                {
                    "name": properties.name,
                    "memory": properties.total_memory,
                    "capability": f"{properties.major}.{properties.minor}",
                    "bf16": properties.major >= 8,
                }
            )
    except Exception as error:
        answer["gpu_error"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    try:
        from course.hardware import detect

        scale = detect()
        answer["scale"] = {key: getattr(scale, key) for key in ("name", "hardware", "precision", "reason")}
        answer["scale"]["text"] = str(scale)
    except Exception as error:
        answer["error"] = str(error)
    return answer


def _driver() -> str | None:
    """The NVIDIA driver's version, None without one."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, errors="replace", timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    lines = asked.stdout.strip().splitlines()
    return lines[0].strip() if lines else None


if __name__ == "__main__":
    print(json.dumps(look()))
