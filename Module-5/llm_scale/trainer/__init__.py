"""The scalable trainer: BabyGPT under Lightning on any number of ranks, with sharded checkpoints."""
