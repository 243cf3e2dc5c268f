"""Whole sparse models: folders of transformers, upcycling, training, costs, and experts on two ranks."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from llm_core.config import GPTConfig
from llm_core.forgetting import SILENT
from llm_core.model import GPT
from llm_moe.balance import balance_loss, concatenated_balance_loss
from llm_moe.config import SparseConfig
from llm_moe.costs import (
    distinct_experts,
    flops_per_token,
    parameters,
    read_per_step,
    same_work,
)
from llm_moe.hub import load_mixtral, save_mixtral
from llm_moe.model import router_loss, routings, sparse_gpt, sparse_layers, upcycle
from llm_moe.parallel import expected_wire_bytes
from llm_moe.records import experts
from llm_moe.training import SparseBabyGPT
from llm_precision.meters import count_flops
from llm_scale.ranks import Ranks
from moe_jobs import exchanged, refused
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from course.record import Setting

CONFIG = GPTConfig(200, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                   intermediate_size=64, tie_word_embeddings=False)  # fmt: skip


def model(seed: int = 0, config: GPTConfig = CONFIG, **changes) -> GPT:
    torch.manual_seed(seed)
    return sparse_gpt(config, SparseConfig(**{"num_experts": 4, **changes}))


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_transformers_and_back(tied, tmp_path):
    ours = model(config=GPTConfig(**{**vars(CONFIG), "tie_word_embeddings": tied, "rope_theta": 5e4}))
    save_mixtral(ours, None, tmp_path / "x")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    ids = torch.randint(0, 200, (2, 17))
    out = theirs(ids, labels=ids)
    logits = ours(ids).logits
    torch.testing.assert_close(out.logits, logits, rtol=0, atol=2e-6)
    torch.testing.assert_close(out.aux_loss, concatenated_balance_loss(routings(ours)), rtol=1e-5, atol=1e-6)
    again, tokenizer = load_mixtral(tmp_path / "x")
    torch.testing.assert_close(again(ids).logits, logits, rtol=0, atol=1e-6)
    assert tokenizer is None and sparse_layers(again)[0].sparse.router_aux_loss_coef == 0.01


def test_mixtrals_default_balances_nothing(tmp_path):
    config = MixtralConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=1, num_local_experts=4)  # fmt: skip
    theirs = MixtralForCausalLM(config)
    ids = torch.randint(0, 50, (2, 9))
    assert theirs(ids, labels=ids).aux_loss is None
    theirs.save_pretrained(tmp_path / "x")
    found, _ = load_mixtral(tmp_path / "x")
    assert sparse_layers(found)[0].sparse.balance == "none"
    torch.testing.assert_close(found(ids).logits, theirs.eval()(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shared_intermediate_size": 8}, "Mixtral has no shared_intermediate_size"),
        ({"capacity_factor": 1.0}, "no capacity_factor"), ({"norm_topk_prob": False}, "no norm_topk_prob=False"),
        ({"balance": "bias"}, "no balance="),
    ],
)  # fmt: skip
def test_what_mixtral_is_not_is_refused(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_mixtral(model(**changes), None, tmp_path)
    with pytest.raises(ValueError, match="0 of 3 blocks are sparse"):
        save_mixtral(GPT(CONFIG), None, tmp_path)


def test_folders_that_ours_is_not(tmp_path):
    config = MixtralConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
                           sliding_window=8)  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "window")
    with pytest.raises(ValueError, match="sliding_window=8, and this model knows None only"):
        load_mixtral(tmp_path / "window")
    from llm_core.store.registry import save_model

    save_model(GPT(CONFIG), None, tmp_path / "llama")
    with pytest.raises(ValueError, match="is a llama, and this reads Mixtral's folders"):
        load_mixtral(tmp_path / "llama")


@pytest.mark.parametrize("k", [1, 2])
def test_an_upcycled_model_says_what_the_dense_one_says(k):
    torch.manual_seed(0)
    dense = GPT(CONFIG)
    sparse = upcycle(dense, SparseConfig(4, k))
    ids = torch.randint(0, 200, (2, 17))
    torch.testing.assert_close(sparse(ids).logits, dense(ids).logits, rtol=0, atol=1e-5)
    assert len({float(each.probs[0, 0]) for each in routings(sparse)}) == 3  # the routers are new, and differ
    with torch.no_grad():  # and its experts are copies of their own
        sparse_layers(sparse)[0].experts.down_proj[0].zero_()
    assert (sparse(ids).logits - dense(ids).logits).abs().max() > 1e-4
    with pytest.raises(ValueError, match="leave it at 0"):
        upcycle(dense, SparseConfig(4, k, moe_intermediate_size=32))
    with pytest.raises(ValueError, match="norm_topk_prob=True and no shared expert"):
        upcycle(dense, SparseConfig(4, k, norm_topk_prob=False))


@pytest.mark.parametrize(
    "changes", [{}, {"moe_intermediate_size": 20, "num_experts_per_tok": 3}, {"shared_intermediate_size": 24}]
)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_work_by_formula(changes, tied):
    config = GPTConfig(**{**vars(CONFIG), "tie_word_embeddings": tied})
    sparse = SparseConfig(**{"num_experts": 4, "form": "loop", **changes})
    made = sparse_gpt(config, sparse)
    assert parameters(config, sparse).total == sum(each.numel() for each in made.parameters())
    products = sum(
        each.numel()
        for name, each in made.named_parameters()
        if not any(part in name for part in (".experts.", "norm", "embed"))
    )
    products += 200 * 48 if tied else 0
    inside = sparse.moe_intermediate_size or 64
    assert flops_per_token(config, sparse) == 2 * (products + 3 * 3 * 48 * inside * sparse.num_experts_per_tok)
    assert same_work(config, sparse) == 64 // sparse.num_experts_per_tok


def test_counted_flops_of_a_forward_pass():
    made, ids = model(form="loop"), torch.randint(0, 200, (1, 60))
    with torch.device("meta"):
        dense = GPT(GPTConfig(**{**vars(CONFIG), "intermediate_size": 128}))
    of_dense = count_flops(lambda: dense(ids.to("meta")))  # two experts of 64 are an MLP of 128
    router = 60 * 3 * 2 * 48 * 4
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert count_flops(lambda: made(ids)) == pytest.approx(of_dense + router, rel=0.01)
    dense_products = (
        60 * 2 * (sum(p.numel() for n, p in dense.named_parameters() if "norm" not in n and "embed" not in n))
    )
    assert 60 * flops_per_token(CONFIG, SparseConfig(4)) == dense_products + router


def test_a_batch_meets_so_many_experts():
    dice = torch.Generator().manual_seed(0)
    for tokens in (1, 3, 10):
        met = [len(set(torch.rand(tokens, 8, generator=dice).topk(2).indices.flatten().tolist())) for _ in range(2000)]
        assert sum(met) / 2000 == pytest.approx(distinct_experts(tokens, 8, 2), abs=0.05)
    sparse = SparseConfig(8)
    one, many = read_per_step(CONFIG, sparse, 1), read_per_step(CONFIG, sparse, 1000)
    held = parameters(CONFIG, sparse)
    assert one == pytest.approx(2 * held.active) and many == pytest.approx(2 * (held.total - 200 * 48), rel=1e-6)


# -- training ---------------------------------------------------------------------------------------------------------


def rows(batch_size):
    torch.manual_seed(1)
    ids = torch.randint(0, 200, (24, 20))
    return DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=batch_size)


def trained(module, batch_size=8, steps=3, **trainer):
    options = {**SILENT, "devices": 1, "accelerator": "cpu", "max_steps": steps, "log_every_n_steps": 1, **trainer}
    pl.Trainer(**options).fit(module, rows(batch_size))
    return {name: values.detach().clone() for name, values in module.model.state_dict().items()}


class Grads(pl.Callback):
    """Keeps the gradients of a step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.grads = {name: each.grad.clone() for name, each in pl_module.model.named_parameters()}


