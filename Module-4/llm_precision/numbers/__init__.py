"""Numbers as bits: formats, rounding, blocks that share a scale, and products in eight bits."""
