"""What a notebook is as a file, and what it is saved as."""
