"""A lock on a folder, so that only one run at a time saves its checkpoints there."""

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "checkpoints.lock"
"""Name of the file that is locked; it says by which process, and is empty otherwise."""

_held: dict[Path, tuple[Any, int]] = {}
"""Folders that this process has locked: by which run, and the open file."""


@contextlib.contextmanager
def folder_lock(folder: Path, run: Any) -> Iterator[None]:
    """
    Hold the lock of a folder. The kernel releases it when the process ends, in whatever way.

    :param folder: Folder for checkpoints, created if necessary
    :param run: Model in training, which may take the lock of a folder again while it holds it
    :return: Context manager
    :raises ValueError: if another run holds the lock; the message names its process
    :raises OSError: if the file can't be opened for writing
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if fcntl is None or (folder in _held and _held[folder][0] is run):
        yield
        return
    process, file = os.getpid(), _open_locked(folder)
    _held[folder] = run, file
    try:
        yield
    finally:
        if os.getpid() == process:  # a fork of it has closed its files
            _held.pop(folder, None)
            _write(file, "")
            os.close(file)


def _open_locked(folder: Path) -> int:
    own_name = f"process {os.getpid()} on {socket.gethostname()}"
    # Neither waits for a FIFO nor follows a link
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        name = os.pread(file, 200, 0).decode(errors="replace") or "another process"
        os.close(file)
        raise ValueError(
            f"Another run is saving its checkpoints in {folder}: {f'a second model of {name}' if name == own_name else name}. "
            f"Wait until it ends, end it, or use another folder"
        ) from None
    except OSError as error:
        warnings.warn(f"{folder} can't be locked, so nothing prevents other runs from saving there: {error}")
    _write(file, own_name)
    return file


def _write(file: int, text: str) -> None:
    with contextlib.suppress(OSError):  # of a full disk
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)


def _close_in_fork() -> None:
    """A fork must not hold the lock when the process that took it has ended."""
    for _, file in _held.values():
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_fork)
