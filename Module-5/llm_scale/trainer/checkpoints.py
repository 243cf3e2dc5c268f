"""Sharded checkpoints: each rank writes its part of weights and optimiser states, and any number of ranks reads them.

A checkpoint is a folder: the tensors as `torch.distributed.checkpoint` keeps them, `facts.pt` with the rest (loops,
schedule, position of the data, random states, configuration, tokenizer), and `seal.json` with the size and sha256 of
each file, which is written last. On several nodes the folder lies on a file system that all of them see.

Go on from your own checkpoints only: torch keeps the list of tensors in a pickle, whose reading can run code.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from llm_core.store.checkpoints import model_from_checkpoint
from llm_core.store.registry import save_model
from llm_data.whole_files import checksum, read_facts, write_facts
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import Strategy
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel

from course.files import sync

SEAL, FACTS = "seal.json", "facts.pt"
NAME = re.compile(r"step-(\d+)")


def name_of(step: int) -> str:
    """The folder's name of the checkpoint of a step."""
    return f"step-{step:08d}"


def what_is_wrong(path: Path, rank: int = 0, size: int = 1) -> str:
    """Why a folder is no whole checkpoint, or nothing; of N ranks each reads an N-th of the files."""
    if not path.is_dir():
        return "there is no such folder"
    written = read_facts(path / SEAL)
    if written is None:
        return f"its {SEAL} is missing or damaged: it was not written to its end, or is another folder"
    for name, (length, digest) in sorted(written.items())[rank::size]:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != length:
            return f"{name} has {file.stat().st_size:,} of {length:,} bytes"
        if checksum((file,)) != digest:
            return f"{name} is not what was written"
    return ""


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, the newest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def refuse_unless_whole(path: Path) -> None:
    """Read every byte of a checkpoint, all ranks together, and compare it with what was written.

    Raises:
        ValueError: with the file that differs, and the last whole checkpoint before this one; on every rank alike.
    """
    spread = dist.is_initialized()
    reasons = [what_is_wrong(path, dist.get_rank(), dist.get_world_size()) if spread else what_is_wrong(path)]
    if spread:
        own, reasons = reasons[0], [""] * dist.get_world_size()
        dist.all_gather_object(reasons, own)
    reason = next(filter(None, reasons), "")
    if not reason:
        return
    siblings = checkpoints_in(path.parent)
    earlier = siblings[siblings.index(path) + 1 :] if path in siblings else siblings
    whole = next((each for each in earlier if not what_is_wrong(each)), None)
    advice = f"the last whole one before it is {whole}" if whole else "and there is no whole one before it: begin anew"
    raise ValueError(f"{path} is no whole checkpoint ({reason}); {advice}")


