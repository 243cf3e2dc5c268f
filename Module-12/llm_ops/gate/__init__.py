"""Evaluation as a gate: what a new model must not do worse before it serves."""
