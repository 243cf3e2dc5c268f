"""One file on disk that holds documents, passages, words and vectors."""
