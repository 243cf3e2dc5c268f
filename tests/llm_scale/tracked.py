"""PyTorch's own estimate of an FSDP2 step's peak on a rank of N, without N ranks; a process of its own, for its group.

`python tracked.py N rows positions checkpointing` prints the bytes as JSON, optimiser states not among them.
"""

import json
import sys
from functools import partial

import torch
import torch.distributed as dist
from llm_core.config import GPTConfig
from llm_core.model import GPT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

CONFIG = GPTConfig(512, 256, num_hidden_layers=6, num_attention_heads=4, max_position_embeddings=256)


def main(ranks: int, batch: int, time: int, checkpointing: bool) -> float:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    mesh = dist.init_device_mesh("cpu", (ranks,))
    with FakeTensorMode():
        model = GPT(CONFIG)
        for block in model.model.layers:
            if checkpointing:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        tracker = FSDPMemTracker(model)
        tracker.track_inputs(())
        with tracker:
            for step in range(2):
                ids = torch.randint(512, (batch, time))
                model(ids, labels=ids).loss.backward()
                model.zero_grad()
                if step == 0:
                    tracker.reset_mod_stats()
        (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return snapshot["Total"]


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True")))
