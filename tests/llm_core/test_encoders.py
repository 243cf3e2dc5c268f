"""An encoder is GPT with another mask; an encoder-decoder's attention is torch's; nothing looks where it must not."""

import pytest
import torch
from llm_core.babygpt import BabyGPT
from llm_core.families.encoders import (
    CrossAttention,
    Encoder,
    EncoderDecoder,
    label_loss,
    shift_right,
)
from llm_core.masks import packed_mask, padding_mask, prefix_mask
from llm_core.model import GPT, GPTConfig, KeyValueCache
from llm_core.store.registry import save_model
from llm_data.rows.documents import document_mask
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = GPTConfig(50, 32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
PACKED = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]])  # two documents and padding


def ids(rows=2, time=10):
    return torch.randint(5, 50, (rows, time), generator=torch.Generator().manual_seed(0))


def influence(function, embedding, inputs):
    """(T, S): whether output t depends on input s, from the gradients."""
    seen = {}

    def keep(_, __, output):
        seen["x"] = output.detach().requires_grad_()
        return seen["x"]

    handle = embedding.register_forward_hook(keep)
    out = function(inputs)
    handle.remove()
    rows = [torch.autograd.grad(out[0, t].sum(), seen["x"], retain_graph=True)[0][0] for t in range(out.shape[1])]
    return torch.stack(rows).abs().sum(-1) > 0


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(CONFIG).eval()


@pytest.fixture
def both():
    torch.manual_seed(0)
    return EncoderDecoder(CONFIG, pad_id=1).eval()


