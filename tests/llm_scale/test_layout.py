"""The cost of a layout: its parts by hand, published runs and findings, and the choice among hundreds."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import pytest
from llm_core.config import GPTConfig
from llm_core.costs.counts import CONFIGS, flops_per_token, num_parameters
from llm_scale import layout, published
from llm_scale.layout import Cluster, Layout

# Round numbers, so that everything can be done by hand: 1 layer has 12 h² = 3 x 2^20 parameters.
SMALL = GPTConfig(1_024, 512, 1_536, num_hidden_layers=4, num_attention_heads=8, max_position_embeddings=1_024)
H100 = {"gpus_per_node": 8, "peak_flops": 989e12, "memory": 80e9, "link_inside": 450e9, "link_between": 50e9}


def small(gpus: int, **changes: float) -> Cluster:
    return Cluster(**({"gpus_per_node": gpus, "nodes": 1, "peak_flops": 1e12, "memory": 1e9, "link_inside": 1e9,
                       "link_between": 1e8} | changes))  # fmt: skip


def test_one_gpu_is_flops_over_peak() -> None:
    """6 M + 12 L C T a token, and 16 bytes a parameter."""
    cost = layout.cost(SMALL, small(1), Layout(1, 1, 1, 2), global_batch=8, time=256)
    assert cost.seconds == cost.compute == pytest.approx(8 * 256 * flops_per_token(SMALL, 256) / 1e12, rel=1e-12)
    assert cost.mfu == pytest.approx(1, rel=1e-12)
    assert cost.weights + cost.gradients + cost.states == 16 * num_parameters(SMALL)


def test_tensor_parallelism_by_hand() -> None:
    cost = layout.cost(SMALL, small(4), Layout(1, 4, 1, 2), global_batch=8, time=256)
    # Four all-reduces a layer and two at the ends, of 2 x 256 x 512 numbers of 2 bytes, 2 x 3 / 4 of it each, for each
    # of four micro-batches.
    assert cost.tensor == 4 * (4 * 4 + 2) * 2 * 256 * 512 * 2 * 1.5 / 1e9
    assert cost.compute == pytest.approx(8 * 256 * flops_per_token(SMALL, 256) / 4 / 1e12, rel=1e-12)
    again = layout.cost(SMALL, small(4), Layout(1, 4, 1, 2, "full"), global_batch=8, time=256)
    assert again.tensor == 4 * (4 * 6 + 2) * 2 * 256 * 512 * 2 * 1.5 / 1e9
    between = layout.cost(SMALL, small(2, nodes=2), Layout(1, 4, 1, 2), global_batch=8, time=256)
    assert between.tensor == pytest.approx(5 * cost.tensor)  # the slow link is ten times slower, and there are two


def test_the_pipeline_by_hand() -> None:
    """Four micro-batches on two stages: one in five of the time is bubble, and half the layers are on each."""
    cost = layout.cost(SMALL, small(2), Layout(1, 1, 2, 2), global_batch=8, time=256)
    assert cost.bubble == pytest.approx(cost.seconds / 5, rel=1e-12)
    assert cost.handover == 4 * 2 * 2 * 256 * 512 * 2 / 1e9
    half = 2 * (4 * 512**2 + 3 * 512 * 1_536) + 1_024 * 512 + 9 * 512 / 2
    assert cost.weights == 2 * half
    # The first of two stages keeps two micro-batches of two layers: 34 bytes a number, and 5 a s / h for the scores.
    assert cost.activations == 2 * 2 * 256 * 2 * 512 * (34 + 5 * 8 * 256 / 512)
    two = layout.cost(SMALL, small(2), Layout(1, 1, 2, 2, chunks=2), global_batch=8, time=256)
    assert two.bubble / two.seconds == pytest.approx(1 / 9, rel=1e-12)
    assert two.activations == cost.activations * 1.25


def test_data_parallelism_by_hand() -> None:
    cost = layout.cost(SMALL, small(4), Layout(4, 1, 1, 2), global_batch=8, time=256)
    parameters = num_parameters(SMALL)
    assert cost.data == 2 * 3 / 4 * 2 * parameters / 1e9  # reduce-scatter and all-gather, 2 bytes each
    assert cost.states == 12 * parameters / 4
    whole = layout.cost(SMALL, small(4), Layout(4, 1, 1, 2, shard_states=False), global_batch=8, time=256)
    assert whole.states == 12 * parameters and whole.seconds == cost.seconds


def test_activations_of_gpt_3() -> None:
    """Korthikanti et al. 2022: 5 a s / h is 80 for GPT-3, so that selective recomputation saves 70 percent."""
    config = published.config_of(published.Run(175, 96, 12_288, 96, 8, 8, 64, 64, 1, 1, 0))
    unit = 2_048 * 12_288
    for recompute, sequence, expected in (
        ("none", False, 10 + 24 / 8 + 80 / 8), ("none", True, 34 / 8 + 80 / 8), ("selective", False, 10 + 24 / 8),
        ("selective", True, 34 / 8), ("full", True, 2),
    ):  # fmt: skip
        plan = Layout(1, 8, 8, 1, recompute, sequence=sequence)
        assert layout.layer_activation_bytes(config, 2_048, plan) == pytest.approx(unit * expected, rel=1e-12)
    every, few = (
        layout.layer_activation_bytes(config, 2_048, Layout(1, 1, 1, 1, kind)) for kind in ("none", "selective")
    )
    assert 1 - few / every == pytest.approx(0.70, abs=0.005)


@pytest.mark.parametrize(
    "run", [run for run in published.NARAYANAN if run.hidden % 3 == 0], ids=lambda run: run.billions
)
def test_flops_are_the_papers(run: published.Run) -> None:
    """Equation 3 of Narayanan et al. 2021: 96 B s l h² (1 + s / 6h + V / 16lh), with full recomputation. Where h is a
    multiple of 3, an MLP of three matrices can have exactly the parameters of theirs."""
    s, h, layers = 2_048, run.hidden, run.layers
    expected = 96 * run.batch * s * layers * h**2 * (1 + s / (6 * h) + 51_200 / (16 * layers * h))
    assert published.predict(run).flops == pytest.approx(expected, rel=1e-12)


def test_published_runs() -> None:
    """Every row's parameters are the table's, every row fits into the GPUs on which it ran, and each is predicted 1.4
    to 2.3 times as fast as it was. One number for what the model leaves out, 1.63, does for the eight rows from 7.5
    billion parameters on, within 11 percent; the two smallest, with the smallest products, need 2.0 and 2.2."""
    for run in published.NARAYANAN:
        assert num_parameters(published.config_of(run)) / 1e9 == pytest.approx(run.billions, abs=0.2, rel=0)
        assert run.tensor * run.pipeline * published.layout_of(run).data == run.gpus
        assert published.predict(run).fits
    ratios = published.ratios()
    large = ratios[2:]
    middle = statistics.median(large)
    assert middle == pytest.approx(1.63, abs=0.01)
    assert max(abs(ratio / middle - 1) for ratio in large) < 0.11
    assert ratios[:2] == pytest.approx([2.23, 2.02], abs=0.01)


def throughput(config: GPTConfig, layouts: list[Layout], batch: int) -> list[float]:
    return [layout.cost(config, published.selene(64), each, batch, 2_048).hfu for each in layouts]


def test_published_findings() -> None:
    """Narayanan et al. 2021, section 5.4, on 64 GPUs with a micro-batch of 1."""
    large = GPTConfig(51_200, 20_480, num_hidden_layers=32, num_attention_heads=128, max_position_embeddings=2_048)
    middle = GPTConfig(51_200, 3_840, num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=2_048)
    sizes = (2, 4, 8, 16, 32)
    for batch in (32, 128):  # figure 13: the best is tensor parallelism over exactly a node
        rates = throughput(large, [Layout(1, t, 64 // t, 1, "full", shard_states=False) for t in sizes], batch)
        assert max(rates) == rates[2]
    for batch in (32, 128, 512):
        # Figure 14, data against pipeline, and figure 15, data against tensor: more of the latter, less throughput.
        for plans in (
            [Layout(64 // p, 1, p, 1, "full", shard_states=False) for p in sizes],
            [Layout(64 // t, t, 1, 1, "full", shard_states=False) for t in sizes],
        ):
            rates = throughput(middle, plans, batch)
            assert rates == sorted(rates, reverse=True)


def test_ways_out_of_a_node() -> None:
    """A ring over all eight GPUs of each node uses eight network cards, one over one GPU of each node uses one."""
    cluster = Cluster(nodes=4, **H100)
    assert cluster.link(8) == cluster.link(2, 4) == 450e9
    assert (
        cluster.link(32) == 400e9 and cluster.link(8, 4) == 100e9 and cluster.link(4, 8) == cluster.link(2, 16) == 50e9
    )
    assert replace(cluster, link_between=100e9).link(16) == 450e9  # but no more than a GPU sends at all


def test_the_best_of_a_large_cluster() -> None:
    config = replace(CONFIGS["7B"], num_key_value_heads=8)
    start = time.perf_counter()
    for nodes in (1, 2, 16, 128):
        cluster = Cluster(nodes=nodes, **H100)
        best = layout.best_layouts(config, cluster, 1_024, 4_096, number=1_000)
        assert [cost.seconds for _, cost in best] == sorted(cost.seconds for _, cost in best)
        for plan, cost in best:
            assert cost.fits and plan.data * plan.tensor * plan.pipeline == cluster.gpus and plan.tensor <= 8
            assert layout.cost(config, cluster, plan, 1_024, 4_096) == cost
        # None that is left out is faster and fits.
        every = [layout.cost(config, cluster, plan, 1_024, 4_096) for plan in layout.layouts(config, cluster, 1_024)]
        assert best[0][1].seconds == min(cost.seconds for cost in every if cost.fits)
        assert len(best) == sum(cost.fits for cost in every)
    assert time.perf_counter() - start < 4  # twice each of four clusters, a second for one on a busy machine


def test_a_small_model_needs_no_model_parallelism() -> None:
    plan, cost = layout.best_layouts(CONFIGS["100M"], Cluster(nodes=1, **H100), 64, 1_024)[0]
    assert (plan.data, plan.tensor, plan.pipeline, plan.recompute) == (8, 1, 1, "none")
    assert cost.bubble == cost.tensor == 0


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Layout(2, 2, 2), r"^data x tensor x pipeline = 2 x 2 x 2 is not the cluster's 4 GPUs$"),
        (Layout(1, 1, 4, recompute="some"), "recompute one of none, selective, full"),
        (Layout(4, 1, 1, 3), r"^global_batch=8 is not a multiple of data x micro_batch = 12$"),
        (Layout(1, 1, 4, chunks=2), r"^num_hidden_layers=4 is not a multiple of pipeline x chunks = 8$"),
        (Layout(2, 1, 2, 4, chunks=2), r"^chunks=2 needs pipeline above 1 and micro-batches that are a multiple"),
    ],
)
def test_layouts_that_cannot_be(plan: Layout, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layout.cost(SMALL, small(4), plan, global_batch=8, time=256)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match=r"^num_key_value_heads=2 is not a multiple of tensor=4; take a divisor$"):
        layout.cost(replace(SMALL, num_key_value_heads=2), small(4), Layout(1, 4, 1), 8, 256)
    with pytest.raises(ValueError, match=r"^no layout fits: the smallest takes 15\.0 GB of a GPU's 5 GB; take more"):
        layout.best_layouts(CONFIGS["7B"], small(8, memory=5e9), 64, 4_096)
    with pytest.raises(ValueError, match=r"^no layout divides 7 rows and 4 layers among 16 GPUs"):
        layout.best_layouts(replace(SMALL, num_key_value_heads=1), small(8, nodes=2), 7, 256)
    with pytest.raises(ValueError, match=r"^link_between=0 must be above 0$"):
        small(2, link_between=0)
