"""Answers that a grammar allows."""
