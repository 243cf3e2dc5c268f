"""Published runs, and what `layout` says of them: how far its formulas are from machines.

Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM"
(arXiv:2104.04473), table 1, with 2,048 positions, a vocabulary of 51,200 and full recomputation; micro-batch and
parts a stage from the scripts of the same runs, NVIDIA/Megatron-LM, examples/sc21/run_table_1.sh. Section 5 names the
machine: nodes of eight A100 80GB, 312 teraFLOP/s in 16 bits, NVLink inside, 200 Gbit/s InfiniBand a GPU between.
NVLink's rate is not in it: 600 GB/s an A100, both directions together, by NVIDIA's data sheet.
"""

from __future__ import annotations

from typing import NamedTuple

from llm_core.config import GPTConfig

from llm_scale.layout import Cluster, Cost, Layout, cost

TIME, VOCABULARY = 2_048, 51_200


class Run(NamedTuple):
    """A row: `billions` of parameters, sizes, layout, rows of a batch, and achieved teraFLOP/s a GPU, which count what
    is computed twice."""

    billions: float
    heads: int
    hidden: int
    layers: int
    tensor: int
    pipeline: int
    gpus: int
    batch: int
    micro_batch: int
    chunks: int
    teraflops: int


NARAYANAN = (
    Run(1.7, 24, 2_304, 24, 1, 1, 32, 512, 16, 1, 137),
    Run(3.6, 32, 3_072, 30, 2, 1, 64, 512, 16, 1, 138),
    Run(7.5, 32, 4_096, 36, 4, 1, 128, 512, 16, 1, 142),
    Run(18.4, 48, 6_144, 40, 8, 1, 256, 1_024, 8, 1, 135),
    Run(39.1, 64, 8_192, 48, 8, 2, 512, 1_536, 4, 1, 138),
    Run(76.1, 80, 10_240, 60, 8, 4, 1_024, 1_792, 2, 3, 140),
    Run(145.6, 96, 12_288, 80, 8, 8, 1_536, 2_304, 2, 2, 148),
    Run(310.1, 128, 16_384, 96, 8, 16, 1_920, 2_160, 1, 2, 155),
    Run(529.6, 128, 20_480, 105, 8, 35, 2_520, 2_520, 1, 3, 163),
    Run(1_008.0, 160, 25_600, 128, 8, 64, 3_072, 3_072, 1, 1, 163),
)


def selene(gpus: int) -> Cluster:
    """So many A100 of that cluster."""
    return Cluster(8, gpus // 8, peak_flops=312e12, memory=80e9, link_inside=300e9, link_between=25e9)


def config_of(run: Run) -> GPTConfig:
    """A GPT of the same matrices: three of the MLP, 8/3 h wide, hold what the paper's two, 4 h wide, do."""
    return GPTConfig(
        VOCABULARY, run.hidden, num_hidden_layers=run.layers, num_attention_heads=run.heads,
        max_position_embeddings=TIME,
    )  # fmt: skip


def layout_of(run: Run) -> Layout:
    """Its layout; states were not sharded then, and sequence parallelism not yet invented."""
    data = run.gpus // run.tensor // run.pipeline
    return Layout(
        data, run.tensor, run.pipeline, run.micro_batch, "full", run.chunks, sequence=False, shard_states=False
    )


def predict(run: Run) -> Cost:
    """What `layout` says of it."""
    return cost(config_of(run), selene(run.gpus), layout_of(run), run.batch, TIME)


def ratios() -> list[float]:
    """Predicted over achieved FLOP/s of each row, both with what is computed twice.

    Above 1 by what the model on paper leaves out: products below the peak, and all that is no product.
    """
    return [predict(run).hfu * selene(run.gpus).peak_flops / (run.teraflops * 1e12) for run in NARAYANAN]
