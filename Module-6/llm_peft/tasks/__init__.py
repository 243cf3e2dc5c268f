"""Small tasks with a score that can be computed, made of Python's own library."""
