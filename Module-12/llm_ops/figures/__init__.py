"""Drawings and plots of the lessons."""
