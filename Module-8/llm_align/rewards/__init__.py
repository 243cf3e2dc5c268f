"""Rewards that are called safely: whatever a function does with an answer, the training goes on and knows of it."""
