"""What only a GPU can measure."""
