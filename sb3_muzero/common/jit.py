"""Compilation with Numba: options, decorators and the on-disk cache."""

import pickle
import warnings
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import IndexDataCacheFile

if config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise RuntimeError("The search only runs compiled: unset NUMBA_DISABLE_JIT")

# No function compiled with these allocates; without reference counting (_nrt) it runs twice as fast and compiles faster
OPTIONS: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}


def hash_files(*files: Path) -> str:
    """
    :param files: source files.
    :return: hash of their contents.
    """
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# Numba itself only looks at the modification time of the file that a function is defined in
SOURCES = hash_files(Path(__file__), *sorted((Path(__file__).parents[1] / "search").rglob("*.py")))

njit_inline: Any = njit(forceinline=True, **OPTIONS)
"""
Decorator for a function that is inlined into the compiled functions that call it. A call would copy the descriptors of all
array arguments, which takes longer than most of these functions.
"""

njit_uncached: Any = njit(**OPTIONS)
"""Decorator for a function that is only called from compiled functions, whose cache entries contain it."""


class VerifiedCacheFile(IndexDataCacheFile):
    """
    Numba's files with the machine code of a function. A file that a power cut or a full disk has damaged counts as missing, so
    that the function is compiled again and the file replaced.
    """

    def save(self, key: Any, data: Any) -> None:
        """
        :param key: signature and processor.
        :param data: machine code.
        """
        content = self._dump((key, data))
        super().save(key, (sha256(content).digest(), content))

    def load(self, key: Any) -> Any:
        """
        :param key: signature and processor.
        :return: machine code, None if there is none on disk.
        """
        entry = self._if_intact(super().load, key)
        return None if entry is None else self._if_intact(_verified, key, *entry)

    def _load_index(self) -> dict[Any, str]:
        return self._if_intact(super()._load_index) or {}

    def _if_intact(self, read: Callable[..., Any], *args: Any) -> Any:
        """:return: what a function reads from the files, None where they are damaged"""
        try:
            return read(*args)
        except Exception as error:  # damaged files raise errors of any kind
            _warn_of_damage(self._cache_path, f"{self._index_name}: {error!r}")
            return None


def _verified(key: Any, digest: bytes, content: bytes) -> Any:
    """
    :return: machine code, None if it is that of another key, which a process that compiled at the same time has written.
    :raises ValueError: for a wrong checksum.
    """
    if sha256(content).digest() != digest:
        raise ValueError("the checksum of the machine code is wrong")
    saved_key, data = pickle.loads(content)
    return data if saved_key == key else None


_damaged_folders: set[str] = set()


def _warn_of_damage(folder: str, what: str) -> None:
    """Warn once for each folder."""
    if folder not in _damaged_folders:
        _damaged_folders.add(folder)
        warnings.warn(f"Compiled functions in {folder} are damaged or unreadable and are compiled again ({what})")


def compile_cached(function: Any, sources: str, options: Any) -> Any:
    """
    Compile a function and cache the machine code on disk until one of its source files changes.

    :param function: function to compile.
    :param sources: hash of the source files that it depends on.
    :param options: options for ``numba.njit``.
    :return: the compiled function. If Numba cannot read or write its cache, each process compiles again.
    """
    try:
        compiled = njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)
    cache = compiled._cache
    cache._cache_file = VerifiedCacheFile(cache.cache_path, cache._impl.filename_base, sources)
    cache.save_overload = partial(_save_if_possible, cache.save_overload)
    return compiled


def _save_if_possible(save: Any, *args: Any) -> None:
    try:
        save(*args)
    except OSError as error:
        warnings.warn(f"Compiled functions could not be cached on disk; the next process compiles them again: {error}")


def njit_cached(function: Any) -> Any:
    """
    Decorator for a function that is called from Python.

    :param function: function to compile.
    :return: the compiled function, cached on disk.
    """
    return compile_cached(function, SOURCES, OPTIONS)


def is_on_disk(compiled: Any) -> bool:
    """
    :param compiled: a function decorated with ``njit_cached``.
    :return: whether its machine code is on disk, so that the first call does not compile.
    """
    cache_file = getattr(compiled._cache, "_cache_file", None)  # there is none without a folder to write to
    return cache_file is not None and bool(cache_file._load_index())
