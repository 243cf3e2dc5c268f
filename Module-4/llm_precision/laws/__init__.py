"""Scaling laws: the loss fitted over parameters and tokens, an interval for it, and three ways to the best split."""
