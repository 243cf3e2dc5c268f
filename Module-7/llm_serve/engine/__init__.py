"""Requests in, tokens out: many at once, each as it would be alone."""
