"""Files that are whole or not there, and locks that one process holds."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from course.files import Busy, locked, write_text, write_whole


def test_bytes_are_on_the_disk_before_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace, sync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("bytes"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("name"), replace(*paths)))
    write_text(tmp_path / "new folder/file", "x\n")
    assert order == ["bytes", "name"]
    assert (tmp_path / "new folder/file").read_bytes() == b"x\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("odd"), KeyboardInterrupt()])
def test_what_cannot_be_written_leaves_what_was_there(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / ("a long name " * 20)
    path.write_text("before")

    def write(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        write_whole(path, write)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert isinstance(caught.value, OSError) and caught.value.filename == str(path) and caught.value.errno == 28


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    write_text(path, "2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "some/lock"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom course.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(Busy), locked(path, wait=False):
        raise AssertionError("both hold it")
    other.kill()
    other.communicate()
    with locked(path, wait=False):
        pass
