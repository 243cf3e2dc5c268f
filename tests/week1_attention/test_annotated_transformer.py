"""The transformer equals PyTorch's, part by part: outputs, gradients, one optimiser step."""

import itertools
import math

import annotated_transformer
import pytest
import torch
from annotated_transformer import (
    MultiHeadAttention,
    PositionalEncoding,
    Transformer,
    TransformerConfig,
    attention,
    beam_decode,
    causal_mask,
    greedy_decode,
    label_smoothing_loss,
    next_log_probs,
    noam_rate,
    our_names,
    padding_mask,
    torch_twin,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

# float32 rounding of sums in another order, over two layers of width 16; the values are of order 1
CLOSE = {"atol": 2e-6, "rtol": 1e-5}
SOURCE = torch.tensor([[5, 6, 7, 8, 2], [4, 3, 2, 0, 0], [9, 2, 0, 0, 0]])
TARGET = torch.tensor([[1, 8, 7, 6], [1, 3, 4, 0], [1, 9, 0, 0]])
ANSWER = torch.tensor([[8, 7, 6, 2], [3, 4, 2, 0], [9, 2, 0, 0]])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    config = TransformerConfig(vocab_size=10, d_model=16, num_heads=4, num_layers=2, d_ff=24, max_len=12)
    model = Transformer(config)
    nn.init.normal_(model.embedding.weight)  # distinct logits, so that a comparison has something to find
    return model.eval()


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, theirs, **(tolerance or CLOSE))


# ---- attention -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3), heads=st.integers(1, 3), queries=st.integers(1, 5), keys=st.integers(1, 5),
    head_dim=st.integers(1, 9), seed=st.integers(0, 99), share=st.sampled_from(["full", "batch", "queries", "none"]),
)  # fmt: skip
def test_attention_equals_sdpa_with_any_mask(batch, heads, queries, keys, head_dim, seed, share):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, n, head_dim, requires_grad=True) for n in (queries, keys, keys))
    shapes = {"full": (batch, heads, queries, keys), "batch": (batch, 1, 1, keys), "queries": (queries, keys)}
    mask = None if share == "none" else torch.rand(shapes[share]) < 0.6  # now and then a row without True
    ours, weights = attention(q, k, v, mask)
    theirs = F.scaled_dot_product_attention(q, k, v, mask)
    close(ours, theirs)
    upstream = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad(ours, (q, k, v), upstream), torch.autograd.grad(theirs, (q, k, v), upstream), strict=True
    ):
        close(mine, other)
    sums = weights.sum(-1)
    close(sums, sums.round())  # each row sums to one, or to zero where nothing may be seen


def test_attention_with_a_value_width_of_its_own():
    q, k, v = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 7)
    close(attention(q, k, v)[0], F.scaled_dot_product_attention(q, k, v))


