"""How everything here is compiled, and when a compiled function on disk is out of date."""

import warnings
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import config, njit

if config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise RuntimeError("The search exists as compiled code only: unset NUMBA_DISABLE_JIT")

# Nothing that is compiled here allocates; without reference counts (_nrt) it takes half the time, and compiles much faster
OPTIONS: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}


def hash_of(*files: Path) -> str:
    """
    :param files: sources.
    :return: a hash of what is in them.
    """
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# Numba itself looks at the date of a function's own file only
SOURCES = hash_of(Path(__file__), *sorted((Path(__file__).parents[1] / "search").rglob("*.py")))

part: Any = njit(forceinline=True, **OPTIONS)
"""
Compiles a part of kernels. It is inlined: a call of its own would copy the descriptors of all arrays, which takes longer than
most of what is called.
"""


def cached(function: Any, sources: str, options: Any) -> Any:
    """
    Compile a function, and keep it on disk as long as none of the sources changes.

    :param function: the function.
    :param sources: hash of what it is made of.
    :param options: numba's.
    :return: the compiled one; where numba finds no folder to write to, or no room there, every process compiles anew.
    """
    try:
        compiled = njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)
    if (cache_file := _cache_file(compiled)) is not None:
        cache_file._source_stamp = sources
        compiled._cache.save_overload = partial(_save_if_possible, compiled._cache.save_overload)
    return compiled


def _save_if_possible(save: Any, *args: Any) -> None:
    try:
        save(*args)
    except OSError as error:  # what was compiled can be used all the same
        warnings.warn(f"Compiled functions can't be kept on disk, the next process will compile them again: {error}")


def kernel(function: Any) -> Any:
    """
    :param function: one to be called from Python.
    :return: it, ``cached``.
    """
    return cached(function, SOURCES, OPTIONS)


def is_on_disk(compiled: Any) -> bool:
    """
    :param compiled: what ``kernel`` gave.
    :return: whether its first call does not have to wait for the compiler.
    """
    cache_file = _cache_file(compiled)
    return cache_file is not None and bool(cache_file._load_index())


def _cache_file(compiled: Any) -> Any:
    """Numba's inside, which may change."""
    return getattr(compiled._cache, "_cache_file", None)
