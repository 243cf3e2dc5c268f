"""Module 6's helper package: a pretrained model adapted on the machine at hand, and every byte of it known.

`from llm_peft import FineTune, LocalLoRA, LoRAConfig, inject, prepare`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_peft.budget import budget
    from llm_peft.chat.datamodule import ChatDataModule
    from llm_peft.local_lora import LocalLoRA
    from llm_peft.lora.bank import AdapterBank
    from llm_peft.lora.config import LoRAConfig
    from llm_peft.lora.files import load_adapter, read_adapter, save_adapter
    from llm_peft.lora.inject import inject
    from llm_peft.lora.layer import LoRALinear
    from llm_peft.lora.merging import merged
    from llm_peft.prepare import prepare
    from llm_peft.quantization.linear import NF4Linear
    from llm_peft.quantization.nf4 import dequantize_nf4, quantize_nf4
    from llm_peft.settings import FineTune

__all__ = [
    "AdapterBank", "ChatDataModule", "FineTune", "LoRAConfig", "LoRALinear", "LocalLoRA", "NF4Linear", "budget",
    "dequantize_nf4", "inject", "load_adapter", "merged", "prepare", "quantize_nf4", "read_adapter", "save_adapter",
]  # fmt: skip

export(__name__, {
    "AdapterBank": "lora.bank", "ChatDataModule": "chat.datamodule", "FineTune": "settings",
    "LoRAConfig": "lora.config", "LoRALinear": "lora.layer", "LocalLoRA": "local_lora",
    "NF4Linear": "quantization.linear", "budget": "budget", "dequantize_nf4": "quantization.nf4",
    "inject": "lora.inject", "load_adapter": "lora.files", "merged": "lora.merging", "prepare": "prepare",
    "quantize_nf4": "quantization.nf4", "read_adapter": "lora.files", "save_adapter": "lora.files",
})  # fmt: skip
