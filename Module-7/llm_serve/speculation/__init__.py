"""Several tokens a step, without changing an answer."""
