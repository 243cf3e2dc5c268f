"""Low-rank adapters: the layer and its variants, where they go, merging, several at once, and PEFT's files."""
