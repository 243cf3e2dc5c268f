"""`course doctor`: each thing that can be wrong is found, said in one line, with what to type."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from course.doctor import doctor, probe
from course.plan import curriculum

SCALE = {"name": "cpu", "hardware": "A CPU", "precision": "32-true", "reason": "r", "text": "scale cpu (r)"}
GPU = {"name": "NVIDIA H100", "memory": 80 * 2**30, "capability": "9.0", "bf16": True}
GOOD = {"torch": "2.13.0+cpu", "cuda": None, "gpus": [], "driver": None, "scale": SCALE}


def said(part: Callable[[], Iterator[doctor.Finding]]) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.text, finding.fix) for finding in part()]


def only(part: Callable[[], Iterator[doctor.Finding]], level: str) -> tuple[str, str]:
    """Text and fix of the one finding of a level."""
    found = [(text, fix) for seen, text, fix in said(part) if seen == level]
    assert len(found) == 1, said(part)
    return found[0]


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    original = metadata.version
    names = {name.replace("_", "-"): version for name, version in changed.items()}

    def version(name: str) -> str:
        if name not in names:
            return original(name)
        found = names[name]
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


def test_here_nothing_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COURSE_SCALE", raising=False)
    status = doctor.main()
    out = capsys.readouterr().out
    assert status == 0, out
    assert "WRONG" not in out and "the course runs here" in out
    for word in (
        "Python 3.",
        "packages as pinned",
        "torch 2.",
        "GiB of RAM",
        "GiB of disk",
        "kernel python3",
        "scale ",
    ):
        assert word in out


def test_packages_as_pinned_counts_local_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torch="2.13.0+cu130")
    assert {level for level, _, _ in said(doctor.packages)} == {"ok"}


def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, transformers="4.40.0")
    text, fix = only(doctor.packages, "note")
    assert text.startswith("transformers 4.40.0, pinned ==5.") and 'pip install "transformers==5.' in fix


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, peft=None)
    assert only(doctor.packages, "WRONG")[0] == "peft is not installed"
    versions(monkeypatch, ruff=None)  # needed by the tests only
    assert all("ruff" not in text for _, text, _ in said(doctor.packages))


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_a_withdrawn_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    versions(monkeypatch, pytorch_lightning=version)
    text, fix = only(doctor.packages, "WRONG")
    assert f"pytorch-lightning {version} was withdrawn" in text and "uv sync" in fix


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.4")
    text, fix = only(doctor.python, "WRONG")
    assert "Python 3.10.4" in text and ">=3.11" in text and "uv python install" in fix


def test_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    monkeypatch.setattr(metadata, "requires", missing)
    assert "not installed" in only(doctor.python, "WRONG")[0]
    assert said(doctor.packages) == []


@pytest.mark.parametrize(
    ("answer", "level", "text", "fix"),
    [
        ({"error": "import torch: OSError: libx.so"}, "WRONG", "import torch: OSError: libx.so", "uv sync --reinstall"),
        ({**GOOD, "driver": "570"}, "note", "this torch is built without CUDA", "uv sync"),
        ({**GOOD, "driver": "570", "cuda": "13.0"}, "note", "torch sees no GPU", "nvidia-smi"),
        ({**GOOD, "gpu_error": "RuntimeError: busy"}, "note", "cannot be asked: RuntimeError: busy", "nvidia-smi"),
    ],
)
def test_torch_and_gpus(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], level: str, text: str, fix: str
) -> None:
    monkeypatch.setattr(probe, "ask", lambda: answer)
    found = only(doctor.torch_and_scale, level)
    assert text in found[0] and fix in found[1]


def test_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {**GPU, "name": "Tesla T4", "capability": "7.5", "bf16": False}
    answer = {**GOOD, "cuda": "13.0", "driver": "570.1", "gpus": [GPU, old]}
    monkeypatch.setattr(probe, "ask", lambda: answer)
    texts = [text for level, text, _ in said(doctor.torch_and_scale) if level == "ok"]
    assert "GPU 0: NVIDIA H100, 80 GiB, capability 9.0, bf16, driver 570.1" in texts
    assert "GPU 1: Tesla T4, 16 GiB" not in texts and any("Tesla T4" in text and "no bf16" in text for text in texts)


def test_a_bad_scale(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COURSE_SCALE", "tpu")
    assert doctor.main() == 1  # asks a real child
    out = capsys.readouterr().out
    assert "WRONG no scale: COURSE_SCALE='tpu' is not a scale" in out and "type: unset COURSE_SCALE" in out
    assert "Traceback" not in out and out.endswith("the course does not run here: 1 to mend\n")


def test_a_torch_that_breaks_or_crashes_on_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open\\nmore')")
    assert probe.ask()["error"] == "import torch: OSError: libtorch_cpu.so: cannot open"
    (tmp_path / "torch.py").write_text("import os; os._exit(4)")
    assert probe.ask()["error"] == "importing torch ended with status 4"


def test_a_torch_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired("python", options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert "not imported within" in probe.ask()["error"]


def test_little_memory_and_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor, "ram", lambda: 2 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**27))
    assert [level for level, _, _ in said(doctor.memory_and_disk)] == ["note", "WRONG"]


def kernels(monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    specs = {name: {"spec": {"argv": [program]}} for name, program in programs.items()}
    monkeypatch.setattr(KernelSpecManager, "get_all_specs", lambda self: specs)


def test_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels(monkeypatch, python3=sys.executable, ir="R")
    assert "also ir" in only(doctor.kernels, "ok")[0]
    kernels(monkeypatch, python3="python")
    assert only(doctor.kernels, "ok")
    kernels(monkeypatch, python3="/opt/other/bin/python")
    text, fix = only(doctor.kernels, "note")
    assert "another Python: /opt/other/bin/python" in text and "ipykernel install --sys-prefix" in fix
    kernels(monkeypatch, ir="R")
    assert "no kernel named python3 (offered: ir)" in only(doctor.kernels, "note")[0]
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    assert only(doctor.kernels, "WRONG")[1] == "uv sync"


def test_no_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(curriculum, "__file__", str(tmp_path / "a/b.py"))
    monkeypatch.chdir(tmp_path)
    assert "cd into the clone" in only(doctor.clone, "WRONG")[0]


def test_the_probe_answers_in_json() -> None:
    answer = probe.ask()
    assert json.dumps(answer) and answer["torch"].startswith("2.") and isinstance(answer["gpus"], list)
