"""Module 3's helper package: a GPT, its losses and optimiser, its training under Lightning, and its samples."""
