"""The model's numbers, gradients and names against transformers' Llama."""

import pytest
import torch
from llm_core.masks import packed_mask, padding_mask
from llm_core.model import GPT, GPTConfig, KeyValueCache
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "multi-head": {},
    "grouped": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1, "num_hidden_layers": 1},
    "untied, other base": {"tie_word_embeddings": False, "rope_theta": 500_000.0},
    "wide heads, other eps": {"num_attention_heads": 2, "rms_norm_eps": 1e-2, "intermediate_size": 100},
}
PACKED = [*range(8), *range(12)]


def make(**sizes):
    torch.manual_seed(0)
    config = GPTConfig(97, hidden_size=64, num_hidden_layers=sizes.pop("num_hidden_layers", 3), **sizes)
    model = GPT(config).eval()
    for parameter in model.parameters():  # norms differ from 1, so that a norm left out is seen
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def llama(model):
    values = {name: getattr(model.config, name) for name in GPTConfig.__dataclass_fields__}
    theirs = LlamaForCausalLM(LlamaConfig(**values)).eval()
    assert theirs.load_state_dict(model.state_dict()).missing_keys == []
    return theirs


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def pair(request):
    model = make(**request.param)
    return model, llama(model)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))


def test_logits_loss_and_gradients_are_llamas(pair, ids):
    ours, theirs = pair
    labels = ids.clone()
    labels[0, :7] = -100
    a, b = ours(ids, labels=labels), theirs(ids, labels=labels)
    torch.testing.assert_close(a.logits, b.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.loss, b.loss, rtol=0, atol=1e-5)
    a.loss.backward()
    b.loss.backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_state_dict_goes_back_too(pair):
    ours, theirs = pair
    fresh = GPT(ours.config)
    fresh.load_state_dict(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), ours.parameters(), strict=True))


def test_packed_documents_are_each_alone(pair, ids):
    ours, theirs = pair
    positions = torch.tensor([PACKED] * 3)
    packed = ours(ids, position_ids=positions).logits
    alone = torch.cat([ours(ids[:, :8]).logits, ours(ids[:, 8:]).logits], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(packed, theirs(ids, position_ids=positions, use_cache=False).logits, rtol=0, atol=1e-5)
    assert (packed - ours(ids).logits).abs().max() > 1e-2
    # A mask of padding beside the positions must not take the borders away.
    both = ours(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-5)


def test_left_padding_changes_nothing(pair, ids):
    ours, theirs = pair
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    padded = ours(ids, attention_mask=mask).logits
    torch.testing.assert_close(padded[:1, 5:], ours(ids[:1, 5:]).logits, rtol=0, atol=1e-5)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=places).logits
    torch.testing.assert_close(padded[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)
    assert padded.isfinite().all()
    # Not every kernel of attention takes a row that may look nowhere: padding looks at itself.
    assert padding_mask(mask, 20).any(dim=-1).all()


@pytest.mark.parametrize("pieces", [[20], [7, 13], [1] * 20, [5, 1, 1, 13]])
def test_a_cache_changes_nothing(pair, ids, pieces):
    ours, _ = pair
    cache = KeyValueCache()
    logits = [ours(piece, cache=cache).logits for piece in ids.split(pieces, dim=1)]
    assert len(cache) == 20
    torch.testing.assert_close(torch.cat(logits, dim=1), ours(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pieces", [[20], [7, 13], [8, 12], [1] * 20, [5, 1, 6, 8]])
def test_a_cache_cuts_packed_rows_anywhere(pair, ids, pieces):
    """A document that goes on behind the cut sees its own beginning in the cache, and none of its neighbours."""
    ours, _ = pair
    positions = torch.tensor([PACKED] * 3)
    cache, logits = KeyValueCache(), []
    for piece, places in zip(ids.split(pieces, dim=1), positions.split(pieces, dim=1), strict=True):
        logits.append(ours(piece, position_ids=places, cache=cache).logits)
    expected = ours(ids, position_ids=positions).logits
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=0, atol=1e-5)


def test_a_step_behind_a_cache_needs_one_row_of_a_mask():
    """A square of all positions for each token drawn would make a long text cubic."""
    most = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            most.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Sizes():
        padding_mask(torch.ones(1, 500, dtype=torch.long), 1)
        packed_mask(torch.tensor([[499]]), 499)
    assert max(most) <= 500


def test_a_later_token_changes_no_earlier_logit(pair, ids):
    ours, _ = pair
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 97
    assert torch.equal(ours(ids).logits[:, :12], ours(changed).logits[:, :12])
    assert not torch.equal(ours(ids).logits[:, 12:], ours(changed).logits[:, 12:])


def test_dropout_is_of_the_attention_and_of_training_only(ids):
    ours = make(attention_dropout=0.5)
    assert torch.equal(ours(ids).logits, ours(ids).logits)
    ours.train()
    assert not torch.equal(ours(ids).logits, ours(ids).logits)


def test_a_loss_without_a_target_is_zero(ids):
    assert make()(ids, labels=torch.full_like(ids, -100)).loss == 0


def test_initial_weights():
    ours = GPT(GPTConfig(500, hidden_size=256, initializer_range=0.03, tie_word_embeddings=False))
    for name, parameter in ours.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert abs(parameter.std().item() - 0.03) < 1e-3 and abs(parameter.mean().item()) < 1e-3, name


def test_tied_means_one_matrix():
    assert (tied := make()).lm_head.weight is tied.model.embed_tokens.weight
    assert (free := make(tie_word_embeddings=False)).lm_head.weight is not free.model.embed_tokens.weight


def test_derived_sizes():
    config = GPTConfig(10, hidden_size=128)
    assert (config.intermediate_size, config.num_key_value_heads, config.head_dim) == (352, 4, 32)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"hidden_size": 30}, "hidden_size=30 .* multiple of 8"),
        ({"hidden_size": 36}, "even width"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
        ({"attention_dropout": 1.0}, "attention_dropout=1.0"),
    ],
)
def test_refused_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{"vocab_size": 10, **sizes})


def test_a_row_that_is_too_long_is_refused(ids):
    short = make(max_position_embeddings=16)
    with pytest.raises(ValueError, match="20 positions, and the model has 16"):
        short(ids)
    cache = KeyValueCache()
    short(ids[:, :16], cache=cache)
    with pytest.raises(ValueError, match="17 positions"):
        short(ids[:, :1], cache=cache)
