"""From text to ids: byte-level BPE and WordPiece, by hand and as fast tokenizers."""
