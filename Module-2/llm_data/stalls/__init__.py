"""What a training step waits for: the waits measured, and their traces."""
