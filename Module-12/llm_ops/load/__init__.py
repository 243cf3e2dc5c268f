"""Load on a real server: callers who wait for each other and callers who do not, and what its steps cost."""
