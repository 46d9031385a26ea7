"""Compilation with Numba: options, decorators and the on-disk cache."""

import warnings
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import config, njit

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


def compile_cached(function: Any, sources: str, options: Any) -> Any:
    """
    Compile a function and cache the machine code on disk until one of its source files changes.

    :param function: function to compile.
    :param sources: hash of the source files that it depends on.
    :param options: options for ``numba.njit``.
    :return: the compiled function. If Numba cannot write its cache, each process compiles again.
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
    cache_file = _cache_file(compiled)
    return cache_file is not None and bool(cache_file._load_index())


def _cache_file(compiled: Any) -> Any:
    """Numba's private attribute, which may be missing in another version."""
    return getattr(compiled._cache, "_cache_file", None)
