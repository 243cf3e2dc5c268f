"""How a model is fine-tuned: everything, an adapter, or an adapter beside weights of four bits."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from llm_peft.lora.config import LoRAConfig

METHODS = ("full", "lora", "qlora")
LIBRARIES = ("peft", "ours")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class FineTune:
    """Settings of a fine-tuning.

    Attributes:
        method: "full" trains every weight; "lora" an adapter beside frozen weights; "qlora" the same, with the weights
            of the linear layers in NF4.
        lora: the adapter.
        dtype: of the weights that are loaded, and of the products with those of four bits: "float32", "bfloat16", or
            "auto", bfloat16 on a GPU and float32 on a CPU.
        gradient_checkpointing: keep each block's input alone, and compute the block again in the backward pass.
        library: "peft", with bitsandbytes for four bits; or "ours", the layers of this package.

    Raises:
        ValueError: for what is unknown or does not go together.
    """

    method: str = "lora"
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    dtype: str = "auto"
    gradient_checkpointing: bool = False
    library: str = "peft"

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("library", LIBRARIES), ("dtype", ("auto", *DTYPES))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if self.method == "qlora" and self.lora.init_lora_weights == "pissa":
            raise ValueError("init_lora_weights='pissa' changes the frozen weights, and qlora rounds them; take lora")
        if self.method == "qlora" and self.lora.use_dora and self.library == "ours":
            raise ValueError("use_dora with method='qlora' is not among our own layers; take library='peft'")
        if self.method == "full" and self.dtype == "bfloat16":
            raise ValueError("dtype='bfloat16' with method='full': small steps are lost in 16 bits; take float32")

    @property
    def torch_dtype(self) -> torch.dtype:
        """What `dtype` means on this machine."""
        if self.dtype == "auto":
            return torch.bfloat16 if torch.cuda.is_available() and self.method != "full" else torch.float32
        return DTYPES[self.dtype]
