"""Whether a file is text in UTF-8, told from its first bytes: what it is instead, and what to do about it."""

from __future__ import annotations

HEAD = 4096  # bytes that are looked at

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip (or a document of Word, Excel or EPUB)",
    b"PK\x05\x06": "zip",
    b"\xfd7zXZ\x00": "xz",
    b"]\x00\x00": "lzma",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    **{b"BZh%d" % level + block: "bzip2" for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")},
}
OTHER = {
    b"%PDF-": "a PDF",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"RIFF": "a RIFF file (WAV, AVI or WebP)",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
    b"\xd0\xcf\x11\xe0": "a document of an old Office",
}
# In this order: the first bytes of UTF-32's mark are those of UTF-16's.
MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
LETTERS_FIRST = (b"GIF8", b"RIFF", b"PAR1", b"ARROW1")  # a text might begin so; then no control byte follows
CONTROLS = bytes(byte for byte in range(32) if byte not in b"\n\r")
ODD_CONTROLS = bytes(byte for byte in CONTROLS if byte not in b"\t\f\v\x1b")


def refused(head: bytes) -> str | None:
    """Why a file that begins with these bytes is not read: what it is, and what to do. None for what may be text.

    Args:
        head: its first `HEAD` bytes, or all of them.
    """
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return _recode(encoding)
    for kinds, advice in ((COMPRESSED, "is compressed ({}); unpack it"), (OTHER, "is {}, not text; extract its text")):
        for magic, kind in kinds.items():
            binary = magic not in LETTERS_FIRST or any(byte in ODD_CONTROLS for byte in head)
            if head.startswith(magic) and binary:
                return advice.format(kind)
    if head[257:262] == b"ustar":
        return "is an archive (tar); unpack it"
    return _without_mark(head)


def _without_mark(head: bytes) -> str | None:
    """UTF-16 and UTF-32 without a byte-order mark are valid UTF-8 as long as all characters are below U+0800 or so:
    every second byte of theirs is a NUL or another control byte, which no text has so many of."""
    if len(head) < 4:
        return None
    odd, even = head[1::2], head[: len(head) // 2 * 2 : 2]
    shares = [len(half) - len(half.translate(None, CONTROLS)) for half in (odd, even)]
    if b"\x00" not in head or max(shares) < 0.7 * len(odd):
        return None
    order = "LE" if shares[0] == max(shares) else "BE"
    width = "UTF-32" if min(shares) > 0.4 * len(odd) else "UTF-16"
    return _recode(width + order, " (it has no byte-order mark)")


def _recode(encoding: str, note: str = "") -> str:
    return f"is {encoding}{note}, not UTF-8; convert it: iconv -f {encoding} -t UTF-8"
