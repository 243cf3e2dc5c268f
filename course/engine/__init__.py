"""How a notebook is executed, by `course run` and under pytest."""
