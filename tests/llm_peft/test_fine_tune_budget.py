"""The memory of a fine-tuning before anything is loaded, against live tensors and the highest moment of a real step."""

from __future__ import annotations

import gc

import pytest
import torch
from llm_core.costs.memory import memory_curve
from llm_peft.budget import Budget, _step, budget
from llm_peft.command.plan import config_of, rows, table
from llm_peft.lora.config import LoRAConfig
from llm_peft.records.steps import random_model
from llm_peft.settings import FineTune
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

LLAMA = LlamaConfig(
    vocab_size=1024, hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip
GPT2 = GPT2Config(
    vocab_size=512, n_positions=128, n_embd=64, n_layer=2, n_head=2, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0
)


def measured(config, settings: FineTune, batch: int, time: int, loss_chunk: int = 0) -> tuple[int, int]:
    """Bytes of live tensors between two steps, and the most that the second step takes beside them."""
    model = random_model(config, settings, "cpu")
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], fused=True)
    ids = torch.arange(time).remainder(time // 2).repeat(batch, 1)  # two documents a row
    _step(model, optimizer, ids, loss_chunk)
    gc.collect()
    storages = {}
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    for tensor in tensors:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values()), max(memory_curve(lambda: _step(model, optimizer, ids, loss_chunk)).held)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_held_to_the_byte_and_the_peak_within_a_percent(method, checkpointing):
    settings = FineTune(method=method, gradient_checkpointing=checkpointing, dtype="float32", lora=LoRAConfig(r=8))
    found = budget(LLAMA, settings, 3, 64)
    held, step = measured(LLAMA, settings, 3, 64)
    assert found.held == held
    assert found.step == pytest.approx(step, rel=0.01)
    assert found.bytes == found.held + found.step


@pytest.mark.parametrize(("config", "settings", "chunk"), [
    (GPT2, FineTune(method="lora", dtype="float32"), 0),
    (LLAMA, FineTune(method="lora", dtype="float32", library="ours"), 0),
    (LLAMA, FineTune(method="lora", dtype="float32"), 48),
    (LLAMA, FineTune(method="lora", dtype="bfloat16"), 0),
    (LLAMA, FineTune(method="lora", dtype="float32", lora=LoRAConfig(target_modules=("q_proj", "v_proj"))), 0),
])  # fmt: skip
def test_other_models_and_settings(config, settings, chunk):
    found = budget(config, settings, 2, 64, chunk)
    held, step = measured(config, settings, 2, 64, chunk)
    assert found.held == held and found.step == pytest.approx(step, rel=0.05)


def test_parameters():
    found = budget(LLAMA, FineTune(method="qlora", lora=LoRAConfig(r=4)), 1, 8)
    whole = AutoModelForCausalLM.from_config(LLAMA).num_parameters()
    assert found.parameters == whole + found.trained_parameters
    per_layer = 4 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 384))
    assert found.trained_parameters == 3 * per_layer


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        budget(LLAMA, FineTune(), 0, 8)


def test_a_table_of_what_fits(base):
    found = rows(config_of(str(base)), FineTune(dtype="float32"), 1, 32)
    assert [(settings.method, settings.gradient_checkpointing) for settings, _ in found] == [
        (method, checkpointing) for method in ("full", "lora", "qlora") for checkpointing in (False, True)
    ]
    middle = sorted(each.bytes for _, each in found)[2]
    text = table(found, middle)
    assert text.count(" yes\n") == 3 and text.count(" no\n") == 3
    assert config_of("7B").num_hidden_layers == 32


def test_together():
    made = Budget(frozen=1, trained=2, states=4, gradients=2, step=8, parameters=3, trained_parameters=2)
    assert (made.held, made.bytes) == (7, 15)
