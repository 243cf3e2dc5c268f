"""Instruction data: lines of JSON, the chat template of a tokenizer, which tokens are learned, and packed rows."""
