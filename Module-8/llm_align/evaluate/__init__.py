"""What a training changed: scores with intervals, overlap with the training texts, formats, diversity, forgetting."""