def test_masks():
    full = packed_mask(PACKED, causal=False)
    assert torch.equal(full & torch.ones(10, 10, dtype=torch.bool).tril(), document_mask(PACKED))
    assert torch.equal(full, full.transpose(2, 3))
    assert full[0, 0].sum(1).tolist() == [5] * 5 + [3] * 3 + [1, 1]
    padded = padding_mask(torch.tensor([[1, 1, 1, 0]]), 4, causal=False)
    assert padded[0, 0].int().tolist() == [[1, 1, 1, 0]] * 3 + [[1, 1, 1, 1]]
    assert prefix_mask(2, 4)[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_an_encoder_is_llama_with_a_mask_of_ones(encoder):
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=CONFIG.intermediate_size, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(encoder.state_dict())
    everywhere = torch.zeros(2, 1, 10, 10)  # added to the scores
    expected = theirs(ids(), attention_mask=everywhere, use_cache=False).logits
    torch.testing.assert_close(encoder(ids()).logits, expected, atol=1e-5, rtol=1e-5)


def test_an_encoder_holds_what_a_gpt_holds(encoder):
    GPT(CONFIG).load_state_dict(encoder.state_dict())


def test_an_encoder_sees_its_document_whole_and_no_other(encoder):
    rows = ids(1)
    found = influence(lambda x: encoder(x, position_ids=PACKED).logits, encoder.model.embed_tokens, rows)
    assert torch.equal(found, packed_mask(PACKED, causal=False)[0, 0])
    assert influence(lambda x: encoder(x).logits, encoder.model.embed_tokens, rows).all()


def test_packed_and_padded_rows_are_those_of_each_document_alone(encoder):
    rows = ids(1)
    packed = encoder(rows, position_ids=PACKED).logits
    torch.testing.assert_close(packed[:, :5], encoder(rows[:, :5]).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[:, 5:8], encoder(rows[:, 5:8]).logits, atol=1e-5, rtol=1e-5)
    # A mask of padding beside the positions must not take the borders away.
    both = encoder(rows, position_ids=PACKED, attention_mask=torch.ones_like(rows)).logits
    torch.testing.assert_close(both, packed, atol=1e-5, rtol=1e-5)
    there = (torch.arange(10) < 6).long()[None]
    padded = encoder(rows, attention_mask=there).logits
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, :6], encoder(rows[:, :6]).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", ["encoder", "both"])
def test_it_is_neither_saved_nor_trained_as_a_gpt(model, request, tmp_path):
    model = request.getfixturevalue(model)
    with pytest.raises(ValueError, match="is no causal language model that transformers would load"):
        save_model(model, None, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    for chunk in (0, 4):
        with pytest.raises((ValueError, TypeError), match=r"looks at later tokens|labels"):
            BabyGPT(model, loss_chunk=chunk).loss({"input_ids": ids(), "labels": ids()})


def test_labels_are_not_shifted(encoder):
    labels = ids().masked_fill(torch.arange(10) % 3 != 0, -100)
    loss, logits = encoder(ids(), labels)
    expected = F.cross_entropy(logits[:, ::3].flatten(0, 1), ids()[:, ::3].flatten())
    torch.testing.assert_close(loss, expected)
    assert label_loss(logits, torch.full_like(labels, -100)) == 0


def test_an_encoder_refuses_a_cache_and_too_long_a_row(encoder):
    with pytest.raises(TypeError, match="cache"):
        encoder(ids(), cache=KeyValueCache())
    with pytest.raises(ValueError, match="300 positions, and the model has 256"):
        encoder(ids(1, 300))


def test_an_encoder_decoder_refuses_too_long_a_source_or_target(both):
    with pytest.raises(ValueError, match="300 positions, and the model has 256"):
        both(ids(1, 300), ids(1, 5))
    with pytest.raises(ValueError, match="257 positions, and the model has 256"):
        both(ids(1, 5), ids(1, 257))


def test_cross_attention_is_torchs():
    torch.manual_seed(0)
    config = GPTConfig(50, 32, num_attention_heads=4)
    ours, theirs = CrossAttention(config), nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.out_proj.weight.copy_(ours.o_proj.weight)
    x, source = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    there = torch.ones(2, 7, dtype=torch.bool)
    there[1, 4:] = False
    expected, _ = theirs(x, source, source, key_padding_mask=~there)
    torch.testing.assert_close(ours(x, source, there[:, None, None]), expected, atol=1e-5, rtol=1e-5)


def test_a_decoder_sees_its_past_and_all_of_the_source(both):
    source, target = ids(1, 7), ids(1, 5)
    # T5's embedding serves both sides: the first call is the source's, so the hook is put on one side at a time.
    encoded = both.encode(source).detach()
    own = influence(lambda x: both.decode(x, encoded), both.encoder.embed_tokens, target)
    assert torch.equal(own, torch.ones(5, 5, dtype=torch.bool).tril())
    kept = both.encode(source).detach().requires_grad_()
    out = both.decode(target, kept)
    for t in range(5):
        assert (torch.autograd.grad(out[0, t].sum(), kept, retain_graph=True)[0].abs().sum(-1) > 0).all()
    assert influence(both.encode, both.encoder.embed_tokens, source).all()


def test_padding_of_the_source_is_not_read(both):
    source, labels = ids(2, 8), ids(2, 5)
    there = (torch.arange(8)[None] < torch.tensor([[8], [5]])).long()
    alone = both(source[1:, :5], labels[1:]).logits
    torch.testing.assert_close(both(source, labels, there).logits[1:], alone, atol=1e-5, rtol=1e-5)
    changed = source.clone()
    changed[1, 5:] = 3
    assert torch.equal(both(changed, labels, there).logits, both(source, labels, there).logits)


def test_the_target_is_read_shifted_and_its_padding_is_no_target(both):
    source, labels = ids(2, 8), ids(2, 5)
    labels[1, 3:] = -100
    loss, logits = both(source, labels)
    assert shift_right(labels, 1, 1)[1].tolist() == [1, *labels[1, :3].tolist(), 1]
    expected = both.decode(shift_right(labels, 1, 1), both.encode(source))
    assert torch.equal(logits, expected)
    kept = labels != -100
    torch.testing.assert_close(loss, F.cross_entropy(logits[kept], labels[kept]))
    # a label has no influence on its own logits
    other = labels.clone()
    other[0, 2] = 4
    changed = (both(source, other).logits[0] != logits[0]).any(-1)
    assert changed.tolist() == [False, False, False, True, True]


def test_a_target_decoded_token_by_token_is_decoded_as_a_whole(both):
    source, target = ids(2, 8), ids(2, 5)
    there = (torch.arange(8)[None] < torch.tensor([[8], [5]])).long()
    encoded, cache = both.encode(source, there), KeyValueCache()
    steps = [both.decode(target[:, t : t + 1], encoded, there, cache) for t in range(5)]
    whole = both.decode(target, encoded, there)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert len(cache) == 5
    # several tokens may begin: they are causal among themselves
    cache = KeyValueCache()
    first = both.decode(target[:, :4], encoded, there, cache)
    last = both.decode(target[:, 4:], encoded, there, cache)
    torch.testing.assert_close(torch.cat([first, last], dim=1), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="2 tokens behind a cache of 5"):
        both.decode(target[:, :2], encoded, there, cache)


def test_a_cache_cannot_grow_beyond_the_positions(both):
    cache, encoded = KeyValueCache(), both.encode(ids(1, 5))
    both.decode(ids(1, 256), encoded, cache=cache)
    with pytest.raises(ValueError, match="257 positions, and the model has 256"):
        both.decode(ids(1, 1), encoded, cache=cache)


def test_one_embedding_serves_all_three(both):
    assert both.lm_head.weight is both.encoder.embed_tokens.weight
    assert len(list(both.parameters())) == len({id(p) for p in both.parameters()})


def test_all_parameters_learn(both):
    both(ids(2, 8), ids(2, 5)).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in both.parameters())
