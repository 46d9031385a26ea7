"""
Files without pickle for arrays, tensors and plain values: reading one runs no code.

What is saved is nested: dictionaries with strings as keys, and lists; the leaves are NumPy arrays, tensors, strings, numbers,
booleans and ``None``. The file is an uncompressed ``.npz`` that also contains the nesting as JSON.
"""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

STRUCTURE = "structure"
ARRAY, TENSOR = "array of the file", "tensor of the file"


def _flatten(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """:return: The structure with names in place of its arrays, which are added to ``arrays``"""
    if isinstance(tree, dict):
        if not all(isinstance(key, str) and key not in (ARRAY, TENSOR) for key in tree):
            raise TypeError(f"Names must be strings other than {ARRAY!r} and {TENSOR!r}, got {list(tree)}")
        return {key: _flatten(part, arrays) for key, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [_flatten(part, arrays) for part in tree]
    if isinstance(tree, np.ndarray | th.Tensor):
        name = str(len(arrays))
        arrays[name] = tree.numpy(force=True) if isinstance(tree, th.Tensor) else tree
        if arrays[name].dtype.hasobject:
            raise TypeError(f"Arrays of objects can't be saved without pickle, got {arrays[name]}")
        return {TENSOR if isinstance(tree, th.Tensor) else ARRAY: name}
    return tree.item() if isinstance(tree, np.generic) else tree


def _restore(tree: Any, arrays: Any) -> Any:
    if isinstance(tree, list):
        return [_restore(part, arrays) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {ARRAY}:
        return arrays.pop(tree[ARRAY])  # each array is used once
    if set(tree) == {TENSOR}:
        return th.from_numpy(arrays.pop(tree[TENSOR]))
    return {key: _restore(part, arrays) for key, part in tree.items()}


def save_npz(path: str | Path | io.BufferedIOBase, tree: dict[str, Any]) -> None:
    """
    :param path: File to write (see ``atomic_write``), or one that is open for writing
    :param tree: Nested dictionaries and lists
    :raises OSError: if the file cannot be written; nothing of it is left then
    :raises TypeError: for a leaf that cannot be saved without pickle
    """
    arrays: dict[str, np.ndarray] = {}
    structure = json.dumps(_flatten(tree, arrays))
    arrays[STRUCTURE] = np.frombuffer(structure.encode(), np.uint8)
    opened: Any = atomic_write(Path(path)) if isinstance(path, str | Path) else contextlib.nullcontext(path)
    with opened as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[io.BufferedIOBase]:
    """
    Write a file under a temporary name and rename it once it is on disk. If that fails or is interrupted, a file that existed
    before stays as it was.

    :param path: File to write
    :return: Context with the open file
    :raises OSError: if the file cannot be written; nothing of it is left then
    """
    path = path.resolve()  # the target of a link
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if os.name != "nt":  # Windows cannot open folders
        with contextlib.suppress(OSError):  # some file systems do not allow it
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def with_suffix(path: Any, suffix: str) -> Any:
    """
    :param path: Path to a file, or an open file
    :param suffix: Suffix for a name that has none
    :return: The path as SB3 completes it, in a folder that exists; an open file as it is
    """
    if not isinstance(path, str | Path):
        return path
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path if path.suffix else path.with_name(f"{path.name}{suffix}")


def load_npz(path: str | Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    :param path: File that ``save_npz`` wrote, or one that is open for reading
    :return: What was saved
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if the file is damaged or of another kind
    """
    opened: Any = open(path, "rb") if isinstance(path, str | Path) else contextlib.nullcontext(path)
    try:
        with opened as content, zipfile.ZipFile(content) as file:
            arrays = {member.filename.removesuffix(".npy"): _read(file, member) for member in file.infolist()}
        tree = _restore(json.loads(arrays.pop(STRUCTURE).tobytes()), arrays)
        if not isinstance(tree, dict):
            raise ValueError(f"it contains a {type(tree).__name__}")
        return tree
    except Exception as error:  # damaged files lead to errors of any kind
        raise ValueError(f"{path} is damaged, or not a file of sb3_muzero: {error!r}") from error


def copy_into(ring: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """
    :param ring: A new array
    :param rows: Its first rows, read from a file
    :return: The array with these rows; ``rows`` itself if they are all of them, so that memory need not hold both
    """
    if rows.shape == ring.shape and rows.flags.c_contiguous:
        return rows
    ring[: len(rows)] = rows
    return ring


def validate_array(name: str, given: Any, like: np.ndarray, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """
    Check an array that was read from a file.

    :param name: Name of the array in error messages
    :param given: What was read
    :param like: An array of the expected dtype and shape
    :param low: Smallest number allowed
    :param high: Largest number allowed
    :return: The array
    :raises ValueError: for anything but an array of that dtype and shape whose numbers are finite and in the range
    """
    if not isinstance(given, np.ndarray) or (given.dtype, given.shape) != (like.dtype, like.shape):
        what = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else repr(given)
        raise ValueError(f"`{name}` must be an array of {like.dtype} and shape {like.shape}, got {what:.200}")
    is_bounded = given.dtype.kind == "f" or (given.dtype.kind in "iu" and (low, high) != (-np.inf, np.inf))
    if is_bounded and given.size > 0:
        smallest, largest = given.min(), given.max()
        if not (low <= smallest and largest <= high and np.isfinite(smallest) and np.isfinite(largest)):
            raise ValueError(f"`{name}` must have finite numbers from {low:g} to {high:g}, got {smallest} to {largest}")
    return given


def validate_number(name: str, given: Any, kind: type, low: float = -np.inf, high: float = np.inf) -> Any:
    """
    Check a number that was read from a file.

    :param name: Name of the number in error messages
    :param given: What was read
    :param kind: ``bool``, ``int`` or ``float`` (which may be written as an integer)
    :param low: Smallest number allowed
    :param high: Largest number allowed
    :return: The number
    :raises ValueError: for anything but a finite number of that kind and in the range
    """
    kinds = (float, int) if kind is float else (kind,)
    is_kind = isinstance(given, kinds) and isinstance(given, bool) == (kind is bool)
    if not (is_kind and np.isfinite(given) and low <= given <= high):
        raise ValueError(f"`{name}` must be a finite {kind.__name__} from {low:g} to {high:g}, got {given!r:.200}")
    return given


def _read(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """:return: An array without pickled objects; all of the member is read, so that its checksum is verified"""
    with file.open(member) as content:
        array = np.lib.format.read_array(content, allow_pickle=False)
        if content.read(1):
            raise ValueError(f"{member.filename} contains more than its array")
    return array
