"""The sizes of a sparse layer."""

from __future__ import annotations

from dataclasses import dataclass

FORMS = ("loop", "batched", "grouped")
BALANCES = ("none", "loss", "bias")


@dataclass(frozen=True)
class SparseConfig:
    """Experts in place of an MLP; the names are those of transformers' `MixtralConfig` and `Qwen3MoeConfig`.

    Args:
        num_experts: E.
        num_experts_per_tok: k, the experts that a token is sent to.
        moe_intermediate_size: F, the width inside an expert; 0 takes the dense model's.
        norm_topk_prob: whether the k weights of a token are divided by their sum, as Mixtral does.
        shared_intermediate_size: width of an expert that every token is sent to beside its k; 0 for none.
        capacity_factor: an expert takes so many times the tokens that it would have in balance, and drops those behind
            them; None drops none.
        balance: "loss" adds `router_aux_loss_coef` times `balance.balance_loss` of each layer; "bias" moves a number
            for each expert, which chooses and does not weigh; "none" does nothing.
        router_aux_loss_coef: weight of the balancing loss.
        router_z_loss_coef: weight of `balance.z_loss`.
        bias_step: what the bias of "bias" moves by at each step.
        form: "loop", "batched" or "grouped": how the experts' products are made; the numbers are the same.

    Raises:
        ValueError: for sizes that cannot be.
    """

    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    shared_intermediate_size: int = 0
    capacity_factor: float | None = None
    balance: str = "loss"
    router_aux_loss_coef: float = 0.01
    router_z_loss_coef: float = 0.0
    bias_step: float = 0.001
    form: str = "grouped"

    def __post_init__(self) -> None:
        for name, least in (("num_experts", 1), ("num_experts_per_tok", 1), ("moe_intermediate_size", 0),
                            ("shared_intermediate_size", 0)):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number and at least {least}")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} of num_experts={self.num_experts}; lower it"
            )
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise ValueError(f"capacity_factor={self.capacity_factor} must be above 0, or None to drop no token")
        for name, known in (("balance", BALANCES), ("form", FORMS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        for name in ("router_aux_loss_coef", "router_z_loss_coef", "bias_step"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")
