"""trl's own loss functions on given log-probabilities: a trainer without a model, whose forward pass is ours to say."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import torch


class Alone:
    """An accelerator of one process."""

    num_processes, process_index, sync_gradients, device = 1, 0, True, torch.device("cpu")

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction="sum"):
        return x


class Grows(dict):
    """Metrics: a list under every name."""

    def __missing__(self, name):
        self[name] = defaultdict(list)
        return self[name]


def bare(kind, **settings):
    made = object.__new__(kind)
    made.__dict__.update(accelerator=Alone(), _metrics=Grows(), aux_loss_enabled=False,
                         model=SimpleNamespace(training=True), **settings)  # fmt: skip
    return made


def grpo(logprobs, old, advantages, mask, *, loss_type, beta=0.0, reference=None, level="token", low=0.2, high=0.2,
         max_length=1, weights=None):  # fmt: skip
    """trl's GRPO loss."""
    from trl import GRPOTrainer

    trainer = bare(
        GRPOTrainer, beta=beta, epsilon_low=low, epsilon_high=high, loss_type=loss_type, top_entropy_quantile=1.0,
        importance_sampling_level=level, off_policy_mask_threshold=None, current_gradient_accumulation_steps=1,
        max_completion_length=max_length, use_vllm=weights is not None, vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False, use_adaptive_entropy=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
    )  # fmt: skip
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": mask.long(),
        "advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    if reference is not None:
        inputs["ref_per_token_logps"] = reference
    if weights is not None:
        inputs["importance_sampling_ratio"] = weights
    return trainer._compute_loss(trainer.model, inputs)


def rloo(logprobs, old, advantages, mask):
    """trl's RLOO loss."""
    from trl import RLOOTrainer

    trainer = bare(RLOOTrainer, epsilon_low=0.2, epsilon_high=0.2)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    return trainer._compute_loss(trainer.model, {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": mask.long(),
        "advantages": advantages, "old_logps": (old * mask).sum(1),
    })  # fmt: skip


def dpo(logprobs, reference, mask, *, beta, loss_type, label_smoothing=0.0):
    """trl's DPO loss: rows are the chosen answers and then the rejected ones."""
    from trl import DPOTrainer

    rows, time = logprobs.shape

    def outputs(values):
        full = torch.cat([torch.zeros(rows, 1), values.masked_fill(~mask, 0.0)], dim=1)
        zero = torch.zeros_like(full).detach()
        return SimpleNamespace(log_probs=full, entropy=zero, mean_logits=zero, is_top1=zero.bool())

    trainer = bare(
        DPOTrainer, ld_alpha=None, precompute_ref_logps=False, f_divergence_type="reverse_kl", beta=beta,
        loss_types=[loss_type], loss_weights=[1.0], label_smoothing=label_smoothing, use_weighting=False,
        _total_train_tokens=0, _tp_size=1, ref_model=lambda **_: outputs(reference),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    trainer.model = torch.nn.Identity()
    trainer.model.training = True
    trainer.model.is_gradient_checkpointing = False
    completion = torch.cat([torch.zeros(rows, 1, dtype=torch.long), mask.long()], dim=1)
    ids = torch.zeros(rows, time + 1, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": ids + 1, "completion_mask": completion}
    return trainer._compute_loss(lambda **_: outputs(logprobs), inputs, False)
