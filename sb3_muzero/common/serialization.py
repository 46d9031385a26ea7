"""
Save and load nested data without pickle, so that loading a file never executes code.

The data consists of dictionaries with string keys, and lists. Leaves are NumPy arrays, tensors, strings, numbers, booleans and
``None``. The file is an uncompressed ``.npz`` archive with the arrays, and the structure as JSON.
"""

import contextlib
import io
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

STRUCTURE = "structure"
ARRAY, TENSOR = "array of the file", "tensor of the file"


def save_npz(path: str | Path | io.BufferedIOBase, tree: dict[str, Any]) -> None:
    """
    :param path: File to write (see ``atomic_write``), or a file object
    :param tree: Nested dictionaries and lists
    :raises OSError: if the file cannot be written
    :raises TypeError: for a leaf that cannot be saved without pickle
    """
    arrays: dict[str, np.ndarray] = {}

    def reference(leaf: Any) -> Any:
        if isinstance(leaf, np.generic):
            return leaf.item()
        array = leaf.numpy(force=True) if isinstance(leaf, th.Tensor) else leaf
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            raise TypeError(f"{leaf!r:.200} cannot be saved without pickle")
        arrays[name := str(len(arrays))] = array
        return {TENSOR if isinstance(leaf, th.Tensor) else ARRAY: name}

    structure = json.dumps(tree, default=reference)
    arrays[STRUCTURE] = np.frombuffer(structure.encode(), np.uint8)
    opened: Any = atomic_write(Path(path)) if isinstance(path, str | Path) else contextlib.nullcontext(path)
    with opened as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_npz(path: str | Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    :param path: File written by ``save_npz``, or a file object
    :return: The saved data, which takes no more memory than the file has bytes
    :raises OSError: if the file does not exist or is not a regular file
    :raises ValueError: if the file is damaged or has another format
    """

    def restore(branch: dict[str, Any]) -> Any:
        if set(branch) == {ARRAY}:
            return arrays.pop(branch[ARRAY])  # each array belongs to one leaf
        return th.from_numpy(arrays.pop(branch[TENSOR])) if set(branch) == {TENSOR} else branch

    opened: Any = _open_regular(path) if isinstance(path, str | Path) else contextlib.nullcontext(path)
    try:
        with opened as content, zipfile.ZipFile(content) as file:
            claimed, length = sum(member.file_size for member in file.infolist()), content.seek(0, os.SEEK_END)
            if claimed > length:  # what is compressed may be any number of zeros
                raise ValueError(f"its {length} bytes claim to hold arrays of {claimed} bytes; sb3_muzero does not compress")
            arrays = {member.filename.removesuffix(".npy"): _read_array(file, member) for member in file.infolist()}
        tree = json.loads(arrays.pop(STRUCTURE).tobytes(), object_hook=restore)
        if not isinstance(tree, dict):
            raise ValueError(f"it contains a {type(tree).__name__}")
        return tree
    except Exception as error:  # a damaged file can raise any error
        raise ValueError(f"{path} is damaged, or not a file of sb3_muzero: {error!r}") from error


def _open_regular(path: str | Path) -> io.BufferedReader:
    """:return: The open file; opening a FIFO or a device could wait for ever"""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is not a regular file")
    return file


def _read_array(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with file.open(member) as content:
        array = np.lib.format.read_array(content, allow_pickle=False)
        if content.read(1):  # at the end of the member zipfile verifies its checksum
            raise ValueError(f"{member.filename} contains more than its array")
    return array


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[io.BufferedIOBase]:
    """
    Write to a temporary file and rename it when it is complete. If writing fails, an existing file is not changed.

    :param path: File to write
    :return: Context manager with the open file
    :raises OSError: if the file cannot be written, or if anything but a regular file has its name
    """
    path = Path(os.path.realpath(path))  # the target of a link
    if os.path.lexists(path) and not path.is_file():
        raise OSError(f"{path} is not a regular file and can't be replaced by one")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.unfinished")
    try:
        with open(unfinished, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def with_suffix(path: Any, suffix: str) -> Any:
    """
    Complete a path as SB3's ``open_path`` does, and create its folder.

    :param path: Path to a file, or a file object
    :param suffix: Suffix to add if the name has none
    :return: Completed path; a file object is returned unchanged
    """
    if not isinstance(path, str | Path):
        return path
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path if path.suffix else path.with_name(f"{path.name}{suffix}")


def copy_into(ring: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """
    Fill the first rows of an array. If ``rows`` has as many rows as the array, ``rows`` is returned, which avoids a copy.

    :param ring: Array to fill, shape ``[N, ...]``
    :param rows: First rows, shape ``[M, ...]`` with M <= N
    :return: Array with these rows, shape ``[N, ...]``
    """
    if rows.shape == ring.shape and rows.flags.c_contiguous:
        return rows
    ring[: len(rows)] = rows
    return ring


def validate_array(name: str, given: Any, like: np.ndarray, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """
    Check an array loaded from a file.

    :param name: Name in error messages
    :param given: Loaded value
    :param like: Array with the expected dtype and shape
    :param low: Lower bound of the numbers
    :param high: Upper bound of the numbers
    :return: The array
    :raises ValueError: for another dtype or shape, and for numbers that are not finite or out of bounds
    """
    if not isinstance(given, np.ndarray) or (given.dtype, given.shape) != (like.dtype, like.shape):
        found = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else repr(given)
        raise ValueError(f"`{name}` must be an array of {like.dtype} and shape {like.shape}, got {found:.200}")
    has_bounds = (low, high) != (-np.inf, np.inf)
    if given.dtype.kind in ("fiu" if has_bounds else "f") and given.size > 0:
        smallest, largest = given.min(), given.max()
        if not (np.isfinite([smallest, largest]).all() and low <= smallest and largest <= high):
            raise ValueError(f"`{name}` must have finite numbers from {low:g} to {high:g}, got {smallest} to {largest}")
    return given


def validate_number(name: str, given: Any, kind: type, low: float = -np.inf, high: float = np.inf) -> Any:
    """
    Check a number loaded from a file.

    :param name: Name in error messages
    :param given: Loaded value
    :param kind: ``bool``, ``int`` or ``float``, which accepts integers
    :param low: Lower bound
    :param high: Upper bound
    :return: The number
    :raises ValueError: for another type, and for a number that is not finite or out of bounds
    """
    kinds = (float, int) if kind is float else (kind,)
    is_kind = isinstance(given, kinds) and isinstance(given, bool) == (kind is bool)
    if not (is_kind and np.isfinite(given) and low <= given <= high):
        raise ValueError(f"`{name}` must be a finite {kind.__name__} from {low:g} to {high:g}, got {given!r:.200}")
    return given
