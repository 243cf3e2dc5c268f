"""The scale follows the hardware, and says no where it cannot follow the reader."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from course import hardware


def pretend(monkeypatch: pytest.MonkeyPatch, *, gpus: int = 0, major: int = 9, mps: bool = False) -> None:
    """A machine with so many GPUs."""
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "name", "device", "devices"),
    [(0, "cpu", "cpu", 1), (1, "gpu", "cuda", 1), (2, "multi-gpu", "cuda", 2), (8, "multi-gpu", "cuda", 8)],
)
def test_scale_follows_the_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, name: str, device: str, devices: int
) -> None:
    pretend(monkeypatch, gpus=gpus)
    scale = hardware.detect({})
    assert (scale.name, scale.device, scale.num_devices) == (name, device, devices)
    assert scale.pick(cpu="cpu", gpu="gpu", multi_gpu="multi-gpu") == name
    assert scale.precision == ("32-true" if name == "cpu" else "bf16-mixed")
    assert scale.accelerator == ("cpu" if name == "cpu" else "gpu")
    assert str(gpus or "no") in scale.reason and name in str(scale)


def test_bf16_needs_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=1, major=7)
    scale = hardware.detect({})
    assert scale.precision == "32-true" and scale.dtype == torch.float32


def test_override_takes_a_smaller_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=2)
    assert hardware.detect({"COURSE_SCALE": "cpu"}).device == "cpu"
    one = hardware.detect({"COURSE_SCALE": "gpu"})
    assert (one.name, one.num_devices, one.reason) == ("gpu", 1, "set by COURSE_SCALE")


@pytest.mark.parametrize(("wanted", "gpus"), [("gpu", 0), ("multi-gpu", 0), ("multi-gpu", 1)])
def test_impossible_override_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str, gpus: int) -> None:
    pretend(monkeypatch, gpus=gpus)
    with pytest.raises(ValueError, match=f"torch sees {gpus}; unset it"):
        hardware.detect({"COURSE_SCALE": wanted})


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(ValueError, match="use one of cpu, gpu, multi-gpu"):
        hardware.detect({"COURSE_SCALE": "tpu"})
    with pytest.raises(ValueError, match="only 'mps' can be forced"):
        hardware.detect({"COURSE_DEVICE": "cuda:1"})


def test_mps_counts_as_cpu_and_may_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, mps=True)
    scale = hardware.detect({})
    assert (scale.name, scale.device) == ("cpu", "cpu") and "Apple GPU" in scale.reason
    forced = hardware.detect({"COURSE_DEVICE": "mps"})
    assert (forced.name, forced.device, forced.accelerator) == ("cpu", "mps", "mps")
    pretend(monkeypatch, mps=False)
    with pytest.raises(ValueError, match="no Apple GPU"):
        hardware.detect({"COURSE_DEVICE": "mps"})


def test_memory_and_cores_are_of_this_machine() -> None:
    assert 2**28 < hardware.ram() < 2**50
    assert hardware.cores() >= 1 and f"({hardware.cores()} cores)" in hardware.cpu_name()
