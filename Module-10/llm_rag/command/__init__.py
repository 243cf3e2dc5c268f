"""`rag`'s commands, each with what it prints."""
