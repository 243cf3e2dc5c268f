"""A layout of data x tensor x pipeline parallelism for a cluster, on paper: seconds of a step, and memory of a GPU.

Letters: s positions of a row, b rows of a micro-batch, h hidden size, a heads, L layers, V vocabulary; d, t, p the
numbers of ranks of data, tensor and pipeline parallelism, m micro-batches, v parts of the model on each stage.

Products run at the peak, and nothing that is not a product takes time: that makes the seconds too few. No message hides
behind work: that makes them too many. `published` says what remains. A layout is compared with others, not timed; and
a larger micro-batch, which makes products faster on a GPU, is no gain here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_core.config import GPTConfig
from llm_core.costs.counts import flops_per_token, parameter_parts

from llm_scale.pipeline.schedules import predicted_bubble

RECOMPUTE = ("none", "selective", "full")
WIDTH = 2  # bytes of an activation, a weight and a gradient in 16 bits
STATES = 12  # bytes of a parameter's copy in float32 and AdamW's two moments


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs.

    Args:
        gpus_per_node: with the fast link between them.
        nodes: how many.
        peak_flops: FLOP/s of a GPU's dense products in 16 bits.
        memory: bytes of a GPU.
        link_inside: bytes/s that a GPU sends to others of its node.
        link_between: bytes/s that a GPU sends to another node.

    Raises:
        ValueError: for numbers that are not above 0.
    """

    gpus_per_node: int
    nodes: int
    peak_flops: float
    memory: float
    link_inside: float
    link_between: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value} must be above 0")

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.gpus_per_node * self.nodes

    def link(self, ranks: int, stride: int = 1) -> float:
        """Bytes/s at which a ring of ranks that are `stride` apart sends. Between nodes each rank of the group that a
        node holds has its own way out, and the rings of a collective use all of them."""
        if ranks * stride <= self.gpus_per_node:
            return self.link_inside
        return min(self.link_inside, self.link_between * max(1, self.gpus_per_node // stride))


@dataclass(frozen=True)
class Layout:
    """How a model and its batch are divided. Ranks of tensor parallelism are numbered first, then data, then pipeline.

    Args:
        data: d.
        tensor: t.
        pipeline: p.
        micro_batch: b, rows that go through the model at a time.
        recompute: "none" keeps all activations; "selective" computes attention's T x T scores again, as a fused kernel
            does too; "full" keeps each layer's input and computes the layer again.
        chunks: v, parts of the model on each stage: above 1 the schedule is interleaved.
        sequence: sequence parallelism, in the ranks of tensor parallelism.
        shard_states: whether the float32 copy and moments are divided among the ranks of data parallelism.
    """

    data: int
    tensor: int
    pipeline: int
    micro_batch: int = 1
    recompute: str = "none"
    chunks: int = 1
    sequence: bool = False
    shard_states: bool = True

    def refuse(self, config: GPTConfig, cluster: Cluster, global_batch: int) -> None:
        """Raise a ValueError for what cannot be divided so, with what to change."""
        d, t, p, v = self.data, self.tensor, self.pipeline, self.chunks
        if min(d, t, p, v, self.micro_batch) < 1 or self.recompute not in RECOMPUTE:
            raise ValueError(f"{self}: numbers must be 1 or more, recompute one of {', '.join(RECOMPUTE)}")
        if d * t * p != cluster.gpus:
            raise ValueError(f"data x tensor x pipeline = {d} x {t} x {p} is not the cluster's {cluster.gpus} GPUs")
        for name in ("num_key_value_heads", "intermediate_size", "vocab_size"):
            if getattr(config, name) % t:
                raise ValueError(f"{name}={getattr(config, name)} is not a multiple of tensor={t}; take a divisor")
        if config.num_hidden_layers % (p * v):
            wrong = f"num_hidden_layers={config.num_hidden_layers}"
            raise ValueError(f"{wrong} is not a multiple of pipeline x chunks = {p * v}")
        if global_batch % (d * self.micro_batch):
            wrong = f"global_batch={global_batch}"
            raise ValueError(f"{wrong} is not a multiple of data x micro_batch = {d * self.micro_batch}")
        if v > 1 and (p == 1 or global_batch // (d * self.micro_batch) % p):
            raise ValueError(f"chunks={v} needs pipeline above 1 and micro-batches that are a multiple of it")


@dataclass(frozen=True)
class Cost:
    """Of one step.

    Attributes:
        compute: seconds of products on the busiest stage, of all its micro-batches.
        tensor: seconds in which tensor parallelism sends, on that stage.
        handover: seconds in which it hands activations and gradients to the next.
        bubble: seconds in which it waits for the pipeline to fill and to empty.
        data: seconds in which gradients are reduced and weights gathered.
        weights, gradients, states, activations: bytes of the fullest GPU.
        model_flops, flops: of the step, without and with what is computed twice.
        tokens, cluster: of the step, and what it runs on.
    """

    compute: float
    tensor: float
    handover: float
    bubble: float
    data: float
    weights: float
    gradients: float
    states: float
    activations: float
    model_flops: float
    flops: float
    tokens: int
    cluster: Cluster

    @property
    def seconds(self) -> float:
        """All one after the other."""
        return self.compute + self.tensor + self.handover + self.bubble + self.data

    @property
    def memory(self) -> float:
        """Bytes of the fullest GPU."""
        return self.weights + self.gradients + self.states + self.activations

    @property
    def fits(self) -> bool:
        """Whether a GPU has so much."""
        return self.memory <= self.cluster.memory

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: the share of the peak that arrives in the model."""
        return self.model_flops / (self.seconds * self.cluster.gpus * self.cluster.peak_flops)

    @property
    def hfu(self) -> float:
        """Hardware FLOPs utilisation: with what is computed twice."""
        return self.flops / (self.seconds * self.cluster.gpus * self.cluster.peak_flops)


def layer_activation_bytes(config: GPTConfig, time: int, layout: Layout) -> float:
    """Bytes that a layer keeps of a micro-batch, on a GPU. Korthikanti et al. 2022 (arXiv:2205.05198), table 2.

    s b h (34 + 5 a s / h) for a GPT-3 layer in 16 bits with dropout. Tensor parallelism divides 24 of the 34 and the
    scores by t; sequence parallelism the other 10 too; selective recomputation keeps no scores; full keeps 2 s b h.
    """
    unit = time * layout.micro_batch * config.hidden_size
    t = layout.tensor
    if layout.recompute == "full":
        return 2.0 * unit
    scores = 5 * config.num_attention_heads * time / config.hidden_size if layout.recompute == "none" else 0.0
    return unit * ((10 / t if layout.sequence else 10) + (24 + scores) / t)


def activation_bytes(config: GPTConfig, time: int, layout: Layout, micro_batches: int) -> float:
    """Bytes of activations on the fullest stage under 1F1B: the first keeps min(p, m) micro-batches of L / p layers.

    Interleaving keeps 1 + (p - 1) / (p v) times that (the same paper, section 4.2.3). Without a pipeline the logits
    are there too, in float32; in full recomputation one layer's activations, while it is computed again.
    """
    p, layers = layout.pipeline, config.num_hidden_layers / layout.pipeline
    kept = min(p, micro_batches) * layers * layer_activation_bytes(config, time, layout)
    if layout.chunks > 1:
        kept *= 1 + (p - 1) / (p * layout.chunks)
    if layout.recompute == "full":
        whole = Layout(1, layout.tensor, 1, layout.micro_batch, "none", sequence=layout.sequence)
        kept += layer_activation_bytes(config, time, whole)
    if p == 1:
        kept += 4 * time * layout.micro_batch * config.vocab_size / layout.tensor
    return kept


def forward_flops(config: GPTConfig, time: int) -> tuple[float, float, float]:
    """FLOPs of a token's forward pass in one layer, in that layer's T x T scores alone, and in the head."""
    scores = 4.0 * config.hidden_size * time
    head = 2.0 * config.vocab_size * config.hidden_size
    whole = flops_per_token(config, time, training=False)
    return (whole - head) / config.num_hidden_layers, scores, head


def cost(config: GPTConfig, cluster: Cluster, layout: Layout, global_batch: int, time: int) -> Cost:
    """Seconds and bytes of a step with AdamW in mixed precision.

    Args:
        config: sizes.
        cluster: what it runs on.
        layout: how it is divided.
        global_batch: rows of a step.
        time: s, positions of a row.

    Raises:
        ValueError: for a layout that does not divide the model, the batch or the cluster.
    """
    layout.refuse(config, cluster, global_batch)
    d, t, p, v, b = layout.data, layout.tensor, layout.pipeline, layout.chunks, layout.micro_batch
    micro_batches, layers = global_batch // (d * b), config.num_hidden_layers // p

    layer, scores, head = forward_flops(config, time)
    again = {"none": 0.0, "selective": scores, "full": layer}[layout.recompute]
    stage = layers * (3 * layer + again) + 3 * head  # the last has the head, and the others wait for it
    compute = micro_batches * b * time * stage / t / cluster.peak_flops

    # An all-reduce round a ring sends 2 (n - 1) / n of a tensor. Four a layer, six where whole layers are run again.
    stream = WIDTH * b * time * config.hidden_size
    reductions = layers * (6 if layout.recompute == "full" else 4) + (2 if p == 1 else 1)
    tensor = micro_batches * reductions * 2 * (t - 1) / t * stream / cluster.link(t)
    # Each of the t ranks hands over its share, forward and backward, once for each part of the model.
    handover = micro_batches * 2 * v * stream / t / cluster.link(p, d * t) if p > 1 else 0.0
    share = predicted_bubble(p, micro_batches, v)
    bubble = (compute + tensor + handover) * share / (1 - share)

    parts = parameter_parts(config)
    # Seconds are the last stage's, with the head; bytes the first's, with most activations and an embedding as large.
    vocabulary = parts["embedding"] + (parts["head"] if p == 1 else 0)
    parameters = ((parts["attention"] + parts["mlp"]) / p + vocabulary) / t + parts["norms"] / p
    data = 2 * (d - 1) / d * WIDTH * parameters / cluster.link(d, t)

    model = float(flops_per_token(config, time)) * global_batch * time
    return Cost(
        compute, tensor, handover, bubble, data,
        weights=WIDTH * parameters, gradients=WIDTH * parameters,
        states=STATES * parameters / (d if layout.shard_states else 1),
        activations=activation_bytes(config, time, layout, micro_batches),
        model_flops=model, flops=model + config.num_hidden_layers * again * global_batch * time,
        tokens=global_batch * time, cluster=cluster,
    )  # fmt: skip


def layouts(config: GPTConfig, cluster: Cluster, global_batch: int) -> Iterator[Layout]:
    """All that divide model, batch and cluster, with tensor parallelism inside a node and micro-batches of 2^k rows."""
    for t in divisors(cluster.gpus_per_node):
        for p in divisors(cluster.gpus // t):
            d = cluster.gpus // t // p
            b = 1
            while global_batch % (d * b) == 0:
                for recompute in RECOMPUTE:
                    layout = Layout(d, t, p, b, recompute, sequence=t > 1)
                    try:
                        layout.refuse(config, cluster, global_batch)
                    except ValueError:
                        continue
                    yield layout
                b *= 2


def divisors(number: int) -> list[int]:
    """From 1 to the number itself."""
    return [n for n in range(1, number + 1) if number % n == 0]


def best_layouts(
    config: GPTConfig, cluster: Cluster, global_batch: int, time: int, number: int = 10
) -> list[tuple[Layout, Cost]]:
    """The fastest layouts that fit into memory, the fastest first; of two that are equally fast the smaller first.

    Raises:
        ValueError: when none fits or none divides model, batch and cluster, with what is missing.
    """
    possible = layouts(config, cluster, global_batch)
    found = [(layout, cost(config, cluster, layout, global_batch, time)) for layout in possible]
    if not found:
        raise ValueError(
            f"no layout divides {global_batch} rows and {config.num_hidden_layers} layers among {cluster.gpus} GPUs; "
            "take a batch that is a multiple of the GPUs, or other GPUs"
        )
    fitting = [pair for pair in found if pair[1].fits]
    if not fitting:
        least = min(each.memory for _, each in found)
        raise ValueError(
            f"no layout fits: the smallest takes {least / 1e9:.1f} GB of a GPU's {cluster.memory / 1e9:.0f} GB; take "
            "more GPUs or a smaller model"
        )
    return sorted(fitting, key=lambda pair: (pair[1].seconds, pair[1].memory))[:number]
