"""Ranking by words and by vectors, by hand."""
