"""From FLOPs to days: the peaks of GPUs, and the share of them that arrives in a model."""

from __future__ import annotations

# FLOP/s of dense bf16 products, by `torch.cuda.get_device_name()`. NVIDIA's data sheets of the H100, H200 and A100; for
# Hopper they print twice this, "with sparsity". Exact names only: a part of a GPU (MIG) has another name and peak.
PEAK_FLOPS: dict[str, float] = {
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of a GPU in FLOP/s; None for a device that is not in the table."""
    return PEAK_FLOPS.get(device_name)


def days(flops: float, peak: float, mfu: float, gpus: int = 1) -> float:
    """Days for `flops` on `gpus` devices of `peak` FLOP/s each, of which a share `mfu` arrives in the model.

    Args:
        flops: of the whole training: `flops_per_token` times tokens.
        peak: FLOP/s of one device, dense.
        mfu: model FLOPs utilisation, above 0 and at most 1. It falls with the number of devices; this is that of all.
        gpus: devices.

    Raises:
        ValueError: for a share that cannot be.
    """
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu={mfu} must be above 0 and at most 1; it is a share of the peak")
    return flops / (gpus * peak * mfu) / 86_400
