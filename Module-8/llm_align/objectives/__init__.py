"""Losses and advantages, each a page: tensors in, tensors out."""
