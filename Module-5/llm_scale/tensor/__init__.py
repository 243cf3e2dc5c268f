"""Tensor parallelism: every matrix of a block cut over ranks, by hand and as a plan for the library."""
