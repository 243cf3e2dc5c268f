"""Drawings and plots of the lessons, out of the reader's way."""
