"""Fewer bits for a trained model's weights, activations and cache, and files that other engines load."""
