"""How Lightning writes and reads checkpoints of ours: whole or not at all, and never objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from course.files import write_whole


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or not there: written beside their place, then renamed.

    A run killed while it writes keeps the checkpoint before. (Lightning's own writes to the system's temporary folder
    and moves, through fsspec; between two file systems a move is a copy, which a kill cuts short.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        target = Path(path)
        try:
            write_whole(target, lambda part: _save(checkpoint, part))
        except (OSError, RuntimeError) as error:  # on a full disk torch's writer gives the second
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            reason = f"{target} cannot be written ({cause.strerror}); make room, and go on from the checkpoint before"
            raise OSError(reason) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """A checkpoint's values; never objects, whose making can run code."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # an OSError of a file of ours; torch's own loses what the system said
        torch.save(checkpoint, file)
