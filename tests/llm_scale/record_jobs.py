"""What the tests of the race and of its records run on each rank."""

import gc
import time

import torch
import torch.distributed as dist
from llm_scale.collectives import from_all
from llm_scale.records import contenders
from llm_scale.records.contenders import CONTENDERS
from llm_scale.records.task import Task
from llm_scale.records.watch import Watch, peak_on_cpu, turn

TASK = Task("1M", 2, 64)


def sleeps(seconds, before=0.0, rank=0):
    """A way of training whose steps sleep on one rank; those before the first that counts sleep longer."""

    def train(watch):
        for step in range(watch.total):
            if dist.get_rank() == rank:
                time.sleep(before if step < watch.warmup else seconds)
            watch.step_done()

    return train


def slept(seconds, before=0.0, rank=0):
    return turn(sleeps(seconds, before, rank), "cpu", 2, 3)


def stops_early():
    def train(watch):
        watch.step_done()

    return turn(train, "cpu", 1, 1)


def losses(kind, *arguments, steps=4):
    """The mean over ranks of each step's loss."""
    step = getattr(contenders, kind)(TASK, *arguments)
    found = [from_all(step().item()) for _ in range(steps)]
    return [sum(each) / len(each) for each in found]


def losses_of_the_trainer(steps=4):
    """The same of the trainer, by its own log, and how many steps it has told the watch of."""
    from llm_scale.trainer import train

    kept, original = [], train.LossLog

    class Kept(original):
        def __init__(self):
            super().__init__()
            kept.append(self)

    train.LossLog = Kept
    watch = Watch("cpu", 1, steps - 1)
    try:
        contenders.trainer(TASK, watch)
    finally:
        train.LossLog = original
    return [line["loss"] for line in kept[0].lines], watch.done


def peaks(names, task):
    """Measured and predicted bytes of the ways of training of these names."""
    found = {}
    for name in names:
        contender = CONTENDERS[name]
        peak = peak_on_cpu(lambda watch, train=contender.train: train(task, watch))
        found[name] = peak, contender.predicted(task, dist.get_world_size())
    return found


def left(names):
    """Parameters that a turn of each leaves behind, by name."""
    found = {}
    for name in names:
        before = _parameters()
        CONTENDERS[name].train(TASK, Watch("cpu", 1, 1))
        found[name] = _parameters() - before
    return found


def _parameters():
    gc.collect()
    return sum(type(each) is torch.nn.Parameter for each in gc.get_objects())
