"""Files that are written whole or not at all, and clear messages about missing ones."""

import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lcde.errors import InputError

# What NumPy raises on damaged or foreign .npy and .npz files, and a lookup in what it read of them.
UNREADABLE = (
    *(AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error),
    *(NotImplementedError, RuntimeError),  # of zip archives with damaged flags
)


def require_file(path: Path, what: str) -> Path:
    """Return ``path``; raise `InputError` where no file is there, or an empty one or a pointer of git-lfs."""
    if not path.is_file():
        raise InputError(f"{what} not found: {path} does not exist; check the path.")
    with open(path, "rb") as file:
        start = file.read(len(b"version https://git-lfs"))
    if not start:
        raise InputError(f"{path} is empty (0 bytes); copy or create it again.")
    if start == b"version https://git-lfs":
        raise InputError(f"{path} is a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`.")
    return path


def require_free(*paths: Path) -> None:
    """Raise `InputError` if a file already exists where one of ``paths`` is to be written."""
    for path in paths:
        if path.exists():
            raise InputError(f"{path} exists already; name another one.")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on a temporary file in the same folder, then rename it to ``path``: no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            write(file)
        os.chmod(name, 0o644)  # mkstemp's 0600 would lock out the user's colleagues
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