def test_the_routers_loss_is_part_of_a_step():
    ids = next(iter(rows(8)))["input_ids"]
    module, found = SparseBabyGPT(model(), warmup_steps=0), Grads()
    trained(module, steps=1, callbacks=[found])
    by_hand = model()
    (by_hand(ids, labels=ids).loss + router_loss(by_hand)).backward()
    wanted = 0.01 * torch.stack([balance_loss(each) for each in routings(by_hand)]).mean()
    torch.testing.assert_close(router_loss(by_hand), wanted)
    assert float(module._router) == pytest.approx(float(wanted.detach()), abs=1e-6)
    other = model()
    other(ids, labels=ids).loss.backward()
    gate = "model.layers.0.mlp.gate.weight"
    grads = [dict(each.named_parameters())[gate].grad for each in (by_hand, other)]
    assert (grads[0] - grads[1]).abs().max() > 1e-6
    torch.testing.assert_close(found.grads[gate], grads[0], rtol=1e-3, atol=1e-7)


def test_a_step_in_two_batches_is_near_the_step_in_one():
    """The balance of a batch is not that of its halves; the loss of the tokens is, and without a balance all is."""
    one, two = (trained(SparseBabyGPT(model(balance="none"), warmup_steps=0), size, accumulate_grad_batches=batches)
                for size, batches in ((8, 1), (4, 2)))  # fmt: skip
    for name, values in one.items():
        assert ((values - two[name]).abs() > 2e-5).float().mean() < 0.01, name


def test_biases_move_in_training_and_are_kept():
    module = SparseBabyGPT(model(balance="bias", bias_step=0.01), warmup_steps=0)
    state = trained(module)
    moved = state["model.layers.1.mlp.bias"]
    assert moved.any() and float(moved.abs().max()) <= 0.03 + 1e-6
    with pytest.raises(ValueError, match="no sparse layers"):
        SparseBabyGPT(GPT(CONFIG))
    with pytest.raises(ValueError, match="loss_chunk is not made for sparse models"):
        SparseBabyGPT(model(), loss_chunk=8)
    with pytest.raises(RuntimeError, match="nothing was routed"):
        routings(model())


# -- experts on two ranks ---------------------------------------------------------------------------------------------


def test_two_ranks_are_one_process():
    with Ranks(2) as two:
        for form in ("loop", "grouped"):
            results = two.run(exchanged, form)
            for differences, wire in results:
                assert max(differences) < 1e-5
                assert 0.3 < wire / expected_wire_bytes(18, 2, 2, 32) < 1.7
        words = two.run(refused)
    assert all("num_experts=7 do not divide among 2 ranks" in each for each in words)


def test_rows_of_a_gpu():
    rows_of_it = list(experts.equal_work(Setting("cpu", toy=True)))
    assert [row["row"] for row in rows_of_it] == ["dense", "loop", "batched", "grouped"]
    assert not any("missing" in row for row in rows_of_it)
    dense, sparse = (row["parameters"] for row in rows_of_it[:2])
    assert sparse == 4 * dense + 8 * 32  # 8 of half the width, and a router
