"""Answers from passages, and what a passage may not do to them."""
