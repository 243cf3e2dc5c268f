"""Texts as vectors: a trained encoder used, and one of our own."""
