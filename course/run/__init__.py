"""`course run` and `course status`: notebooks run in order, shown, reported and remembered."""
