"""What is learned from: prompts, pairs of answers, and the batches made of them."""
