"""What `local-lora` does: train, talk, merge, and say beforehand whether it fits."""
