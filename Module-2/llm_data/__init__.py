"""Module 2's helper package: from raw text to batches, with no token lost and none shown twice."""
