"""What a caller may catch."""

from __future__ import annotations


class PictureError(ValueError):
    """A picture, or a row with pictures in it, that a model cannot read; the message says what to change."""
