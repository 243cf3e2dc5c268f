"""Documents: named corpora, files that people bring, and the standard library's source."""
