"""What the commands of `llm-ops` do."""
