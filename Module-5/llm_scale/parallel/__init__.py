"""Data parallel training by hand: gradients averaged, in buckets too, then states, gradients and weights sharded."""
