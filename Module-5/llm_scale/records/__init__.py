"""What `course record` and the race measure for this module: strategies in turns on ranks, and training on one GPU."""
