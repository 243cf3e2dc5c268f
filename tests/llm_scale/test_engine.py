"""DeepSpeed's interface by hand: the losses of one process, its batch arithmetic, and what it refuses."""

import engine_jobs as jobs
import pytest
import torch
from llm_scale.parallel.engine import batch_sizes, read_config


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_as_one_process(stage, two):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = jobs.alone()
    torch.set_num_threads(threads)
    for losses in two.run(jobs.by_the_engine, stage):
        torch.testing.assert_close(losses, expected, atol=2e-5, rtol=0)  # sums in another order, enlarged by AdamW


@pytest.mark.parametrize(("given", "expected"), [
    ((24, None, None, 2), (12, 1)), ((24, 4, None, 2), (4, 3)), ((None, 4, 3, 2), (4, 3)), ((24, 4, 3, 2), (4, 3)),
    ((24, None, 3, 2), (4, 3)), ((None, 4, None, 2), (4, 1)),
])  # fmt: skip
def test_batch_sizes(given, expected):
    assert batch_sizes(*given) == expected


@pytest.mark.parametrize(("config", "words"), [
    ({"train_batch_size": 25, "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}},
     "train_batch_size=25 is not 4 rows x 3 passes x 2 ranks"),
    ({"zero_optimization": {"stage": 1}}, "give train_batch_size or"),
    ({"train_batch_size": 1, "zero_optimization": {"stage": 1}}, "train_batch_size=1 is not 0 rows"),
    ({"train_batch_size": 8, "fp16": {}}, "fp16: not known here"),
    ({"train_batch_size": 8}, "stage=0: stages 1, 2 and 3"),
])  # fmt: skip
def test_refusals(config, words):
    with pytest.raises(ValueError, match=words):
        read_config(config, 2)
