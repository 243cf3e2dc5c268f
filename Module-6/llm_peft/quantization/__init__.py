"""Weights of four bits and optimiser states of eight, as bitsandbytes keeps them."""