def write_checkpoint(path: Path, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, and move it there once it is whole. Every rank calls this.

    Args:
        path: the folder; one that is there is replaced.
        tensors: nested, with `DTensor`s where a rank holds a part.
        facts: plain values and small tensors; rank 0's are written.
    """
    spread = dist.is_initialized()
    rank = dist.get_rank() if spread else 0
    part, old = (path.with_name(f".{path.name}.{word}") for word in ("part", "old"))
    if rank == 0:
        for left in (part, old):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
    if spread:
        dist.barrier()
    dcp.save(tensors, storage_writer=FileSystemWriter(part), no_dist=not spread)
    if rank == 0:
        torch.save(facts, part / FACTS)
        sync(part / FACTS)
    mine = sorted(part.glob(f"__{rank}_*")) + ([part / ".metadata", part / FACTS] if rank == 0 else [])
    written = [{file.name: (file.stat().st_size, checksum((file,))) for file in mine}]
    if spread:
        own, written = written[0], [{}] * dist.get_world_size()
        dist.all_gather_object(written, own)
    if rank == 0:
        write_facts(part / SEAL, {name: values for each in written for name, values in each.items()})
        if path.exists():
            path.rename(old)
        part.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    if spread:
        dist.barrier()


def shapes_in(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by name, as tensors without memory."""
    found = FileSystemReader(path).read_metadata().state_dict_metadata
    return {
        name.removeprefix("model."): torch.empty(each.size, dtype=each.properties.dtype, device="meta")
        for name, each in found.items()
        if name.startswith("model.") and isinstance(each, TensorStorageMetadata)
    }


def load_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Fill tensors, or a rank's parts of them, in place."""
    dcp.load(tensors, storage_reader=FileSystemReader(path), no_dist=not dist.is_initialized())


class ShardedCheckpoints(Strategy):
    """What a strategy of Lightning's does about checkpoints here, whatever else it does.

    All strategies write the same names and shapes, so that each goes on from any other's, on any number of ranks. The
    numbers then differ in their last digits: sums over other parts round otherwise.
    """

    _path: Path

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    @property
    def _module(self) -> nn.Module:
        """What names the parameters as the LightningModule does."""
        module = self.model if isinstance(self.model, FullyShardedDataParallel) else self.lightning_module
        assert module is not None
        return module

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return get_model_state_dict(self._module)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return get_optimizer_state_dict(self._module, inner)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """`write_checkpoint` of what Lightning has gathered."""
        path, facts = Path(self.broadcast(str(filepath))), dict(checkpoint)
        tensors: dict[str, Any] = {"model": facts.pop("state_dict")}
        facts["optimizer_states"] = [
            {"param_groups": each["param_groups"]} for each in facts.get("optimizer_states", [])
        ]
        for number, state in enumerate(checkpoint.get("optimizer_states", [])):
            tensors[f"optimizer_{number}"] = state["state"]
        write_checkpoint(path, tensors, facts)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The facts of a checkpoint, and the shapes of its weights: enough to compare it with this run.

        Raises:
            ValueError: for one that is not whole.
        """
        self._path = Path(self.broadcast(str(checkpoint_path)))
        refuse_unless_whole(self._path)
        facts: dict[str, Any] = torch.load(self._path / FACTS, map_location="cpu", weights_only=True)
        return {**facts, "state_dict": shapes_in(self._path)}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Read this rank's part of the weights."""
        state = get_model_state_dict(self._module)
        load_tensors(self._path, {"model": state})
        set_model_state_dict(self._module, state)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Read this rank's part of the optimiser's states."""
        for number, optimizer in enumerate(self.optimizers):
            state: dict[str, Any] = get_optimizer_state_dict(self._module, optimizer)
            load_tensors(self._path, {f"optimizer_{number}": state["state"]})
            for group, saved in zip(
                state["param_groups"], checkpoint["optimizer_states"][number]["param_groups"], strict=True
            ):
                group.update({key: value for key, value in saved.items() if key != "params"})
            set_optimizer_state_dict(self._module, optimizer, state)


def consolidate(checkpoint: Path | str, folder: Path | str) -> None:
    """Make one model of a sharded checkpoint: a folder that transformers loads, and `llm_core.load_model` too.

    One process does it, without a GPU: the weights have to fit into its memory, and twice on the disk.

    Raises:
        ValueError: for a checkpoint that is not whole, and a folder that is there already.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists; give a new folder")
    refuse_unless_whole(checkpoint)
    facts: dict[str, Any] = torch.load(checkpoint / FACTS, map_location="cpu", weights_only=True)
    weights = {name: torch.empty_like(each, device="cpu") for name, each in shapes_in(checkpoint).items()}
    dcp.load({"model": weights}, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    whole = part / "whole.ckpt"  # as `babygpt` writes them, and reads them with all its checks
    try:
        torch.save({**facts, "state_dict": weights}, whole)
        model, tokenizer = model_from_checkpoint(whole)
        save_model(model.to(next(iter(weights.values())).dtype), tokenizer, part)
        del model
        whole.unlink()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
