"""Answers that the policy writes by itself, in rounds, and the batches that are learned from them."""