def test_a_query_that_sees_nothing_gets_zeros_and_no_nan_gradient():
    q, k, v = (torch.randn(1, 3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    output, weights = attention(q, k, v, mask)
    assert not output[0, 1].any() and not weights[0, 1].any()
    output.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert not q.grad[0, 1].any()
    # what the docstring says of torch
    assert not F.scaled_dot_product_attention(q, k, v, mask)[0, 1].any()
    mha = nn.MultiheadAttention(4, 1, batch_first=True)
    assert mha(q, k, v, attn_mask=~mask)[0][0, 1].isnan().all()
    assert mha(q, k, v, attn_mask=~mask, need_weights=False)[0].isfinite().all()


def test_masks():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    mask = padding_mask(torch.tensor([[5, 0], [0, 5]]), 0)
    assert mask.shape == (2, 1, 1, 2) and mask[:, 0, 0].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("masked", [False, True])
def test_multi_head_attention_equals_torch(masked):
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    ours = MultiHeadAttention(12, 3)
    nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict(our_names(theirs.state_dict()))
    q, k, v = torch.randn(2, 4, 12), torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    mask = torch.rand(2, 1, 4, 5) < 0.7 if masked else None
    if masked:
        mask[..., 0] = True
    flipped = None if mask is None else ~mask.expand(2, 3, 4, 5).flatten(0, 1)
    output, (expected, weights) = ours(q, k, v, mask), theirs(q, k, v, attn_mask=flipped, average_attn_weights=False)
    close(output, expected)
    close(ours.weights, weights.detach())
    upstream = torch.randn_like(output)
    output.backward(upstream)
    expected.backward(upstream)
    theirs_grad = our_names({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        close(parameter.grad, theirs_grad[name])


# ---- the whole model -------------------------------------------------------------------------------------------------


def torch_logits(model, twin, source, target):
    hidden = twin(
        model.embed(source), model.embed(target), tgt_mask=~causal_mask(target.size(1)),
        src_key_padding_mask=source == 0, tgt_key_padding_mask=target == 0, memory_key_padding_mask=source == 0,
    )  # fmt: skip
    return hidden @ model.embedding.weight.T


def torch_loss(logits, target, smoothing=0.1):
    return F.cross_entropy(logits.transpose(1, 2), target, ignore_index=0, label_smoothing=smoothing)


def test_transformer_equals_torch_with_padding_and_causal_masks(model):
    close(model(SOURCE, TARGET), torch_logits(model, torch_twin(model), SOURCE, TARGET))


def test_gradients_and_one_optimiser_step_equal_torch(model):
    twin = torch_twin(model)
    shared = nn.Embedding.from_pretrained(model.embedding.weight.detach().clone(), freeze=False)
    ours = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = torch.optim.SGD([*twin.parameters(), shared.weight], lr=0.1)
    label_smoothing_loss(model(SOURCE, TARGET), ANSWER, 0, 0.1).backward()
    embed = model.embedding
    model.embedding = shared
    torch_loss(torch_logits(model, twin, SOURCE, TARGET), ANSWER).backward()
    model.embedding = embed
    grads = our_names({name: p.grad for name, p in twin.named_parameters()}) | {"embedding.weight": shared.weight.grad}
    assert set(grads) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        close(parameter.grad, grads[name], atol=1e-5, rtol=1e-4)  # gradients reach 10 here
    ours.step()
    theirs.step()
    after = our_names(twin.state_dict()) | {"embedding.weight": shared.weight.detach()}
    for name, value in model.state_dict().items():
        close(value, after[name], atol=1e-5, rtol=1e-4)


def test_weights_go_both_ways(model):
    twin = torch_twin(model)
    other = Transformer(model.config).eval()
    missing, unexpected = other.load_state_dict(our_names(twin.state_dict()), strict=False)
    assert missing == ["embedding.weight"] and not unexpected
    other.embedding = model.embedding
    assert torch.equal(other(SOURCE, TARGET), model(SOURCE, TARGET))


def test_no_position_sees_a_later_one(model):
    logits = model(SOURCE, TARGET)
    for t in range(1, TARGET.size(1)):
        changed = TARGET.clone()
        changed[:, t:] = 9
        close(model(SOURCE, changed)[:, :t], logits[:, :t])
    assert (model(SOURCE, TARGET.index_fill(1, torch.tensor(1), 9))[:, 1:] - logits[:, 1:]).abs().max() > 1e-3


def test_padding_of_the_source_changes_nothing(model):
    longer = F.pad(SOURCE, (0, 3))
    close(model(longer, TARGET), model(SOURCE, TARGET))


def test_without_positions_the_encoder_is_permutation_equivariant(model):
    source, order = torch.tensor([[3, 4, 5, 6, 7, 8]]), torch.tensor([4, 0, 5, 2, 1, 3])
    assert (model.encode(source[:, order])[0] - model.encode(source)[0][:, order]).abs().max() > 1e-2
    model.positions = nn.Identity()
    close(model.encode(source[:, order])[0], model.encode(source)[0][:, order])


def test_embeddings_are_tied_and_scaled(model):
    tokens = torch.tensor([[3, 4]])
    close(model.embed(tokens) - model.positions.table[:2], model.embedding.weight[tokens] * math.sqrt(16))
    assert sum("embedding" in name or "generator" in name for name in model.state_dict()) == 1


def test_dropout_is_on_in_training_only(model):
    assert torch.equal(model(SOURCE, TARGET), model(SOURCE, TARGET))
    model.train()
    assert not torch.equal(model(SOURCE, TARGET), model(SOURCE, TARGET))


def test_positions():
    table = PositionalEncoding(50, 8).table
    for t, i in ((0, 0), (7, 1), (49, 3)):
        assert table[t, 2 * i] == pytest.approx(math.sin(t / 10000 ** (2 * i / 8)), abs=1e-5)
        assert table[t, 2 * i + 1] == pytest.approx(math.cos(t / 10000 ** (2 * i / 8)), abs=1e-5)
    with pytest.raises(ValueError, match=r"^51 tokens: at most max_len=50 fit; raise max_len$"):
        PositionalEncoding(50, 8)(torch.zeros(1, 51, 8))


# ---- loss and schedule -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3), time=st.integers(1, 5), vocab_size=st.integers(3, 9), smoothing=st.floats(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_label_smoothing_equals_cross_entropy(batch, time, vocab_size, smoothing, seed):
    torch.manual_seed(seed)
    logits = (3 * torch.randn(batch, time, vocab_size)).requires_grad_()
    target = torch.randint(0, vocab_size, (batch, time))
    target[0, 0] = 1  # at least one real token
    ours, theirs = label_smoothing_loss(logits, target, 0, smoothing), torch_loss(logits, target, smoothing)
    close(ours, theirs, atol=1e-5, rtol=1e-5)
    close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_label_smoothing_is_the_cross_entropy_with_the_papers_distribution():
    logits, target = torch.randn(1, 1, 5), torch.tensor([[3]])
    q = torch.full((5,), 0.1 / 5)
    q[3] += 0.9
    close(label_smoothing_loss(logits, target, 0, 0.1), -(q * logits[0, 0].log_softmax(-1)).sum())


def test_schedule_peaks_at_warmup():
    rates = [noam_rate(step, 512, 40) for step in range(1, 200)]
    assert max(rates) == rates[39] == pytest.approx((512 * 40) ** -0.5)
    assert rates[9] == pytest.approx(rates[39] / 4)  # linear up
    assert rates[159] == pytest.approx(rates[39] / 2)  # then as the root
    with pytest.raises(ValueError, match="step=0, warmup_steps=40: both count from 1"):
        noam_rate(0, 512, 40)


# ---- decoding --------------------------------------------------------------------------------------------------------


def sharp(vocab_size=5, seed=0, scale=1.0):
    """A tiny random model whose next-token distributions are far from uniform."""
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size, d_model=8, num_heads=2, num_layers=1, d_ff=8, max_len=16)
    model = Transformer(config)
    nn.init.normal_(model.embedding.weight, std=scale)
    return model.eval()


def exhaustive(model, source, max_len, alpha):
    """Scores of all sequences that end in EOS or have `max_len` tokens, best first."""
    config, found = model.config, []
    words = [i for i in range(config.vocab_size) if i not in (config.pad_id, config.bos_id)]
    memory, mask = model.encode(source)
    for length in range(1, max_len + 1):
        for sequence in itertools.product(words, repeat=length):
            ended = sequence[-1] == config.eos_id
            if config.eos_id in sequence[:-1] or not (ended or length == max_len):
                continue
            target = torch.tensor([[config.bos_id, *sequence]])
            with torch.no_grad():
                log_probs = model.decode(target[:, :-1], memory, mask)[0].log_softmax(-1)
            total = log_probs[range(length), list(sequence)].sum().item()
            found.append((total / ((5 + length) / 6) ** alpha, sequence))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_a_wide_beam_finds_what_exhaustive_search_finds(seed, alpha):
    model, source = sharp(seed=seed), torch.tensor([[3, 4, 2]])
    (score, best), *_ = exhaustive(model, source, 4, alpha)
    tokens, found = beam_decode(model, source, 4, beam_size=3**4, alpha=alpha)
    assert tuple(t for t in tokens.tolist() if t) == best
    assert found == pytest.approx(score, abs=1e-5)


def test_a_beam_of_one_is_greedy_and_a_wider_one_is_never_worse_here():
    better = 0
    for seed in range(12):
        model, source = sharp(7, seed), torch.tensor([[3, 4, 5, 2]])
        greedy = greedy_decode(model, source, 6)[0]
        tokens, alone = beam_decode(model, source, 6, beam_size=1)
        assert torch.equal(tokens, greedy)
        wide = beam_decode(model, source, 6, beam_size=200)[1]
        assert wide >= alone - 1e-6
        better += wide > alone + 1e-3
    assert better > 0  # else the test says nothing about width


def test_greedy_takes_the_likeliest_token_and_pads_behind_the_end():
    model = sharp(7, 3)
    source = torch.tensor([[3, 4, 5, 2], [6, 2, 0, 0]])
    output = greedy_decode(model, source, 6)
    memory, mask = model.encode(source)
    for row in range(2):
        prefix = [1]
        for token in output[row].tolist():
            if 2 in prefix:
                assert token == 0
                continue
            step = next_log_probs(model, torch.tensor([prefix]), memory[row : row + 1], mask[row : row + 1])
            assert token == step.argmax()
            prefix.append(token)
    alone = greedy_decode(model, source[1:, :2], 6)
    assert output[1, : alone.size(1)].tolist() == alone[0].tolist()  # neither batch nor padding matter


def test_decoding_refuses_training_mode_and_needs_no_gradients(model):
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        greedy_decode(model.train(), SOURCE, 3)
    assert not greedy_decode(model.eval(), SOURCE, 3).requires_grad


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0: must be at least 1; set a positive vocab_size"),
        ({"num_layers": -1}, "num_layers=-1: must be at least 1; set a positive num_layers"),
        ({"d_model": 10, "num_heads": 4}, "d_model=10: must be a multiple of 2 and of num_heads=4; set d_model=12"),
        ({"d_model": 9, "num_heads": 3}, "d_model=9: must be a multiple of 2 and of num_heads=3; set d_model=12"),
        ({"dropout": 1.0}, "dropout=1.0: must be in [0, 1); set the paper's 0.1, or 0 for none"),
        ({"dropout": float("nan")}, "dropout=nan: must be in [0, 1); set the paper's 0.1, or 0 for none"),
        (
            {"eos_id": 1},
            "pad_id, bos_id, eos_id = (0, 1, 1): must be three different ids in [0, vocab_size=7); set 0, 1, 2",
        ),
        (
            {"vocab_size": 2},
            "pad_id, bos_id, eos_id = (0, 1, 2): must be three different ids in [0, vocab_size=2); set 0, 1, 2",
        ),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError) as error:
        TransformerConfig(**{"vocab_size": 7, **fields})
    assert str(error.value) == message


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="n_heads"):
        TransformerConfig(vocab_size=7, n_heads=3)


def test_the_paper_s_base_model_has_65_million_parameters():
    with torch.device("meta"):
        model = Transformer(TransformerConfig(vocab_size=37_000))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(65e6, rel=0.05)  # table 3 says 65


def test_shapes_are_checked_at_run_time():
    with pytest.raises(Exception, match=r"jaxtyping|type-check"):
        attention(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), torch.zeros(2, 6, 4))


def test_running_the_module_checks_the_basics(capsys):
    annotated_transformer.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(line.startswith("holds  ") for line in lines)
