"""The plan of the course, docs/curriculum.toml, and the times that its notebooks took."""
