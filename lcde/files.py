"""Files that are written whole or not at all, and clear messages about missing, damaged and foreign ones."""

import math
import os
import secrets
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.lib import format as npy

from lcde.errors import InputError

UNFINISHED = ".unfinished"  # ending of temporary files
RUN_FOLDERS = ".", "checkpoints", "labels", "figures"  # where a run writes, in its folder


def require_file(path: Path, what: str) -> Path:
    """Return ``path``; raise `InputError` where no file is there, or an empty one or a pointer of git-lfs."""
    if path.is_dir():
        raise InputError(f"{what}: {path} is a folder; name the file.")
    if not path.is_file():
        raise InputError(f"{what} not found: {path} does not exist; check the path.")
    with _told(path, "read"), open(path, "rb") as file:
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


def require_writable(folder: Path) -> None:
    """Make ``folder`` if it is not there; raise `InputError` where it cannot hold new files."""
    with _told(folder, "written to"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def shared_lock(path: Path, timeout: float = -1) -> FileLock:
    """A lock between processes, of several users too, which the system releases when its holder is killed.

    Parameters
    ----------
    path : Path
        The file that is locked, which is made where it is missing.
    timeout : float
        Seconds to wait for it, after which ``filelock.Timeout`` is raised; by default without end.
    """
    return FileLock(path, timeout, mode=0o666)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on a temporary file in the same folder, then rename it to ``path``: no reader sees half a file.

    Raises
    ------
    InputError
        Where the disk is full, or the folder cannot be written to.
    """
    with _told(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
        try:
            with open(temporary, "xb") as file:  # with the permissions of the user's umask, unlike mkstemp's
                write(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, as `write_atomically` does; readers must name the encoding."""
    write_atomically(path, lambda file: file.write(text.encode()))


def file_backed(folder: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array in a temporary file of ``folder``, which is deleted with it, for values that would fill the memory.

    Raises
    ------
    InputError
        Where the disk is full.
    """
    with _told(folder, "written to"), tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk would otherwise kill the process when it assigns values
            os.posix_fallocate(file.fileno(), 0, max(1, math.prod(shape) * np.dtype(dtype).itemsize))
        return np.memmap(file, dtype, "w+", shape=shape)


def remove_unfinished(run_dir: Path) -> None:
    """Delete what killed processes left of `write_atomically` where a run writes, and no other process does now."""
    for folder in RUN_FOLDERS:
        for left in (run_dir / folder).glob(f".*{UNFINISHED}"):
            left.unlink(missing_ok=True)


@contextmanager
def _told(path: Path, done: str) -> Iterator[None]:
    """Convert an `OSError` about ``path`` to an `InputError` that says what cannot be ``done``."""
    try:
        yield
    except OSError as error:
        reason = f"{path} cannot be {done}: {error.strerror or error}"
        raise InputError(f"{reason}; check the disk's free space and the permissions, or name another path.") from error


@contextmanager
def readable(path: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever is raised on a damaged or foreign file into an `InputError` that names ``path``."""
    require_file(path, what)
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the parsers of zip archives, of NumPy and of torch raise errors of a dozen kinds
        if not remedy and any(words in str(error).lower() for words in ("object arrays", "python objects")):
            remedy = "; save it as numbers or text, as array.astype(str) makes it"
        reason = (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(".:")
        raise InputError(f"{path} cannot be read as {what}: {reason}{remedy}.") from None


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The array ``name`` of an ``.npz`` archive, read to its end, where its checksum is: NumPy reads its values only.

    Raises
    ------
    ValueError, zipfile.BadZipFile
        Where it holds objects, or is damaged.
    """
    with archive.open(f"{name}.npy") as member:
        array = npy.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"{name} is longer than its header says")
    return array


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an ``.npy`` array, whose values follow them."""
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
    return read(file)


def map_array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """As `read_array`, but an array of numbers that ``path`` holds uncompressed stays there, read-only."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        shape, fortran_order, dtype = read_header(file)
        header = file.tell()
        if member.compress_type != zipfile.ZIP_STORED or fortran_order or dtype.kind not in "iuf":
            return read_array(archive, name)
        while file.read(2**22):  # at its end, an archive compares the checksum
            pass
    mapped = np.memmap(path, dtype, "r", _start(path, member) + header, shape)
    if header + mapped.nbytes != member.file_size:
        raise ValueError(f"{name} is longer than its header says")
    return np.asarray(mapped)


def _start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where in the archive ``path`` the bytes of a ``member`` begin: after a name and an extra field."""
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return member.header_offset + 30 + name + extra
