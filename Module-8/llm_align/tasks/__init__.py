"""Tasks whose answers a program checks: questions with a right and a wrong answer, and a reward each."""
