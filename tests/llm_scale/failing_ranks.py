"""Run as a module on two ranks, of which one fails."""

import sys
import time

import torch
import torch.distributed as dist


def main(how):
    """Sums over the ranks without an end; rank 1 raises, or leaves the sums and sleeps while rank 0 raises."""
    dist.init_process_group("gloo")
    for number in range(1_000_000):
        if number == 20 and dist.get_rank() == 1:
            if how == "raises":
                raise ValueError("rank 1 has had enough")
            time.sleep(600)
        if number == 20 and how == "sleeps":
            raise ValueError("rank 0 does not wait")
        dist.all_reduce(torch.ones(2))


if __name__ == "__main__":
    main(sys.argv[1])
