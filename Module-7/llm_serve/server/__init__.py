"""The engine behind an HTTP interface."""
