"""`course doctor`: what this machine has, and what is wrong."""
